// Package testenv says what a test needs of the machine, and finds or builds it.
//
// A test names its requirements first:
//
//	testenv.Need(t, "root", "runc", testenv.Containerd24)
//
// Where one is missing the test is skipped with the reason "needs X: why", which the test report
// lists. With CI=true in the environment a missing requirement fails the test instead: there
// everything has to run. scripts/setup provides all requirements on Debian and Ubuntu.
package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Requirements that are more than a command on PATH.
const (
	// SuperUser is the right to be root.
	SuperUser = "root"
	// MountNamespace is the right to make a mount namespace, which root does not have in every container, and in no chroot.
	MountNamespace = "mount-namespace"
	// Containerd24 is containerd 2.4 with its runc shim and ctr, built by scripts/setup into CacheBin.
	Containerd24 = "containerd-2.4"
	// Containerd16 is the distribution's containerd 1.6 at /usr/bin/containerd.
	Containerd16 = "containerd-1.6"
	// Busybox is a statically linked busybox, see BusyboxPath.
	Busybox = "busybox"
	// SoftHSM is SoftHSM 2, with the tools that make a token and its keys, see SoftHSMModule.
	SoftHSM = "softhsm2"
	// Cgo is a C compiler that the go command finds.
	Cgo = "cgo"
)

// debianContainerd is the one path at which Debian and Ubuntu install containerd. PATH is not
// searched, since another containerd may come first there.
const debianContainerd = "/usr/bin/containerd"

// Need ends the test unless every requirement is met: by t.Skip with the reason "needs X: why", or by
// t.Fatal with the same text where the environment has CI=true. A requirement is one of this
// package's constants or the name of a command that has to be on PATH (or in the sbin directories).
func Need(t testing.TB, requirements ...string) {
	t.Helper()
	for _, r := range requirements {
		err := Missing(r)
		if err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// Missing returns nil where the requirement is met, otherwise an error "needs X: why". It is what
// Need asks, for programs that are no tests.
func Missing(requirement string) error {
	if err := check(requirement); err != nil {
		return fmt.Errorf("needs %s: %w", requirement, err)
	}
	return nil
}

func check(requirement string) error {
	switch requirement {
	case SuperUser:
		return superUser()
	case MountNamespace:
		return mountNamespace()
	case Containerd24:
		for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
			if _, err := os.Stat(filepath.Join(CacheBin(), name)); err != nil {
				return fmt.Errorf("no %s in .cache/bin (run scripts/setup)", name)
			}
		}
		return nil
	case Containerd16:
		return containerd16()
	case Busybox:
		_, err := BusyboxPath()
		return err
	case SoftHSM:
		_, err := SoftHSMModule()
		return err
	case Cgo:
		return compiler()
	}
	_, err := LookPath(requirement)
	return err
}

// superUser is not satisfied with the root of a user namespace, who may neither mount what containerd mounts
// nor use the machine's control groups.
func superUser() error {
	if os.Geteuid() != 0 {
		return errors.New("not the super user")
	}
	// user_namespaces(7): user ids inside, outside, and how many. Other systems have no such file.
	uids, err := os.ReadFile("/proc/self/uid_map")
	if err == nil && !slices.Equal(strings.Fields(string(uids)), []string{"0", "0", "4294967295"}) {
		return errors.New("the super user of a user namespace only")
	}
	return nil
}

// mountNamespace tries it, once per process.
var mountNamespace = sync.OnceValue(tryMountNamespace)

// containerd16 asks the installed containerd for its version, once per process.
var containerd16 = sync.OnceValue(func() error {
	out, err := exec.Command(debianContainerd, "--version").Output()
	if err != nil {
		return err
	}
	// "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3"
	fields := strings.Fields(string(out))
	if len(fields) < 3 {
		return fmt.Errorf("%s --version says %q", debianContainerd, out)
	}
	if v := strings.TrimPrefix(fields[2], "v"); !strings.HasPrefix(v, "1.6.") {
		return fmt.Errorf("%s is version %s", debianContainerd, v)
	}
	return nil
})

// LookPath finds a command on PATH, or else in the directories for the super user's commands (runc is
// there), which the PATH of an ordinary user may lack.
func LookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", errors.New("not on PATH")
}

// BusyboxPath returns a statically linked busybox: one that can be a container's only file.
func BusyboxPath() (string, error) {
	return busybox()
}

var busybox = sync.OnceValues(func() (string, error) {
	for _, path := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		static, err := isStatic(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if static {
			return path, nil
		}
	}
	return "", errors.New("no statically linked busybox in /bin or /usr/bin")
})

// SoftHSMModule returns the path of SoftHSM's PKCS #11 module.
func SoftHSMModule() (string, error) {
	return softHSM()
}

var softHSM = sync.OnceValues(func() (string, error) {
	for _, tool := range []string{"softhsm2-util", "pkcs11-tool"} {
		if _, err := LookPath(tool); err != nil {
			return "", fmt.Errorf("%s: %w", tool, err)
		}
	}
	// Debian and Ubuntu, Fedora, others.
	for _, dir := range []string{"/usr/lib/softhsm", "/usr/lib64/pkcs11", "/usr/lib/pkcs11", "/usr/lib64/softhsm", "/usr/local/lib/softhsm"} {
		path := filepath.Join(dir, "libsofthsm2.so")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New("no libsofthsm2.so in the usual directories")
})

// compiler looks for the C compiler that the go command would call, once per process.
var compiler = sync.OnceValue(func() error {
	out, err := exec.Command("go", "env", "CC").Output()
	if err != nil {
		return err
	}
	name := strings.Fields(string(out))
	if len(name) == 0 {
		return errors.New("no C compiler")
	}
	if _, err := exec.LookPath(name[0]); err != nil {
		return fmt.Errorf("no C compiler %s", name[0])
	}
	return nil
})

// Root returns the directory of this module: the nearest one at or above the working directory whose
// go.mod is that of the module imgcrypt. It panics where there is none, since nothing in the test
// harness works outside of the source tree.
func Root() string {
	return root()
}

var root = sync.OnceValue(func() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(fmt.Sprintf("testenv: %v", err))
	}
	for at := dir; ; at = filepath.Dir(at) {
		if mod, err := os.ReadFile(filepath.Join(at, "go.mod")); err == nil {
			if first, _, _ := strings.Cut(string(mod), "\n"); strings.TrimSpace(first) == "module imgcrypt" {
				return at
			}
		}
		if at == filepath.Dir(at) {
			panic(fmt.Sprintf("testenv: %s is not inside of the module imgcrypt", dir))
		}
	}
})

// CacheBin returns the git-ignored directory for the programs that scripts/setup builds.
func CacheBin() string {
	return filepath.Join(Root(), ".cache", "bin")
}

// Containerd returns the path of the containerd that a requirement, Containerd24 or Containerd16,
// stands for.
func Containerd(requirement string) string {
	if requirement == Containerd16 {
		return debianContainerd
	}
	return filepath.Join(CacheBin(), "containerd")
}
