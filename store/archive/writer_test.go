package archive

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"
)

// Whatever the size and the length of the name, the header is as long as was said before
// they were known, and says what it should.
func TestHeader(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{0, 1, 1<<33 - 1, 1 << 33, 9 << 40} {
		for _, length := range []int{1, 77, 99, 100, 101, 141, 255, 511, 512, 513} {
			name := strings.Repeat("n", length)
			head, err := header(name, size)
			if err != nil {
				t.Fatal(err)
			}
			if int64(len(head)) != headerSize(length) {
				t.Errorf("%d bytes, name %d: %d, want %d", size, length, len(head), headerSize(length))
			}
			h, err := tar.NewReader(bytes.NewReader(head)).Next()
			if err != nil {
				t.Fatal(err)
			}
			if h.Name != name || h.Size != size || h.Typeflag != tar.TypeReg || h.Mode != 0o644 {
				t.Errorf("%d bytes, name %d: %+v", size, length, h)
			}
		}
	}
}

func TestCleanName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"a": "a", "./a": "a", "/a": "a", "//a//b/": "a/b", "../a": "a", "a/../../b": "b", "": "", ".": "", "/": "", "..": "",
	} {
		if got := cleanName(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
}

func TestDetect(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]compression{
		"": plain, "x": plain, "\x1f": plain, "\x1f\x8b": gzipped, "\x28\xb5\x2f\xfd....": zstded, "BZh9....": "bzip2", "\xfd7zXZ\x00.": "xz",
	} {
		if got, err := detect(strings.NewReader(text)); got != want || err != nil {
			t.Errorf("%q is %q, %v", text, got, err)
		}
	}
	if _, err := decompress(nil, "xz"); err == nil {
		t.Error("xz is read")
	}
	if _, err := detect(io.MultiReader(strings.NewReader("x"), failingReader{})); err != io.ErrClosedPipe {
		t.Errorf("got %v", err)
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestFullDockerName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"a": "docker.io/library/a:latest", "a:v1": "docker.io/library/a:v1", "a/b": "docker.io/a/b:latest", "docker.io/a": "docker.io/library/a:latest",
		"index.docker.io/a/b:1": "docker.io/a/b:1", "localhost/a": "localhost/a:latest", "localhost:5000/a:1": "localhost:5000/a:1",
		"example.test/a/b_c:V1": "example.test/a/b_c:V1", "HOST/a": "HOST/a:latest", "[::1]:5000/a": "[::1]:5000/a:latest",
		"": "", "A": "A", "a:b:c": "a:b:c", "a@sha256:x": "a@sha256:x",
	} {
		if got := fullDockerName(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
		if got := fullDockerName(fullDockerName(name)); got != want {
			t.Errorf("%q is %q the second time", name, got)
		}
	}
}
