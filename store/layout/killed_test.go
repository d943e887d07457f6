package layout_test

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

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/store/layout"
)

// The tests' own program is also the process that is killed, or has a disk that is full:
// with this variable it works in the directory that it names.
const childVariable = "LAYOUT_TEST_DIR"

func child(t testing.TB, test, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), childVariable+"="+dir)
	return cmd
}

// A process that writes one image after the other, until it is killed.
func TestChildWrites(t *testing.T) {
	dir := os.Getenv(childVariable)
	if dir == "" {
		return
	}
	s, err := layout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		// Large enough that most are killed while they write.
		data := bytes.Repeat(fmt.Append(nil, i, " "), 1<<20)
		layer, err := s.Put(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer}, bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		manifest := fmt.Sprintf(`{"schemaVersion":2,"layers":[{"mediaType":"%s","digest":"%s","size":%d}]}`, layer.MediaType, layer.Digest, layer.Size)
		desc, err := s.Put(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest}, strings.NewReader(manifest))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Tag(t.Context(), "v1", desc); err != nil {
			t.Fatal(err)
		}
	}
}

// Whenever a process is killed, the layout is one, its names stand for whole images, all
// of its blobs are whole, and the next process removes what is left of others.
func TestKilled(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	dir := filepath.Join(tmp, "layout")
	interrupted := 0
	for range 20 {
		cmd := child(t, "TestChildWrites", dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+rand.IntN(150)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		interrupted += len(leftoversIn(t, dir))
		checkWhole(t, dir)
	}
	if interrupted == 0 {
		t.Error("nobody was killed while writing")
	}
	s := create(t, dir)
	if _, err := s.Put(t.Context(), ocispec.Descriptor{}, strings.NewReader("last")); err != nil {
		t.Fatal(err)
	}
	if left := leftoversIn(t, dir); len(left) > 0 {
		t.Error("left behind", left)
	}
}

// leftoversIn is leftovers for a directory that may not be there.
func leftoversIn(t testing.TB, dir string) []string {
	t.Helper()
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return leftovers(t, dir)
}

// checkWhole reads all blobs of a layout, and the image that has a name.
func checkWhole(t testing.TB, dir string) {
	t.Helper()
	s, err := layout.Open(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, layout.ErrNotLayout) {
		return // It had no time.
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	files, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		d := digest.NewDigestFromEncoded(digest.SHA256, filepath.Base(file))
		if text, err := os.ReadFile(file); err != nil || digest.FromBytes(text) != d {
			t.Errorf("%s is not whole: %v", d, err)
		}
	}
	desc, err := s.Resolve(t.Context(), "v1")
	if errors.Is(err, imgcrypt.ErrNotFound) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, s, desc)
}

// A file that somebody is writing is not what a killed process left.
func TestOthersAreLeftAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := create(t, dir)
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := s.Put(context.Background(), ocispec.Descriptor{}, r)
		done <- err
	}()
	if _, err := w.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(dir, ".imgcrypt-STALE.tmp")
	writeFile(t, stale, "left by a killed process")
	writeFile(t, filepath.Join(dir, ".imgcrypt-else"), "somebody else's")
	if _, err := create(t, dir).Put(t.Context(), ocispec.Descriptor{}, strings.NewReader("other")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Error("what a killed process left is still there")
	}
	w.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if left := leftovers(t, dir); len(left) != 1 || left[0] != ".imgcrypt-else" {
		t.Error(left)
	}
}
