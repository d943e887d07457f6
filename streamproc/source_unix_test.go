//go:build unix

package streamproc

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inherited returns what f looks like to a process that was started with it.
func inherited(t *testing.T, f *os.File) int {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, 100)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestSource(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	src, err := sourceFrom(inherited(t, r))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if _, err := w.WriteString("payload"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if got, err := io.ReadAll(src); err != nil || string(got) != "payload" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestSourceIsNoPayload(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	for _, tt := range []struct {
		name string
		fd   int
		want string
	}{
		{"closed", 4000, "not open"},
		{"file", inherited(t, file), "not a pipe"},
		{"writing end", inherited(t, w), "cannot be read"},
		{"this process's own", int(r.Fd()), "own"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := sourceFrom(tt.fd)
			if !errors.Is(err, ErrNoPayload) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want one that says %q", err, tt.want)
			}
		})
	}
}
