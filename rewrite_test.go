package imgcrypt

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/layer"
)

// FuzzManifest rewrites whatever parses as a manifest or an index and undoes it: no
// panic, valid JSON at each step, and what is called exact is exact.
func FuzzManifest(f *testing.F) {
	const l = `{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0`
	for _, text := range []string{
		`{"layers":[` + l + `}]}`,
		"{ \"mediaType\": \"application/vnd.docker.distribution.manifest.v2+json\" , \"config\":{\"mediaType\":\"application/vnd.docker.container.image.v1+json\"},\n\"layers\":[ " + l + ` , "annotations":null, "data" : "" } ] , "annotations": { } }`,
		`{"layers":[` + l + `,"mediaType":"x/y"}],"annotations":{"org.imgcrypt.original":"eyJ2IjoxfQ=="}}`,
		`{"layers":[{"mediaType":"a/b+encrypted"},{"mediaType":"a/b"}]}`,
		`{"manifests":[{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","digest":"sha256:00","size":1,"data":"e30="},{"annotations":{"vnd.docker.reference.digest":"sha256:00"}}]}`,
	} {
		f.Add([]byte(text), uint8(1))
	}
	f.Fuzz(func(t *testing.T, text []byte, which uint8) {
		for _, mediaType := range []string{ocispec.MediaTypeImageManifest, dockerManifest, ocispec.MediaTypeImageIndex, dockerList} {
			d, err := parseDocument(ocispec.Descriptor{MediaType: mediaType}, text)
			if err == nil {
				undo(t, d, which)
			}
		}
	})
}

func undo(t *testing.T, d *document, which uint8) {
	after, before := make(map[int]change), make(map[int]change)
	moved := make(map[digest.Digest]digest.Digest)
	for i, desc := range d.children {
		if which>>(i%8)&1 == 0 || desc.MediaType == "" || layer.IsEncrypted(desc.MediaType) {
			continue
		}
		a := change{desc: desc, data: desc.Data}
		b := change{desc: desc, data: desc.Data}
		a.desc.Digest, a.desc.Size = digest.FromString(desc.Digest.String()), desc.Size+1
		if d.index() {
			a.desc.MediaType, a.encrypted = oci(desc.MediaType), true
			moved[desc.Digest] = a.desc.Digest
		} else {
			a.desc.MediaType = layer.EncryptedMediaType(desc.MediaType)
			b.desc.MediaType = layer.OCIMediaType(desc.MediaType)
			a.annotations = map[string]string{layer.PublicAnnotation: "x", layer.KeysAnnotationPrefix + "jwe": "y"}
		}
		after[i], before[i] = a, b
	}
	if len(after) == 0 {
		return
	}
	original := bytes.Clone(d.text)
	sealed, err := seal(d, after, before, moved)
	if err != nil {
		t.Fatalf("seal: %v", err)
	}
	if !json.Valid(sealed.text) {
		t.Fatalf("sealed is %q", sealed.text)
	}
	again, err := parseDocument(ocispec.Descriptor{MediaType: sealed.mediaType}, sealed.text)
	if err != nil {
		t.Fatalf("sealed does not parse: %v: %s", err, sealed.text)
	}
	opened, err := open(again, before, inverse(moved))
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	if sealed.exact && opened.exact && !bytes.Equal(opened.text, original) {
		t.Fatalf("got  %s\nwant %s", opened.text, original)
	}
}

// Records that somebody else wrote do no harm.
func TestForgedRecords(t *testing.T) {
	t.Parallel()
	for _, record := range []string{
		"!", "e30=",
		enc64(`{"v":1,"mediaType":"\"application/vnd.evil\"","config":"\"x\""}`),
		enc64(`{"v":1,"mediaType":"{\"layers\":[]}"}`),
		enc64(`{"v":1,"children":[{"i":7}]}`),
		enc64(`{"v":1,"children":[null]}`),
		enc64(`{"v":1,"children":[{"i":0,"mediaType":"\"text/evil\""}]}`),
		enc64(`{"v":1,"children":[{"i":0,"data":{"i":0,"key":"\"digest\"","mid":":"}}]}`),
		enc64(`{"v":1,"children":[{"i":0,"data":{"i":0,"key":"\"data\"","lead":"\"evil\":1,","mid":":"}}]}`),
		enc64(`{"v":1,"children":[{"i":0,"data":{"i":99,"key":"\"data\"","mid":" : "}}]}`),
	} {
		text := `{"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[{"mediaType":"a/b+encrypted","digest":"sha256:00","size":1}],"annotations":{"org.imgcrypt.original":` + quoted(record) + `}}`
		d, err := parseDocument(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest}, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		plain := ocispec.Descriptor{MediaType: "a/b", Digest: "sha256:11", Size: 1}
		out, err := open(d, map[int]change{0: {desc: plain, data: []byte("x")}}, nil)
		if err != nil {
			t.Errorf("%s: %v", record, err)
			continue
		}
		if out.exact {
			t.Errorf("%s: called exact", record)
		}
		var m ocispec.Manifest
		if err := json.Unmarshal(out.text, &m); err != nil || len(m.Layers) != 1 {
			t.Errorf("%s: %s: %v", record, out.text, err)
			continue
		}
		got := m.Layers[0]
		if m.MediaType != ocispec.MediaTypeImageManifest || got.MediaType != plain.MediaType || got.Digest != plain.Digest || bytes.Contains(out.text, []byte("evil")) {
			t.Errorf("%s: became %s", record, out.text)
		}
	}
}

func enc64(s string) string {
	text, err := json.Marshal([]byte(s))
	if err != nil {
		panic(err)
	}
	return unquote(string(text))
}
