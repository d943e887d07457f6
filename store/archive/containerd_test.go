package archive_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	ctrarchive "github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/internal/testimage"
	"imgcrypt/store/archive"
)

// containerd's content store warns about each file system without fs-verity.
func TestMain(m *testing.M) {
	if err := log.SetLevel("fatal"); err != nil {
		panic(err)
	}
	m.Run()
}

// imported is what containerd finds in an archive: for each name, in its full form, the
// image.
func imported(t *testing.T, path string) (content.Store, map[string]ocispec.Descriptor) {
	t.Helper()
	cs := must(local.NewStore(t.TempDir()))
	f := must(os.Open(path))
	defer f.Close()
	desc, err := ctrarchive.ImportIndex(t.Context(), cs, f)
	if err != nil {
		t.Fatal(err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(must(content.ReadBlob(t.Context(), cs, desc)), &index); err != nil {
		t.Fatal(err)
	}
	images := make(map[string]ocispec.Descriptor)
	for _, m := range index.Manifests {
		name := m.Annotations["io.containerd.image.name"]
		if name == "" {
			name = m.Annotations[ocispec.AnnotationRefName]
		}
		images[name] = m
	}
	return cs, images
}

// containerd imports what is written here.
func TestContainerdImports(t *testing.T) {
	t.Parallel()
	l, _ := writeLayout(t, testimage.Spec{Layers: testimage.Layers(2, testimage.Gzip)}, "v1")
	tmp := t.TempDir()
	a, d := create(t, filepath.Join(tmp, "a.tar")), createDocker(t, filepath.Join(tmp, "d.tar"))
	desc := copyImage(t, l, "v1", a, "example.test/app:v2")
	copyImage(t, l, "v1", d, "app:v2")

	cs, images := imported(t, filepath.Join(tmp, "a.tar"))
	if got := images["example.test/app:v2"]; got.Digest != desc.Digest {
		t.Errorf("it is %v", images)
	}
	for _, desc := range checkAll(t, l, desc) {
		if _, err := content.ReadBlob(t.Context(), cs, desc); err != nil {
			t.Error(err)
		}
	}

	cs, images = imported(t, filepath.Join(tmp, "d.tar"))
	got := images["docker.io/library/app:v2"]
	var m ocispec.Manifest
	if err := json.Unmarshal(must(content.ReadBlob(t.Context(), cs, got)), &m); err != nil {
		t.Fatal(err)
	}
	for i, id := range diffIDs(t, l, desc) {
		if len(m.Layers) != 2 || m.Layers[i].Digest != id {
			t.Errorf("its layers are %v", m.Layers)
		}
	}
}

// What containerd exports, and Docker with its store, is a docker-archive and an
// oci-archive in one.
func TestContainerdExports(t *testing.T) {
	t.Parallel()
	l, dir := writeLayout(t, testimage.Spec{Platforms: []string{"linux/amd64", "linux/arm64"}}, "v1")
	cs := must(local.NewStore(dir))
	path := filepath.Join(t.TempDir(), "a.tar")
	f := must(os.Create(path))
	index := must(l.Resolve(t.Context(), "v1"))
	index.Annotations = nil
	err := ctrarchive.Export(t.Context(), cs, f, ctrarchive.WithAllPlatforms(), ctrarchive.WithPlatform(platforms.Only(platforms.MustParse("linux/arm64"))),
		ctrarchive.WithManifest(index, "example.test/app:v1", "docker.io/library/other:v1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	a := open(t, path)
	for _, name := range []string{"example.test/app:v1", "docker.io/library/other:v1", "v1", ""} {
		got, err := a.Resolve(t.Context(), name)
		// It is the same image, under whichever name.
		if err != nil || got.Digest != index.Digest {
			t.Errorf("%q: %v, %v", name, got.Digest, err)
		}
	}
	checkAll(t, a, index)
	d := must(archive.OpenDocker(path))
	defer d.Close()
	list := readDoc[ocispec.Index](t, l, index)
	for _, name := range []string{"example.test/app:v1", "other:v1", ""} {
		desc, err := d.Resolve(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(readDoc[ocispec.Manifest](t, l, list.Manifests[1]).Layers, readDoc[ocispec.Manifest](t, d, desc).Layers); diff != "" {
			t.Error(diff)
		}
		checkAll(t, d, desc)
	}
}
