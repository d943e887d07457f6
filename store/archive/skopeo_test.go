package archive_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/store"
	"imgcrypt/store/archive"
	"imgcrypt/store/layout"
)

// run runs a command and returns its standard output.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%s %q: %v\n%s", name, args, err, exit.Stderr)
		}
		t.Fatal(err)
	}
	return string(out)
}

func skopeo(t testing.TB, args ...string) string {
	t.Helper()
	return run(t, "skopeo", append([]string{"--insecure-policy"}, args...)...)
}

// place is a store with names.
type place interface {
	imgcrypt.Store
	imgcrypt.Tags
}

// copyImage copies an image and names it.
func copyImage(t testing.TB, src place, ref string, dst place, name string) ocispec.Descriptor {
	t.Helper()
	ctx := context.Background()
	desc, err := src.Resolve(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.NewTransfer(src, dst, store.TransferOptions{Jobs: 3}).Copy(ctx, desc); err != nil {
		t.Fatal(err)
	}
	if err := dst.Tag(ctx, name, desc); err != nil {
		t.Fatal(err)
	}
	return desc
}

// specs are images of all kinds of layers.
func specs() map[string]testimage.Spec {
	mixed := []testimage.Layer{{Compression: testimage.Gzip}, {Compression: testimage.Zstd}, {Compression: testimage.None}, {Compression: testimage.Gzip, RandomSize: 3 << 20}}
	return map[string]testimage.Spec{
		"gzip":  {},
		"mixed": {Layers: mixed},
		"plain": {Layers: testimage.Layers(2, testimage.None)},
		"index": {Platforms: []string{"linux/amd64", "linux/arm64"}, Layers: mixed},
	}
}

// writeLayout writes an image into a new layout.
func writeLayout(t testing.TB, spec testimage.Spec, name string) (*layout.Store, string) {
	t.Helper()
	dir := t.TempDir()
	if _, err := spec.Write(dir, name); err != nil {
		t.Fatal(err)
	}
	l, err := layout.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, dir
}

// Archives go to skopeo and back with the same digest.
func TestSkopeoArchive(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "skopeo")
	for name, spec := range specs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, dir := writeLayout(t, spec, "v1")
			tmp := t.TempDir()
			ours, theirs := filepath.Join(tmp, "ours.tar"), filepath.Join(tmp, "theirs.tar")
			a := create(t, ours)
			desc := copyImage(t, l, "v1", a, "example.test/app:v2")
			a.Close()
			skopeo(t, "copy", "--preserve-digests", "--all", "oci-archive:"+ours+":example.test/app:v2", "oci:"+tmp+"/back:v3")
			checkSame(t, tmp+"/back", "v3", desc)

			skopeo(t, "copy", "--preserve-digests", "--all", "oci:"+dir+":v1", "oci-archive:"+theirs+":v4")
			back, err := layout.Create(filepath.Join(tmp, "back2"))
			if err != nil {
				t.Fatal(err)
			}
			defer back.Close()
			if got := copyImage(t, open(t, theirs), "v4", back, "v5"); got.Digest != desc.Digest {
				t.Errorf("it is %s, want %s", got.Digest, desc.Digest)
			}
			checkSame(t, tmp+"/back2", "v5", desc)
			// In the place of what skopeo wrote, beside its image.
			second := open(t, theirs)
			copyImage(t, l, "v1", second, "v6")
			second.Close()
			for _, ref := range []string{"v4", "v6"} {
				skopeo(t, "copy", "--preserve-digests", "--all", "oci-archive:"+theirs+":"+ref, "oci:"+tmp+"/back3:"+ref)
				checkSame(t, tmp+"/back3", ref, desc)
			}
		})
	}
}

// checkSame checks that a layout has the image, by skopeo and with all its blobs.
func checkSame(t testing.TB, dir, ref string, want ocispec.Descriptor) {
	t.Helper()
	raw := skopeo(t, "inspect", "--raw", "oci:"+dir+":"+ref)
	if got := digest.FromString(raw); got != want.Digest {
		t.Errorf("%s is %s, want %s", ref, got, want.Digest)
	}
	l, err := layout.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	checkAll(t, l, want)
}

