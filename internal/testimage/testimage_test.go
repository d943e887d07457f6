package testimage_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
)

// Every kind is consistent: each descriptor names a blob that has its digest and size, each layer unpacks to
// its diff id, and the same spec gives the same digest again.
func TestKinds(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for _, k := range testimage.Kinds() {
		if seen[k.Name] {
			t.Errorf("two kinds are called %q", k.Name)
		}
		seen[k.Name] = true
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			desc := write(t, k.Spec, dir, "v1")
			checkDocument(t, dir, desc)
			if again := write(t, k.Spec, t.TempDir(), "v1"); again.Digest != desc.Digest {
				t.Errorf("digest %s the first time, %s the second", desc.Digest, again.Digest)
			}
		})
	}
}

func write(t *testing.T, s testimage.Spec, dir, name string) ocispec.Descriptor {
	t.Helper()
	desc, err := s.Write(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	return desc
}

func blob(t *testing.T, dir string, desc ocispec.Descriptor) []byte {
	t.Helper()
	body, err := testimage.Blob(dir, desc)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(body)) != desc.Size || digest.FromBytes(body) != desc.Digest {
		t.Errorf("blob of %d bytes with digest %s, descriptor %v", len(body), digest.FromBytes(body), desc)
	}
	if desc.Data != nil && !bytes.Equal(desc.Data, body) {
		t.Errorf("descriptor %s has other data than the blob", desc.Digest)
	}
	return body
}

