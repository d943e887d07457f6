//go:build unix

package keys_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"imgcrypt/keys"
)

// A pipe gives its content once; all who ask get it.
func TestFilesReadAPipeOnce(t *testing.T) {
	t.Parallel()
	want := newRSA(t)
	for name, open := range map[string]func(t *testing.T) string{
		"named": func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "fifo")
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
			go func() {
				if w, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
					w.Write(want)
					w.Close()
				}
			}()
			return path
		},
		"descriptor": func(t *testing.T) string {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { r.Close() })
			go func() {
				w.Write(want)
				w.Close()
			}()
			return fmt.Sprintf("/dev/fd/%d", r.Fd())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := open(t)
			var files keys.Files
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					got, err := files.Read(path)
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("got %d bytes, error %v", len(got), err)
					}
					clear(got) // must not reach the others
				})
			}
			wg.Wait()
			// The whole way of --key <(…), for two layers.
			p := newParser()
			p.Files = &files
			for range 2 {
				if _, err := p.Identity(path); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestFilesLimit(t *testing.T) {
	t.Parallel()
	var files keys.Files
	fits := writeFile(t, "fits", make([]byte, keys.MaxFileSize))
	if got, err := files.Read(fits); err != nil || len(got) != keys.MaxFileSize {
		t.Errorf("got %d bytes, error %v", len(got), err)
	}
	over := writeFile(t, "over", make([]byte, keys.MaxFileSize+1))
	if _, err := files.Read(over); err == nil || !strings.Contains(err.Error(), over+": larger than 1 MiB") {
		t.Errorf("too large: %v", err)
	}
	if _, err := files.Read("/dev/zero"); err == nil || !strings.Contains(err.Error(), "larger than 1 MiB") {
		t.Errorf("endless: %v", err)
	}
}

func TestFilesKeepDescriptorOpen(t *testing.T) {
	t.Parallel()
	f, err := os.Open(writeFile(t, "f", []byte("hello")))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var files keys.Files
	if got, err := files.ReadFD(int(f.Fd())); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := f.Stat(); err != nil {
		t.Errorf("closed: %v", err)
	}
	if _, err := files.ReadFD(-1); err == nil {
		t.Error("no error for a negative descriptor")
	}
}
