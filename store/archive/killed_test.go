package archive_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/store/archive"
)

// The tests' own program is also the process that is killed, or has a disk that is full:
// with this variable it writes to the file that it names.
const childVariable = "ARCHIVE_TEST_FILE"

func child(t testing.TB, test, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), childVariable+"="+path)
	return cmd
}

// taggable is a store with names.
type taggable interface {
	imgcrypt.Store
	imgcrypt.Tags
}

// putImage puts and names an image with one layer.
func putImage(ctx context.Context, s taggable, name string, layer []byte) error {
	put := func(mediaType, text string) (ocispec.Descriptor, error) {
		return s.Put(ctx, ocispec.Descriptor{MediaType: mediaType}, strings.NewReader(text))
	}
	l, err := s.Put(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer}, bytes.NewReader(layer))
	if err != nil {
		return err
	}
	c, err := put(ocispec.MediaTypeImageConfig, fmt.Sprintf(`{"rootfs":{"diff_ids":["%s"]}}`, l.Digest))
	if err != nil {
		return err
	}
	text := `{"schemaVersion":2,"config":{"mediaType":"%s","digest":"%s","size":%d},"layers":[{"mediaType":"%s","digest":"%s","size":%d}]}`
	m, err := put(ocispec.MediaTypeImageManifest, fmt.Sprintf(text, c.MediaType, c.Digest, c.Size, l.MediaType, l.Digest, l.Size))
	if err != nil {
		return err
	}
	return s.Tag(ctx, name, m)
}

// A process that writes one image after the other, until it is killed.
func TestChildWrites(t *testing.T) {
	path := os.Getenv(childVariable)
	if path == "" {
		return
	}
	for i := 0; ; i++ {
		var s taggable
		if strings.HasPrefix(filepath.Base(path), "docker") {
			s = createDocker(t, path)
		} else {
			s = create(t, path)
		}
		// Large enough that most are killed while they write.
		if err := putImage(t.Context(), s, "v1", bytes.Repeat(fmt.Append(nil, i, " "), 1<<20)); err != nil {
			t.Fatal(err)
		}
		if err := s.(io.Closer).Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Whenever a process is killed, the archive is the old one or the new one, and whole; the
// next process removes what is left of others.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, base := range []string{"oci.tar", "docker.tar"} {
		t.Run(base, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), base)
			interrupted := 0
			for range 20 {
				cmd := child(t, "TestChildWrites", path)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Duration(20+rand.IntN(150)) * time.Millisecond)
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait()
				interrupted += len(leftovers(t, path))
				checkWhole(t, path)
			}
			if interrupted == 0 {
				t.Error("nobody was killed while writing")
			}
			var s taggable = create(t, filepath.Join(filepath.Dir(path), "other.tar"))
			if err := putImage(t.Context(), s, "v1", []byte("last")); err != nil {
				t.Fatal(err)
			}
			for _, left := range leftovers(t, path) {
				if left != "other.tar" {
					t.Error("left behind", left)
				}
			}
		})
	}
}

// checkWhole reads all of the archive, if it is there.
func checkWhole(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return // It had no time.
	}
	var s taggable
	if strings.HasPrefix(filepath.Base(path), "docker") {
		d, err := archive.OpenDocker(path)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		s = d
	} else {
		s = open(t, path)
	}
	desc, err := s.Resolve(t.Context(), "v1")
	if err != nil {
		t.Fatal(err)
	}
	checkAll(t, s, desc)
}
