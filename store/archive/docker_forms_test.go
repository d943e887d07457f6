package archive_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testimage"
	"imgcrypt/store"
	"imgcrypt/store/archive"
)

func gzipOf(text string) string {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	must(w.Write([]byte(text)))
	if err := w.Close(); err != nil {
		panic(err)
	}
	return buf.String()
}

func zstdOf(text string) string {
	w := must(zstd.NewWriter(nil))
	return string(w.EncodeAll([]byte(text), nil))
}

// configOf is an image config for layers with that content.
func configOf(layers ...string) string {
	ids := []digest.Digest{}
	for _, l := range layers {
		ids = append(ids, digest.FromString(l))
	}
	return string(must(json.Marshal(map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": ids}})))
}

func hexOf(text string) string { return digest.FromString(text).Encoded() }

func openDocker(t testing.TB, list ...tarFile) *archive.DockerReader {
	t.Helper()
	d, err := archive.OpenDocker(writeFile(t, tarOf(t, list...)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// The forms in which docker save and others have written over time.
func TestDockerForms(t *testing.T) {
	t.Parallel()
	config := configOf("base", "top", "base")
	oci := func(text string) string { return "blobs/sha256/" + hexOf(text) }
	plain, gz := ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip
	for name, tt := range map[string]struct {
		list  []tarFile
		types []string
		data  []string
	}{
		"Docker 1.10 to 24": {[]tarFile{
			{name: "1/layer.tar", body: "base"}, {name: "1/VERSION", body: "1.0"}, {name: "2/layer.tar", body: "top"}, {name: "3/layer.tar", link: "../1/layer.tar"},
			{name: hexOf(config) + ".json", body: config}, {name: "repositories", body: "{}"},
			{name: "manifest.json", body: `[{"Config":"` + hexOf(config) + `.json","RepoTags":["app:v1"],"Layers":["1/layer.tar","2/layer.tar","3/layer.tar"]}]`},
		}, []string{plain, plain, plain}, []string{"base", "top", "base"}},
		"Docker 25": {[]tarFile{
			{name: "blobs/", kind: '5'}, {name: oci("base"), body: "base"}, {name: oci("top"), body: "top"}, {name: oci(config), body: config},
			{name: "index.json", body: `{"schemaVersion":2,"manifests":[]}`}, {name: "oci-layout", body: layoutFile},
			{name: "manifest.json", body: `[{"Config":"` + oci(config) + `","RepoTags":null,"Layers":["` + oci("base") + `","` + oci("top") + `","` + oci("base") + `"],"LayerSources":{"x":{}}}]`},
		}, []string{plain, plain, plain}, []string{"base", "top", "base"}},
		"containerd's store": {[]tarFile{
			{name: oci(gzipOf("base")), body: gzipOf("base")}, {name: oci(zstdOf("top")), body: zstdOf("top")}, {name: oci(config), body: config},
			{name: "manifest.json", body: `[{"Config":"` + oci(config) + `","RepoTags":["app:v1"],"Layers":["` + oci(gzipOf("base")) + `","` + oci(zstdOf("top")) + `","` + oci(gzipOf("base")) + `"]}]`},
		}, []string{gz, ocispec.MediaTypeImageLayerZstd, gz}, []string{gzipOf("base"), zstdOf("top"), gzipOf("base")}},
		"go-containerregistry": {[]tarFile{
			{name: "sha256:" + hexOf(config), body: config}, {name: hexOf(gzipOf("base")) + ".tar.gz", body: gzipOf("base")}, {name: "x.tar.gz", body: gzipOf("top")},
			{name: "manifest.json", body: `[{"Config":"sha256:` + hexOf(config) + `","RepoTags":["app:v1"],"Layers":["` + hexOf(gzipOf("base")) + `.tar.gz","x.tar.gz","` + hexOf(gzipOf("base")) + `.tar.gz"]}]`},
		}, []string{gz, gz, gz}, []string{gzipOf("base"), gzipOf("top"), gzipOf("base")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := openDocker(t, tt.list...)
			desc := must(d.Resolve(t.Context(), ""))
			if again := must(d.Resolve(t.Context(), "@0")); again.Digest != desc.Digest {
				t.Error("it is another the second time")
			}
			all := checkAll(t, d, desc)
			if len(all) != 5 || desc.MediaType != ocispec.MediaTypeImageManifest {
				t.Errorf("%d blobs of %v", len(all), desc)
			}
			m := readDoc[ocispec.Manifest](t, d, desc)
			if m.Config.Digest != digest.FromString(config) || m.Config.MediaType != ocispec.MediaTypeImageConfig {
				t.Errorf("its config is %+v", m.Config)
			}
			for i, layer := range m.Layers {
				if layer.MediaType != tt.types[i] || layer.Digest != digest.FromString(tt.data[i]) || layer.Size != int64(len(tt.data[i])) {
					t.Errorf("layer %d: %+v", i, layer)
				}
				if !must(d.Has(t.Context(), layer)) {
					t.Errorf("layer %d: it says that it is not there", i)
				}
			}
		})
	}
}

func TestDockerNames(t *testing.T) {
	t.Parallel()
	one, two := configOf("1"), configOf("2")
	d := openDocker(t, tarFile{name: "1", body: "1"}, tarFile{name: "2", body: "2"}, tarFile{name: "c1", body: one}, tarFile{name: "c2", body: two},
		tarFile{name: "manifest.json", body: `[{"Config":"c1","RepoTags":["app:v1","example.test/app:latest","docker.io/library/x:1"],"Layers":["1"]},{"Config":"c2","Layers":["2"]}]`})
	first, second := must(d.Resolve(t.Context(), "@0")), must(d.Resolve(t.Context(), "@1"))
	if first.Digest == second.Digest {
		t.Error("they are the same")
	}
	for _, ref := range []string{"app:v1", "docker.io/library/app:v1", "docker.io/app:v1", "library/app:v1", "index.docker.io/library/app:v1", "example.test/app", "example.test/app:latest", "x:1"} {
		if got, err := d.Resolve(t.Context(), ref); err != nil || got.Digest != first.Digest {
			t.Errorf("%s: %v, %v", ref, got.Digest, err)
		}
	}
	for _, ref := range []string{"app", "app:v2", "other.test/app:v1", "@2", "@", "App:v1", "x:1 ", "@" + first.Digest.String()} {
		if got, err := d.Resolve(t.Context(), ref); !errors.Is(err, imgcrypt.ErrNotFound) {
			t.Errorf("%s: %v, %v", ref, got.Digest, err)
		}
	}
	_, err := d.Resolve(t.Context(), "")
	var name *archive.NameError
	if !errors.Is(err, archive.ErrAmbiguous) || !errors.As(err, &name) {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"app:v1", "example.test/app:latest", "docker.io/library/x:1", "@1"}, name.Names); diff != "" {
		t.Error(diff)
	}
	if _, err := d.Put(t.Context(), ocispec.Descriptor{}, strings.NewReader("")); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if err := d.Tag(t.Context(), "v1", first); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// What does not fit together is refused, or found out by who reads it.
func TestDockerHostile(t *testing.T) {
	t.Parallel()
	config := configOf("layer")
	item := func(config, layers string) string { return `[{"Config":"` + config + `","Layers":[` + layers + `]}]` }
	for name, tt := range map[string]struct {
		list []tarFile
		err  error
	}{
		"no config":        {[]tarFile{{name: "manifest.json", body: item("c", "")}}, imgcrypt.ErrManifest},
		"config outside":   {[]tarFile{{name: "manifest.json", body: item("../../../etc/passwd", "")}}, imgcrypt.ErrManifest},
		"config no JSON":   {[]tarFile{{name: "c", body: "x"}, {name: "manifest.json", body: item("c", "")}}, imgcrypt.ErrManifest},
		"huge config":      {[]tarFile{{name: "c", body: strings.Repeat(" ", 5<<20)}, {name: "manifest.json", body: item("c", "")}}, imgcrypt.ErrManifest},
		"forged config":    {[]tarFile{{name: hexOf("x") + ".json", body: config}, {name: "l", body: "layer"}, {name: "manifest.json", body: item(hexOf("x")+".json", `"l"`)}}, imgcrypt.ErrMismatch},
		"too few layers":   {[]tarFile{{name: "c", body: config}, {name: "manifest.json", body: item("c", "")}}, imgcrypt.ErrManifest},
		"missing layer":    {[]tarFile{{name: "c", body: config}, {name: "manifest.json", body: item("c", `"l"`)}}, imgcrypt.ErrManifest},
		"forged layer":     {[]tarFile{{name: "c", body: config}, {name: "l", body: "other"}, {name: "manifest.json", body: item("c", `"l"`)}}, imgcrypt.ErrMismatch},
		"forged blob":      {[]tarFile{{name: "c", body: config}, {name: "blobs/sha256/" + hexOf("x"), body: gzipOf("y")}, {name: "manifest.json", body: item("c", `"blobs/sha256/`+hexOf("x")+`"`)}}, imgcrypt.ErrMismatch},
		"malformed diffid": {[]tarFile{{name: "c", body: `{"rootfs":{"diff_ids":["sha256:../.."]}}`}, {name: "l"}, {name: "manifest.json", body: item("c", `"l"`)}}, imgcrypt.ErrManifest},
		"bzip2":            {[]tarFile{{name: "c", body: config}, {name: "l", body: "BZh9"}, {name: "manifest.json", body: item("c", `"l"`)}}, imgcrypt.ErrManifest},
		"null":             {[]tarFile{{name: "manifest.json", body: "null"}}, imgcrypt.ErrNotFound},
		"none":             {[]tarFile{{name: "manifest.json", body: "[]"}}, imgcrypt.ErrNotFound},
		"an empty one":     {[]tarFile{{name: "manifest.json", body: "[{}]"}}, imgcrypt.ErrManifest},
	} {
		d := openDocker(t, tt.list...)
		desc, err := d.Resolve(t.Context(), "")
		if err == nil {
			err = readError(t, d, desc)
		}
		if !errors.Is(err, tt.err) {
			t.Errorf("%s: got %v, want %v", name, err, tt.err)
		}
	}
}

// readError returns the first error of reading all of an image.
func readError(t testing.TB, s imgcrypt.Store, desc ocispec.Descriptor) error {
	t.Helper()
	r, err := s.Open(t.Context(), desc)
	if err != nil {
		return err
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil || !imgcrypt.IsManifest(desc) {
		return err
	}
	for _, ref := range must(imgcrypt.References(desc, text)) {
		if err := readError(t, s, ref); err != nil {
			return err
		}
	}
	return nil
}

// putAll copies an image without naming it.
func putAll(t testing.TB, src imgcrypt.Store, dst imgcrypt.Store, desc ocispec.Descriptor) error {
	t.Helper()
	return store.NewTransfer(src, dst, store.TransferOptions{}).Copy(t.Context(), desc)
}

func createDocker(t testing.TB, path string) *archive.DockerWriter {
	t.Helper()
	d, err := archive.CreateDocker(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// What Docker cannot load is refused, and says why.
func TestDockerRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	two := testimage.Spec{Platforms: []string{"linux/amd64", "linux/arm/v7"}, Attestations: true}
	l, _ := writeLayout(t, two, "two")
	desc := must(l.Resolve(t.Context(), "two"))
	path := filepath.Join(dir, "d.tar")
	d := createDocker(t, path)
	for mediaType, want := range map[string]error{
		ocispec.MediaTypeImageLayerGzip + "+encrypted": errors.ErrUnsupported, "application/vnd.in-toto+json": errors.ErrUnsupported, "": errors.ErrUnsupported,
	} {
		if _, err := d.Put(t.Context(), ocispec.Descriptor{MediaType: mediaType}, strings.NewReader("x")); !errors.Is(err, want) {
			t.Errorf("%s: %v", mediaType, err)
		}
	}
	// The attestations cannot be copied, the platforms not be named together.
	if err := putAll(t, l, d, desc); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	text := readDoc[json.RawMessage](t, l, desc)
	must(d.Put(t.Context(), ocispec.Descriptor{MediaType: desc.MediaType}, bytes.NewReader(text)))
	err := d.Tag(t.Context(), "app:v1", desc)
	var platforms *archive.PlatformsError
	if !errors.As(err, &platforms) || !cmp.Equal(platforms.Platforms, []string{"linux/amd64", "linux/arm/v7"}) {
		t.Errorf("%v", err)
	}
	// One of them alone, in an index with what is about it.
	index := readDoc[ocispec.Index](t, l, desc)
	index.Manifests = append(index.Manifests[:1:1], index.Manifests[2])
	text = must(json.Marshal(index))
	d = createDocker(t, path)
	single := must(d.Put(t.Context(), ocispec.Descriptor{MediaType: desc.MediaType}, bytes.NewReader(text)))
	if err := d.Tag(t.Context(), "app:v1", single); !errors.Is(err, imgcrypt.ErrNotFound) {
		t.Errorf("incomplete: %v", err)
	}
	if err := putAll(t, l, d, index.Manifests[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("it is there already")
	}
	if err := d.Tag(t.Context(), "app:v1", single); err != nil {
		t.Fatal(err)
	}
	if got := must(d.Resolve(t.Context(), "app:v1")); got.Digest != single.Digest {
		t.Errorf("it is %s", got.Digest)
	}
}

// The layers are those that the config says, or there is no archive.
func TestDockerChecksDiffIDs(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		config, layer string
		err           error
	}{
		"plain":          {configOf("layer"), "layer", nil},
		"gzip":           {configOf("layer"), gzipOf("layer"), nil},
		"gzip, in parts": {configOf("layerlayer"), gzipOf("layer") + gzipOf("layer"), nil},
		"zstd":           {configOf("layer"), zstdOf("layer"), nil},
		"zstd, in parts": {configOf("layerlayer"), zstdOf("layer") + zstdOf("layer"), nil},
		"nothing":        {configOf(""), "", nil},
		"other":          {configOf("other"), gzipOf("layer"), imgcrypt.ErrMismatch},
		"compressed":     {configOf(gzipOf("layer")), gzipOf("layer"), imgcrypt.ErrMismatch},
		"none":           {configOf(), "layer", imgcrypt.ErrManifest},
		"no config":      {"[]", "layer", imgcrypt.ErrManifest},
	} {
		path := filepath.Join(t.TempDir(), "d.tar")
		d := createDocker(t, path)
		layer := must(d.Put(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer}, strings.NewReader(tt.layer)))
		config := must(d.Put(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig}, strings.NewReader(tt.config)))
		text := must(json.Marshal(ocispec.Manifest{Config: config, Layers: []ocispec.Descriptor{layer}}))
		desc := must(d.Put(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest}, bytes.NewReader(text)))
		if err := d.Tag(t.Context(), "app", desc); !errors.Is(err, tt.err) {
			t.Errorf("%s: %v", name, err)
		}
		_, err := os.Stat(path)
		if (err == nil) != (tt.err == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			all := files(t, path)
			if all["repositories"] == "" || !strings.Contains(all["manifest.json"], `"RepoTags":["app:latest"]`) || len(all) != 4 {
				t.Errorf("%s: %q", name, all)
			}
		}
	}
}

// A layer that cannot be decompressed is not stored; if it is not the one that was
// wanted, that is the reason.
func TestDockerDamagedLayers(t *testing.T) {
	t.Parallel()
	for name, pack := range map[string]func(string) string{"gzip": gzipOf, "zstd": zstdOf} {
		whole := pack(strings.Repeat("some content of a layer", 1000))
		good := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(whole), Size: int64(len(whole))}
		d := createDocker(t, filepath.Join(t.TempDir(), "d.tar"))
		for i := range len(whole) {
			damaged := []byte(whole)
			damaged[i] ^= 0x55
			if _, err := d.Put(t.Context(), good, bytes.NewReader(damaged)); !errors.Is(err, imgcrypt.ErrMismatch) {
				t.Errorf("%s, byte %d: %v", name, i, err)
			}
		}
		for _, damaged := range []string{whole[:len(whole)/2], whole[:8], whole + "trailing bytes"} {
			if _, err := d.Put(t.Context(), ocispec.Descriptor{MediaType: good.MediaType}, strings.NewReader(damaged)); err == nil {
				t.Errorf("%s: %d of %d bytes were accepted", name, len(damaged), len(whole))
			}
		}
		must(d.Put(t.Context(), good, strings.NewReader(whole)))
	}
}

// An archive with other images is not replaced; with none that would be lost it is.
func TestDockerOthers(t *testing.T) {
	t.Parallel()
	l, dir := writeLayout(t, testimage.Spec{Salt: "first"}, "v1")
	must(testimage.Spec{Salt: "second"}.Write(dir, "v2"))
	path := filepath.Join(t.TempDir(), "d.tar")
	d := createDocker(t, path)
	copyImage(t, l, "v1", d, "app:v1")
	copyImage(t, l, "v2", d, "example.test/app:v2")
	copyImage(t, l, "v1", d, "example.test/app:v3")
	d.Close()
	check := func(want map[string]string) {
		t.Helper()
		r := must(archive.OpenDocker(path))
		defer r.Close()
		for name, ref := range want {
			desc := must(r.Resolve(t.Context(), name))
			checkAll(t, r, desc)
			if diff := cmp.Diff(diffIDs(t, l, must(l.Resolve(t.Context(), ref))), diffIDs(t, r, desc)); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	}
	check(map[string]string{"app:v1": "v1", "example.test/app:v2": "v2", "example.test/app:v3": "v1"})
	if all := files(t, path); len(all) != 6 {
		t.Errorf("%d files", len(all))
	}

	d = createDocker(t, path)
	desc := must(l.Resolve(t.Context(), "v2"))
	if err := putAll(t, l, d, desc); err != nil {
		t.Fatal(err)
	}
	err := d.Tag(t.Context(), "app:v1", desc)
	var others *archive.OthersError
	if !errors.As(err, &others) || !cmp.Equal(others.Names, []string{"example.test/app:v3", "example.test/app:v2"}) {
		t.Error(err)
	}
	check(map[string]string{"app:v1": "v1", "example.test/app:v2": "v2"})
	d.Close()
	if left := leftovers(t, path); len(left) > 0 {
		t.Error("left behind", left)
	}

	single := filepath.Join(t.TempDir(), "single.tar")
	for _, ref := range []string{"v1", "v2"} {
		for _, name := range []string{"", ""} {
			d = createDocker(t, single)
			copyImage(t, l, ref, d, name)
			d.Close()
		}
	}
	r := must(archive.OpenDocker(single))
	defer r.Close()
	if diff := cmp.Diff(diffIDs(t, l, desc), diffIDs(t, r, must(r.Resolve(t.Context(), "")))); diff != "" {
		t.Error(diff)
	}
}