// checkAll reads all blobs of an image and returns their descriptors.
func checkAll(t testing.TB, s imgcrypt.Store, desc ocispec.Descriptor) (all []ocispec.Descriptor) {
	t.Helper()
	r, err := s.Open(context.Background(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, desc)
	if !imgcrypt.IsManifest(desc) {
		return all
	}
	refs := must(imgcrypt.References(desc, text))
	for _, ref := range refs {
		all = append(all, checkAll(t, s, ref)...)
	}
	return all
}

// readDoc reads a manifest or config.
func readDoc[T any](t testing.TB, s imgcrypt.Store, desc ocispec.Descriptor) (v T) {
	t.Helper()
	r, err := s.Open(context.Background(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := json.NewDecoder(r).Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// diffIDs returns the digests of an image's layers, decompressed, by its config.
func diffIDs(t testing.TB, s imgcrypt.Store, desc ocispec.Descriptor) []digest.Digest {
	t.Helper()
	m := readDoc[ocispec.Manifest](t, s, desc)
	return readDoc[ocispec.Image](t, s, m.Config).RootFS.DiffIDs
}

// What is written for Docker, skopeo and buildah read, and what skopeo writes is read.
func TestSkopeoDockerArchive(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "skopeo")
	for name, spec := range specs() {
		if name == "index" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, dir := writeLayout(t, spec, "v1")
			tmp := t.TempDir()
			ours, theirs := filepath.Join(tmp, "ours.tar"), filepath.Join(tmp, "theirs.tar")
			d := must(archive.CreateDocker(ours))
			desc := copyImage(t, l, "v1", d, "example.test/app:v2")
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			want := diffIDs(t, l, desc)
			skopeo(t, "copy", "docker-archive:"+ours+":example.test/app:v2", "oci:"+tmp+"/back:v3")
			back := must(layout.Open(tmp + "/back"))
			defer back.Close()
			if diff := cmp.Diff(want, diffIDs(t, back, must(back.Resolve(t.Context(), "v3")))); diff != "" {
				t.Error(diff)
			}
			paths := []string{ours}
			if name != "mixed" {
				// skopeo puts no zstd into Docker's archives.
				skopeo(t, "copy", "oci:"+dir+":v1", "docker-archive:"+theirs+":app:v4")
				paths = append(paths, theirs)
			}
			for _, path := range paths {
				r := must(archive.OpenDocker(path))
				desc := must(r.Resolve(t.Context(), ""))
				all := checkAll(t, r, desc)
				m := readDoc[ocispec.Manifest](t, r, desc)
				var got []digest.Digest
				for _, layer := range m.Layers {
					if layer.MediaType != ocispec.MediaTypeImageLayer {
						t.Errorf("a layer of type %s", layer.MediaType)
					}
					got = append(got, layer.Digest)
				}
				if diff := cmp.Diff(want, got); diff != "" || len(all) != len(want)+2 {
					t.Errorf("%d blobs, %s", len(all), diff)
				}
				r.Close()
			}
		})
	}
}

// The same image, whoever wrote it, is the same file for file, except for the
// metadata of Docker before 1.10.
func TestSkopeoDockerFiles(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "skopeo")
	l, dir := writeLayout(t, testimage.Spec{Layers: testimage.Layers(3, testimage.Gzip)}, "v1")
	tmp := t.TempDir()
	d := must(archive.CreateDocker(filepath.Join(tmp, "ours.tar")))
	copyImage(t, l, "v1", d, "example.test/app:v1")
	d.Close()
	skopeo(t, "copy", "oci:"+dir+":v1", "docker-archive:"+tmp+"/theirs.tar:example.test/app:v1")
	ours, theirs := files(t, filepath.Join(tmp, "ours.tar")), files(t, filepath.Join(tmp, "theirs.tar"))
	for name, content := range ours {
		if want, ok := theirs[name]; name != "repositories" && (!ok || content != want) {
			t.Errorf("%s: %q, want %q", name, content, want)
		}
	}
	if len(ours) != 6 {
		t.Errorf("%d files", len(ours))
	}
}

// files returns the content of all files of a tar, of large ones the digest.
func files(t testing.TB, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := make(map[string]string)
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		content := must(io.ReadAll(tr))
		if all[h.Name] = string(content); len(content) > 1000 {
			all[h.Name] = digest.FromBytes(content).String()
		}
	}
}

func names(all map[string]string) (list []string) {
	for name := range all {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}
