package layout_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testenv"
)

// A process that has a small disk of its own.
func TestChildDiskFull(t *testing.T) {
	dir := os.Getenv(childVariable)
	if dir == "" {
		return
	}
	// In this process's mount namespace only.
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	s := create(t, filepath.Join(dir, "layout"))
	small := must(s.Put(t.Context(), ocispec.Descriptor{MediaType: "a/b"}, strings.NewReader("small")))
	if err := s.Tag(t.Context(), "v1", small); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, err := s.Put(t.Context(), ocispec.Descriptor{}, bytes.NewReader(make([]byte, 5<<20)))
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("got %v", err)
		}
		if left := leftovers(t, filepath.Join(dir, "layout")); len(left) > 0 {
			t.Error("left behind", left)
		}
	}
	// So full that there is no room for a name.
	fill := must(os.Create(filepath.Join(dir, "fill")))
	for {
		if _, err := fill.Write(make([]byte, 1024)); err != nil {
			break
		}
	}
	if err := s.Tag(t.Context(), "v2", small); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if got, err := s.Resolve(t.Context(), "v1"); err != nil || got.Digest != small.Digest {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := s.Resolve(t.Context(), "v2"); !errors.Is(err, imgcrypt.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if err := errors.Join(fill.Close(), os.Remove(fill.Name())); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(t.Context(), "v2", small); err != nil {
		t.Error(err)
	}
	fmt.Println("the disk was full")
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	testenv.Need(t, testenv.MountNamespace)
	cmd := child(t, "TestChildDiskFull", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "the disk was full") {
		t.Errorf("%v\n%s", err, out)
	}
}