// checkDocument checks a manifest or index and all below it.
func checkDocument(t *testing.T, dir string, desc ocispec.Descriptor) {
	t.Helper()
	body := blob(t, dir, desc)
	var doc struct {
		MediaType string
		Config    ocispec.Descriptor
		Layers    []ocispec.Descriptor
		Manifests []ocispec.Descriptor
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	if doc.MediaType != desc.MediaType {
		t.Errorf("media type %q in a %q", doc.MediaType, desc.MediaType)
	}
	for _, m := range doc.Manifests {
		checkDocument(t, dir, m)
	}
	if doc.Manifests != nil {
		return
	}
	var config ocispec.Image
	if err := json.Unmarshal(blob(t, dir, doc.Config), &config); err != nil {
		t.Fatal(err)
	}
	var diffIDs []digest.Digest
	for _, l := range doc.Layers {
		diffIDs = append(diffIDs, digest.FromBytes(decompress(t, blob(t, dir, l))))
	}
	if diff := cmp.Diff(config.RootFS.DiffIDs, diffIDs); diff != "" {
		t.Errorf("diff ids (-config +layers):\n%s", diff)
	}
}

func decompress(t *testing.T, data []byte) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(data)
	var err error
	switch {
	case bytes.HasPrefix(data, []byte("\x1f\x8b")):
		r, err = gzip.NewReader(r)
	case bytes.HasPrefix(data, []byte("\x28\xb5\x2f\xfd")):
		r, err = zstd.NewReader(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The formats differ in bytes and not in meaning.
func TestFormats(t *testing.T) {
	t.Parallel()
	want := map[testimage.Format]string{
		testimage.Compact:  `{"schemaVersion":2,"mediaType":`,
		testimage.Indented: "{\n   \"schemaVersion\": 2,\n   \"mediaType\": ",
		testimage.Odd:      `application\/vnd.oci.image.manifest.v1+json`,
		testimage.Escaped:  `"\u0061pplication\/vnd.oci.image.manifest.v1+json`,
	}
	var first any
	bodies := make(map[string]bool)
	for format := testimage.Compact; format <= testimage.Escaped; format++ {
		dir := t.TempDir()
		body := blob(t, dir, write(t, testimage.Spec{Format: format, UnknownFields: true}, dir, "v1"))
		if !bytes.Contains(body, []byte(want[format])) {
			t.Errorf("format %d lacks %q: %s", format, want[format], body)
		}
		var doc any
		if err := json.Unmarshal(body, &doc); err != nil {
			t.Fatalf("format %d: %v", format, err)
		}
		if first == nil {
			first = doc
		}
		if diff := cmp.Diff(first, doc); diff != "" {
			t.Errorf("format %d says something else (-compact +this):\n%s", format, diff)
		}
		bodies[string(body)] = true
	}
	if len(bodies) != 4 {
		t.Errorf("%d different documents, want 4", len(bodies))
	}
}

// An index with everything has it where it belongs.
func TestIndexEntries(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	spec := testimage.Spec{
		Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true, PlatformlessEntry: true,
		Subject: &ocispec.Descriptor{MediaType: "x/y", Digest: digest.FromString("x"), Size: 1},
	}
	var index ocispec.Index
	if err := json.Unmarshal(blob(t, dir, write(t, spec, dir, "v1")), &index); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range index.Manifests {
		p := "none"
		if m.Platform != nil {
			p = m.Platform.OS + "/" + m.Platform.Architecture
		}
		if of := m.Annotations["vnd.docker.reference.digest"]; of != "" {
			i := slices.IndexFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Digest.String() == of })
			p += fmt.Sprintf(" %s of %d", m.Annotations["vnd.docker.reference.type"], i)
		}
		got = append(got, p)
	}
	want := []string{
		"linux/amd64", "linux/arm64",
		"unknown/unknown attestation-manifest of 0", "unknown/unknown attestation-manifest of 1", "none",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if index.Subject == nil || index.Subject.Digest != spec.Subject.Digest {
		t.Errorf("subject %v", index.Subject)
	}
}

// Platforms share all layers but the last; salts leave nothing in common.
func TestLayersInCommon(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	layers := func(s testimage.Spec) (all [][]ocispec.Descriptor) {
		var index ocispec.Index
		if err := json.Unmarshal(blob(t, dir, write(t, s, dir, "v1")), &index); err != nil {
			t.Fatal(err)
		}
		for _, m := range index.Manifests {
			var manifest ocispec.Manifest
			if err := json.Unmarshal(blob(t, dir, m), &manifest); err != nil {
				t.Fatal(err)
			}
			all = append(all, manifest.Layers)
		}
		return all
	}
	spec := testimage.Spec{Platforms: []string{"linux/amd64", "linux/arm64"}, Layers: testimage.Layers(3, testimage.Gzip)}
	one := layers(spec)
	for i := range 3 {
		if same := one[0][i].Digest == one[1][i].Digest; same != (i < 2) {
			t.Errorf("layer %d is the same for both platforms: %v", i, same)
		}
	}
	spec.Salt = "another"
	for i, l := range layers(spec)[0] {
		if l.Digest == one[0][i].Digest {
			t.Errorf("layer %d is the same with another salt", i)
		}
	}
}

func TestTag(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, testimage.Spec{}, dir, "v1")
	write(t, testimage.Spec{Salt: "2"}, dir, "v2")
	last := write(t, testimage.Spec{Salt: "3"}, dir, "v1")
	full := write(t, testimage.Spec{}, dir, "127.0.0.1:5000/app")
	index, err := testimage.Index(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 3 || index.Manifests[1].Digest != last.Digest {
		t.Errorf("got %v", index.Manifests)
	}
	full.Annotations = map[string]string{
		"io.containerd.image.name": "127.0.0.1:5000/app", "org.opencontainers.image.ref.name": "127.0.0.1:5000/app",
	}
	if diff := cmp.Diff(full, index.Manifests[2]); diff != "" {
		t.Error(diff)
	}
}

func TestArchive(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	desc := write(t, testimage.Spec{}, dir, "example.test/app:v1")
	var one, two bytes.Buffer
	for _, b := range []*bytes.Buffer{&one, &two} {
		if err := testimage.Archive(b, dir); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("two archives of one layout differ")
	}
	var names []string
	for r := tar.NewReader(&one); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	for _, want := range []string{"oci-layout", "index.json", "blobs/sha256/" + desc.Digest.Encoded()} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s among %q", want, names)
		}
	}
}

// Skopeo understands the layouts.
func TestSkopeoReads(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "skopeo")
	for _, index := range []bool{false, true} {
		dir := t.TempDir()
		desc := write(t, testimage.Spec{Index: index}, dir, "example.test/app:v1")
		out, err := exec.Command("skopeo", "inspect", "--raw", "oci:"+dir+":v1").Output()
		if err != nil {
			t.Fatal(err)
		}
		if digest.FromBytes(out) != desc.Digest {
			t.Errorf("skopeo reads\n%s", out)
		}
	}
}

func TestEdit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	upper := func(b []byte) []byte {
		return bytes.ReplaceAll(b, []byte(`"schemaVersion":2`), []byte(`"schemaVersion": 2`))
	}
	spec := testimage.Spec{Index: true, EditManifest: upper, EditIndex: upper}
	desc := write(t, spec, dir, "v1")
	checkDocument(t, dir, desc)
	files, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	edited := 0
	for _, f := range files {
		body, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		edited += strings.Count(string(body), `"schemaVersion": 2`)
	}
	if edited != 2 {
		t.Errorf("%d documents edited, want 2", edited)
	}
}
