//go:build unix

package layout_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testimage"
	"imgcrypt/store/layout"
)

func readFile(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// newLayout makes a layout with one image, v1.
func newLayout(t testing.TB) (dir string, desc ocispec.Descriptor) {
	t.Helper()
	dir = t.TempDir()
	return dir, must(testimage.Spec{}.Write(dir, "v1"))
}

// Directories that are no layouts are not taken for one, and are left alone.
func TestNotALayout(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		files  map[string]string
		open   error
		create error
	}{
		"empty":             {nil, layout.ErrNotLayout, nil},
		"other files":       {map[string]string{"a": ""}, layout.ErrNotLayout, layout.ErrNotLayout},
		"begun":             {map[string]string{"index.json": `{"schemaVersion":2,"manifests":[]}`, ".imgcrypt-X.tmp": ""}, layout.ErrNotLayout, nil},
		"other version":     {map[string]string{"oci-layout": `{"imageLayoutVersion":"2.0.0"}`}, imgcrypt.ErrManifest, imgcrypt.ErrManifest},
		"no version":        {map[string]string{"oci-layout": `{}`}, imgcrypt.ErrManifest, imgcrypt.ErrManifest},
		"version no string": {map[string]string{"oci-layout": `{"imageLayoutVersion":1}`}, imgcrypt.ErrManifest, imgcrypt.ErrManifest},
		"no JSON":           {map[string]string{"oci-layout": `1.0.0`}, imgcrypt.ErrManifest, imgcrypt.ErrManifest},
		"huge version":      {map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}` + strings.Repeat(" ", 1<<20)}, imgcrypt.ErrManifest, imgcrypt.ErrManifest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for name, text := range tt.files {
				writeFile(t, filepath.Join(dir, name), text)
			}
			if s, err := layout.Open(dir); !errors.Is(err, tt.open) {
				t.Errorf("open: %v", err)
			} else if err == nil {
				s.Close()
			}
			s, err := layout.Create(dir)
			if !errors.Is(err, tt.create) {
				t.Fatalf("create: %v", err)
			}
			if err != nil {
				return
			}
			defer s.Close()
			desc := must(s.Put(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest}, strings.NewReader("{}")))
			if err := s.Tag(t.Context(), "v1", desc); err != nil {
				t.Fatal(err)
			}
			must(open(t, dir).Resolve(t.Context(), "v1"))
			if left := leftovers(t, dir); len(left) > 0 {
				t.Error("left behind", left)
			}
		})
	}
}

func TestOpenNothing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	if _, err := layout.Open(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	writeFile(t, file, "")
	for _, open := range []func(string) (*layout.Store, error){layout.Open, layout.Create} {
		if _, err := open(file); err == nil {
			t.Error("a file is a layout")
		}
	}
	// Nothing is made before something is written, nor if that does not work.
	s := create(t, dir)
	if _, err := s.Resolve(t.Context(), ""); !errors.Is(err, imgcrypt.ErrNotFound) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Put(ctx, ocispec.Descriptor{}, strings.NewReader("")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := s.Tag(t.Context(), "v1", ocispec.Descriptor{MediaType: "a/b", Digest: digest.FromString("none")}); !errors.Is(err, imgcrypt.ErrNotFound) {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("it was made", err)
	}
}

// Whatever is wrong with a blob's file, its reader does not end as if all were well.
func TestDamagedBlobs(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("data"), 1<<19)
	for name, damaged := range map[string][]byte{
		"shorter": data[:len(data)-1], "longer": append(slices.Clone(data), 'x'), "empty": nil,
		"one byte": append([]byte{'x'}, data[1:]...), "last byte": append(slices.Clone(data[:len(data)-1]), 'x'),
	} {
		dir := t.TempDir()
		s := create(t, dir)
		desc := must(s.Put(t.Context(), ocispec.Descriptor{MediaType: "a/b"}, bytes.NewReader(data)))
		path := filepath.Join(dir, "blobs", "sha256", desc.Digest.Encoded())
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		writeFile(t, path, string(damaged))
		got, err := read(s, desc)
		if !errors.Is(err, imgcrypt.ErrMismatch) {
			t.Errorf("%s: %v", name, err)
		}
		if int64(len(got)) > desc.Size {
			t.Errorf("%s: %d bytes", name, len(got))
		}
		if has := must(s.Has(t.Context(), desc)); has != (len(damaged) == len(data)) {
			t.Errorf("%s: has %v", name, has)
		}
		// To put it again heals it.
		must(s.Put(t.Context(), desc, bytes.NewReader(data)))
		if got, err := read(s, desc); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// What leads out of the layout is not followed, and what is no file not opened.
func TestLinksAndPipes(t *testing.T) {
	t.Parallel()
	outside := filepath.Join(t.TempDir(), "secret")
	writeFile(t, outside, "secret")
	desc := ocispec.Descriptor{MediaType: "a/b", Digest: digest.FromString("secret"), Size: 6}
	for name, plant := range map[string]func(blob string) error{
		"absolute link": func(blob string) error { return os.Symlink(outside, blob) },
		"relative link": func(blob string) error {
			target := must(filepath.Rel(filepath.Dir(blob), outside))
			return os.Symlink(target, blob)
		},
		"link to itself": func(blob string) error { return os.Symlink(filepath.Base(blob), blob) },
		"directory":      func(blob string) error { return os.Mkdir(blob, 0o755) },
		"pipe":           func(blob string) error { return syscall.Mkfifo(blob, 0o644) },
		"link to blobs": func(blob string) error {
			dir := filepath.Dir(blob)
			elsewhere := filepath.Join(filepath.Dir(outside), "sha256")
			return errors.Join(os.MkdirAll(elsewhere, 0o755), os.WriteFile(filepath.Join(elsewhere, filepath.Base(blob)), []byte("secret"), 0o644),
				os.RemoveAll(dir), os.Symlink(elsewhere, dir))
		},
	} {
		dir, _ := newLayout(t)
		s := open(t, dir)
		if err := plant(filepath.Join(dir, "blobs", "sha256", desc.Digest.Encoded())); err != nil {
			t.Fatal(err)
		}
		if got, err := read(s, desc); err == nil || errors.Is(err, imgcrypt.ErrNotFound) || len(got) > 0 {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if must(s.Has(t.Context(), desc)) {
			t.Errorf("%s: it says that it has it", name)
		}
	}
	// Within the layout a link is as good as a file.
	dir, _ := newLayout(t)
	writeFile(t, filepath.Join(dir, "data"), "secret")
	if err := os.Symlink("../../data", filepath.Join(dir, "blobs", "sha256", desc.Digest.Encoded())); err != nil {
		t.Fatal(err)
	}
	if got, err := read(open(t, dir), desc); err != nil || string(got) != "secret" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestHostileIndex(t *testing.T) {
	t.Parallel()
	entry := `{"mediaType":"a/b","digest":"` + digest.FromString("x").String() + `","size":1}`
	for name, text := range map[string]string{
		"no JSON": `{`, "array": `[]`, "version": `{"schemaVersion":1,"manifests":[]}`, "no array": `{"schemaVersion":2,"manifests":{}}`,
		"no object": `{"manifests":[1]}`, "no descriptor": `{"manifests":[{"digest":1}]}`, "two lists": `{"manifests":[],"Manifests":[` + entry + `]}`,
		"two digests": `{"manifests":[{"digest":"a","digest":"b"}]}`, "negative": `{"manifests":[{"size":-1}]}`,
		"too many": `{"manifests":[` + strings.Repeat(entry+",", 10000) + entry + `]}`,
		"huge":     `{"manifests":[` + entry + `]}` + strings.Repeat(" ", 4<<20), "deep": strings.Repeat("[", 1<<20),
	} {
		dir, desc := newLayout(t)
		writeFile(t, filepath.Join(dir, "index.json"), text)
		s := open(t, dir)
		if _, err := s.Resolve(t.Context(), ""); !errors.Is(err, imgcrypt.ErrManifest) {
			t.Errorf("%s: resolve: %v", name, err)
		}
		if err := s.Tag(t.Context(), "v2", desc); !errors.Is(err, imgcrypt.ErrManifest) {
			t.Errorf("%s: tag: %v", name, err)
		}
		if got := readFile(t, filepath.Join(dir, "index.json")); got != text {
			t.Errorf("%s: it was changed", name)
		}
	}
	dir, _ := newLayout(t)
	if err := os.Remove(filepath.Join(dir, "index.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir).Resolve(t.Context(), ""); !errors.Is(err, imgcrypt.ErrManifest) {
		t.Error(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "index.json"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir).Resolve(t.Context(), ""); err == nil {
		t.Error("a pipe is an index")
	}
}

// Two stores that open the same directory, which is what processes do, do not lose each
// other's names.
func TestTagByMany(t *testing.T) {
	t.Parallel()
	dir, desc := newLayout(t)
	var wg sync.WaitGroup
	for i := range 4 {
		s := open(t, dir)
		wg.Go(func() {
			for j := range 5 {
				if err := s.Tag(t.Context(), fmt.Sprintf("v%d.%d", i, j), desc); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	index := must(testimage.Index(dir))
	if len(index.Manifests) != 21 {
		t.Errorf("%d entries", len(index.Manifests))
	}
}

// Many create the same layout at once.
func TestCreateByMany(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	var wg sync.WaitGroup
	for i := range 8 {
		s := create(t, dir)
		wg.Go(func() {
			desc, err := s.Put(t.Context(), ocispec.Descriptor{MediaType: "a/b"}, strings.NewReader(fmt.Sprint(i)))
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Tag(t.Context(), fmt.Sprintf("v%d", i), desc); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if index := must(testimage.Index(dir)); len(index.Manifests) != 8 {
		t.Errorf("%d entries", len(index.Manifests))
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Error("left behind", left)
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	shared := testimage.Layers(2, testimage.Gzip)
	spec := testimage.Spec{Layers: shared, Platforms: []string{"linux/amd64", "linux/arm64"}}
	kept := must(spec.Write(dir, "kept"))
	spec.Platforms = []string{"linux/amd64", "linux/s390x"}
	gone := must(spec.Write(dir, "gone"))
	s := open(t, dir)
	if err := s.Delete(t.Context(), gone); err == nil {
		t.Error("an image with a name was deleted")
	}
	only := slices.DeleteFunc(readAll(t, s, gone), func(d digest.Digest) bool { return slices.Contains(readAll(t, s, kept), d) })
	if len(only) == 0 {
		t.Fatal("nothing to delete")
	}
	if err := s.Tag(t.Context(), "gone", kept); err != nil {
		t.Fatal(err)
	}
	// An image that cannot be read may need anything.
	manifest := filepath.Join(dir, "blobs", "sha256", kept.Digest.Encoded())
	text := readFile(t, manifest)
	writeFile(t, manifest, text+" ")
	if err := s.Delete(t.Context(), gone); !errors.Is(err, imgcrypt.ErrMismatch) {
		t.Error(err)
	}
	writeFile(t, manifest, text)
	if err := s.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	readAll(t, s, kept)
	for _, d := range only {
		if _, err := os.Stat(filepath.Join(dir, "blobs", "sha256", d.Encoded())); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there", d)
		}
	}
	if err := s.Delete(t.Context(), gone); err != nil {
		t.Error("again:", err)
	}
}

// Other images, annotations and members that are not known here stay as they are.
func TestTagKeepsTheRest(t *testing.T) {
	t.Parallel()
	dir, first := newLayout(t)
	second := must(testimage.Spec{Salt: "second"}.Write(dir, "v2"))
	index := func(digest digest.Digest, size int64, rest, end string) string {
		return fmt.Sprintf("{ \"x\" : 1.50e+2,\n \"annotations\":{\"a\":\"\\u00e9\"},\"schemaVersion\":2,\"manifests\" : [\n  "+
			`{"size":%d,"x-y":[1, 2],"digest":"%s","mediaType":"%s"%s,"annotations":{"org.opencontainers.image.ref.name":"v1","b":"c"}},`+
			"\n  {\"mediaType\":\"other\\/type\",\"digest\":\"sha256:1\",\"size\":3 } %s] }\n", size, digest, ocispec.MediaTypeImageManifest, rest, end)
	}
	path := filepath.Join(dir, "index.json")
	writeFile(t, path, index(first.Digest, first.Size, `,"data":"AAAA","platform":{"os":"linux","architecture":"arm64"}`, ""))
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if err := s.Tag(t.Context(), "v1", second); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(index(second.Digest, second.Size, "", ""), readFile(t, path)); diff != "" {
		t.Error(diff)
	}
	if err := s.Tag(t.Context(), "v3", first); err != nil {
		t.Fatal(err)
	}
	added := fmt.Sprintf(`,{"mediaType":"%s","digest":"%s","size":%d,"annotations":{"org.opencontainers.image.ref.name":"v3"}}`, first.MediaType, first.Digest, first.Size)
	if diff := cmp.Diff(index(second.Digest, second.Size, "", added), readFile(t, path)); diff != "" {
		t.Error(diff)
	}
	if info := must(os.Stat(path)); info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v", info.Mode())
	}
}

// A reader that was begun can be read to its end, whatever becomes of the store.
func TestReadAfterClose(t *testing.T) {
	t.Parallel()
	dir, desc := newLayout(t)
	s := open(t, dir)
	r, err := s.Open(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if text, err := io.ReadAll(r); err != nil || digest.FromBytes(text) != desc.Digest {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	// But no further than its context.
	ctx, cancel := context.WithCancel(t.Context())
	r = must(open(t, dir).Open(ctx, desc))
	defer r.Close()
	cancel()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
