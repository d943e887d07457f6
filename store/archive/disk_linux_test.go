package archive_test

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

	"imgcrypt/internal/testenv"
)

// A process that has a small disk of its own.
func TestChildDiskFull(t *testing.T) {
	path := os.Getenv(childVariable)
	if path == "" {
		return
	}
	dir := filepath.Dir(path)
	// In this process's mount namespace only.
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{path, filepath.Join(dir, "docker.tar")} {
		open := func() (s taggable) {
			if strings.HasPrefix(filepath.Base(path), "docker") {
				return createDocker(t, path)
			}
			return create(t, path)
		}
		s := open()
		if err := putImage(t.Context(), s, "v1", []byte("small")); err != nil {
			t.Fatal(err)
		}
		before := files(t, path)
		for range 3 {
			_, err := s.Put(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer}, bytes.NewReader(make([]byte, 5<<20)))
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("got %v", err)
			}
		}
		// So full that there is room for a layer, but not for what makes it an archive.
		if _, err := s.Put(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer}, strings.NewReader("layer")); err != nil {
			t.Fatal(err)
		}
		fill, err := os.Create(filepath.Join(dir, "fill"))
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = fill.Write(make([]byte, 1024))
		}
		for range 3 {
			if err := putImage(t.Context(), s, "v2", bytes.Repeat([]byte("x"), 5000)); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("got %v", err)
			}
		}
		if after := files(t, path); len(after) != len(before) {
			t.Errorf("it has %d files, not %d", len(after), len(before))
		}
		checkWhole(t, path)
		if err := errors.Join(fill.Close(), os.Remove(fill.Name())); err != nil {
			t.Fatal(err)
		}
		if err := putImage(t.Context(), s, "v1", []byte("another")); err != nil {
			t.Error(err)
		}
		checkWhole(t, path)
	}
	fmt.Println("the disk was full")
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	testenv.Need(t, testenv.MountNamespace)
	cmd := child(t, "TestChildDiskFull", filepath.Join(t.TempDir(), "oci.tar"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "the disk was full") {
		t.Errorf("%v\n%s", err, out)
	}
}
