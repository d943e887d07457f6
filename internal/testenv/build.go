package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// builds remembers what this process has built: package → *built.
var builds sync.Map

type built struct {
	once sync.Once
	path string
	err  error
}

// TokenHelper is the one command that is built with cgo, since it loads modules for tokens. A test that builds
// it needs Cgo.
const TokenHelper = "./cmd/imgcrypt-pkcs11"

// Build builds a command of this module, "./cmd/ctr-enc", as `make` does it (CGO_ENABLED=0, except for
// TokenHelper), and returns the path of the program. It is built at most once per process; processes that
// test at the same time share the result. The test fails with the compiler's output where it does not build.
// All are in one directory, so that programs find each other as they do where they are installed.
func Build(t testing.TB, pkg string) string {
	t.Helper()
	path, err := BuildCommand(pkg)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// BuildCommand is Build for programs that are no tests.
func BuildCommand(pkg string) (string, error) {
	v, _ := builds.LoadOrStore(pkg, new(built))
	b := v.(*built)
	b.once.Do(func() { b.path, b.err = build(pkg) })
	return b.path, b.err
}

func build(pkg string) (string, error) {
	dir := filepath.Join(Root(), ".cache", "test-bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	out := filepath.Join(dir, filepath.Base(pkg))

	// Two test processes must not link into the same file at the same time. The second one finds an
	// up-to-date program, which go build leaves alone.
	lock, err := os.OpenFile(out+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := lockFile(lock); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}

	cmd := exec.Command("go", "build", "-trimpath", "-o", out, pkg)
	cmd.Dir = Root()
	cgo := "CGO_ENABLED=0"
	if pkg == TokenHelper {
		cgo = "CGO_ENABLED=1"
	}
	cmd.Env = append(os.Environ(), cgo, "GOFLAGS="+goflags())
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s: %w\n%s", pkg, err, output)
	}
	return out, nil
}

// goflags keeps the caller's GOFLAGS and switches off the version stamp, which fails in a tree that
// git does not trust.
func goflags() string {
	return strings.TrimSpace(os.Getenv("GOFLAGS") + " -buildvcs=false")
}
