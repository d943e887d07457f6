package testnode

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"imgcrypt/internal/testenv"
)

// isolatedEnv marks a process that Isolate has put into a mount namespace of its own.
const isolatedEnv = "IMGCRYPT_TESTNODE_ISOLATED"

// sharedRun is the directory that containerd, its shims, runc and ctr use whatever they are configured
// to: containerd 1.6 has no setting for where its shims' sockets are (s), ctr asks runc to keep its
// state here (runc) and puts the containers' standard streams here (fifo).
const sharedRun = "/run/containerd"

// Main is what TestMain of a package that starts nodes has to be:
//
//	func TestMain(m *testing.M) { testnode.Main(m) }
//
// It runs the tests in isolation, see Isolate, and exits.
func Main(m *testing.M) {
	if err := Isolate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// Isolate starts the running program again, under the same process id, in a mount namespace of its
// own with an empty /run/containerd. A containerd that the machine has and the nodes cannot see each other's
// shims, sockets and containers then, no mount that a node makes reaches the machine, and all of them
// are gone with the last process of the namespace, however it ends. It is to be called first thing in main: what
// ran before runs again. It returns when the program is isolated already, and does nothing where it may not make
// a mount namespace: no node starts there, and Start tells why.
func Isolate() error {
	if os.Getenv(isolatedEnv) != "" || missing() != nil {
		return nil
	}
	if err := reexec(); err != nil {
		return fmt.Errorf("isolate from the machine's containerd: %w", err)
	}
	return nil
}

// requirements are what every node needs, and what some need besides.
func requirements(more ...string) []string {
	return append([]string{testenv.SuperUser, testenv.MountNamespace, "runc"}, more...)
}

// missing returns the first requirement that is not met, nil where a node can start.
func missing(more ...string) error {
	for _, r := range requirements(more...) {
		if err := testenv.Missing(r); err != nil {
			return err
		}
	}
	return nil
}

// reexec returns only on failure.
func reexec() error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	// The mount point is all that the machine itself gets to see.
	if err := os.MkdirAll(sharedRun, 0o711); err != nil {
		return err
	}
	// A mount namespace belongs to a thread. Its exec is the process's, so the new program is in it as a whole.
	// The thread stays locked: after a failure half way it must not run anything else.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", sharedRun, "tmpfs", 0, "mode=0711"); err != nil {
		return fmt.Errorf("mount %s: %w", sharedRun, err)
	}
	return syscall.Exec(exe, os.Args, append(os.Environ(), isolatedEnv+"=1"))
}
