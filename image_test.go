package imgcrypt_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
	"imgcrypt/layer"
)

var twoPlatforms = testimage.Spec{Platforms: []string{"linux/amd64", "linux/arm64"}, Layers: testimage.Layers(3, testimage.Gzip), Docker: true, Attestations: true}

func onPlatform(arch string) func(*ocispec.Platform) bool {
	return func(p *ocispec.Platform) bool { return p != nil && p.Architecture == arch }
}

func onLayer(n int) func(imgcrypt.Layer) bool {
	return func(l imgcrypt.Layer) bool { return l.Index == n }
}

func recipients(pairs ...pair) (r []keys.Recipient) {
	for _, p := range pairs {
		r = append(r, p.recipient)
	}
	return r
}

func identities(pairs ...pair) (ids []keys.Identity) {
	for _, p := range pairs {
		ids = append(ids, p.identity)
	}
	return ids
}

// Encrypting and decrypting in parts, in any order, ends where it began.
func TestRoundTripInParts(t *testing.T) {
	t.Parallel()
	s, root := writeKind(t, twoPlatforms)
	a, b := newPair(t), newPair(t)
	var told notices
	now := root
	for _, o := range []imgcrypt.EncryptOptions{
		{Recipients: recipients(a), Select: imgcrypt.Selection{Platform: onPlatform("arm64"), Layer: onLayer(1)}},
		{Recipients: recipients(b), Select: imgcrypt.Selection{Platform: onPlatform("amd64")}},
		{Recipients: recipients(b, a), Identities: identities(b, a)},
	} {
		o.Notify = told.add
		now = encrypt(t, s, now, o).Desc
	}
	for _, sel := range []imgcrypt.Selection{
		{Platform: onPlatform("amd64"), Layer: onLayer(2)},
		{Layer: onLayer(0)},
		{Platform: onPlatform("arm64")},
	} {
		r := decrypt(t, s, now, imgcrypt.DecryptOptions{Identities: identities(a), Select: sel, Notify: told.add})
		if r.Desc.MediaType != ocispec.MediaTypeImageIndex {
			t.Errorf("%s while parts are encrypted", r.Desc.MediaType)
		}
		now = r.Desc
	}
	r := decrypt(t, s, now, imgcrypt.DecryptOptions{Identities: identities(b), Notify: told.add})
	if r.Desc.Digest != root.Digest || r.Desc.MediaType != root.MediaType {
		t.Errorf("got %+v, want %+v:\n%s", r.Desc, root, text(t, s, r.Desc))
	}
	if told.count(imgcrypt.NoticeInexact) > 0 {
		t.Errorf("said to be inexact: %v", told)
	}
}

func TestEachLayerOnce(t *testing.T) {
	t.Parallel()
	s, root := writeKind(t, twoPlatforms)
	me := newPair(t)
	r := encrypt(t, s, root, imgcrypt.EncryptOptions{Recipients: recipients(me)})
	// Two layers are in both manifests, and each manifest has one of its own.
	if r.Layers != 4 || len(s.stored()) != 4+2+1 {
		t.Errorf("%d layers encrypted, %d blobs stored, want 4 and 7", r.Layers, len(s.stored()))
	}
	reads := make(map[digest.Digest]int)
	for _, d := range s.opened() {
		reads[d]++
	}
	each(t, s, root, func(m ocispec.Manifest, _ string) {
		for _, l := range m.Layers {
			if reads[l.Digest] != 1 {
				t.Errorf("layer %s was read %d times", l.Digest, reads[l.Digest])
			}
		}
	})
}

func TestAddingRecipientsTouchesNoLayer(t *testing.T) {
	t.Parallel()
	s, root := writeKind(t, twoPlatforms)
	a, b, c := newPair(t), newPair(t), newPair(t)
	first := encrypt(t, s, root, imgcrypt.EncryptOptions{Recipients: recipients(a)}).Desc
	if _, err := imgcrypt.Encrypt(context.Background(), s, first, imgcrypt.EncryptOptions{Recipients: recipients(b), Identities: identities(c)}); !errors.Is(err, keys.ErrNoKey) {
		t.Errorf("added a recipient without a key that opens it: %v", err)
	}
	same := encrypt(t, s, first, imgcrypt.EncryptOptions{Recipients: recipients(a)})
	if same.Layers != 0 || same.Desc.Digest != first.Digest {
		t.Errorf("adding a recipient that is there changed %d layers", same.Layers)
	}
	second := encrypt(t, s, first, imgcrypt.EncryptOptions{Recipients: recipients(a, b), Identities: identities(a)}).Desc
	var before, after []digest.Digest
	each(t, s, first, func(m ocispec.Manifest, _ string) {
		for _, l := range m.Layers {
			before = append(before, l.Digest)
		}
	})
	each(t, s, second, func(m ocispec.Manifest, text string) {
		for _, l := range m.Layers {
			after = append(after, l.Digest)
			if n := strings.Count(l.Annotations["org.opencontainers.image.enc.keys.jwe"], ","); n != 1 {
				t.Errorf("layer %s has %d packets, want 2", l.Digest, n+1)
			}
		}
	})
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("layers changed:\n%s", diff)
	}
	for _, p := range []pair{a, b} {
		if got := decrypt(t, s, second, imgcrypt.DecryptOptions{Identities: identities(p)}).Desc; got.Digest != root.Digest {
			t.Errorf("decrypted to %s, want %s", got.Digest, root.Digest)
		}
	}
}

func TestNothingSelected(t *testing.T) {
	t.Parallel()
	s, root := writeKind(t, twoPlatforms)
	me := newPair(t)
	enc := encrypt(t, s, root, imgcrypt.EncryptOptions{Recipients: recipients(me)}).Desc
	for name, sel := range map[string]imgcrypt.Selection{
		"platform": {Platform: onPlatform("riscv64")},
		"layer":    {Layer: onLayer(3)},
	} {
		_, err := imgcrypt.Encrypt(context.Background(), s, root, imgcrypt.EncryptOptions{Recipients: recipients(me), Select: sel})
		if !errors.Is(err, imgcrypt.ErrNothingSelected) {
			t.Errorf("%s: Encrypt: %v", name, err)
		}
		_, err = imgcrypt.Decrypt(context.Background(), s, enc, imgcrypt.DecryptOptions{Identities: identities(me), Select: sel})
		if !errors.Is(err, imgcrypt.ErrNothingSelected) {
			t.Errorf("%s: Decrypt: %v", name, err)
		}
	}
	plain := decrypt(t, s, root, imgcrypt.DecryptOptions{Identities: identities(me)})
	if plain.Layers != 0 || plain.Desc.Digest != root.Digest {
		t.Errorf("decrypting a plain image gave %+v", plain)
	}
	if _, err := imgcrypt.Encrypt(context.Background(), s, root, imgcrypt.EncryptOptions{}); err == nil {
		t.Error("encrypted for nobody")
	}
}

// layersOf returns the layers of the manifest for arch.
func layersOf(t *testing.T, s *layoutStore, root ocispec.Descriptor, arch string) (layers []ocispec.Descriptor, manifest ocispec.Descriptor) {
	t.Helper()
	var index ocispec.Index
	if err := json.Unmarshal(text(t, s, root), &index); err != nil {
		t.Fatal(err)
	}
	for _, entry := range index.Manifests {
		if entry.Platform != nil && entry.Platform.Architecture == arch {
			each(t, s, entry, func(m ocispec.Manifest, _ string) { layers = m.Layers })
			return layers, entry
		}
	}
	t.Fatalf("no manifest for %s", arch)
	return nil, manifest
}

func TestMissingContent(t *testing.T) {
	t.Parallel()
	s, root := writeKind(t, twoPlatforms)
	me := newPair(t)
	enc := encrypt(t, s, root, imgcrypt.EncryptOptions{Recipients: recipients(me)}).Desc
	own, manifest := layersOf(t, s, root, "arm64")
	s.gone[own[2].Digest] = true

	var missing *imgcrypt.MissingError
	_, err := imgcrypt.Encrypt(context.Background(), s, root, imgcrypt.EncryptOptions{Recipients: recipients(me)})
	if !errors.As(err, &missing) || missing.Platform == nil || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("a layer is missing: %v", err)
	}
	encrypt(t, s, root, imgcrypt.EncryptOptions{Recipients: recipients(me), Select: imgcrypt.Selection{Platform: onPlatform("amd64")}})

	s.gone[manifest.Digest] = true
	if _, err = imgcrypt.Encrypt(context.Background(), s, root, imgcrypt.EncryptOptions{Recipients: recipients(me)}); !errors.Is(err, imgcrypt.ErrNotFound) {
		t.Errorf("a manifest is missing: %v", err)
	}
	var told notices
	encrypt(t, s, root, imgcrypt.EncryptOptions{Recipients: recipients(me), KeepMissing: true, Notify: told.add})
	if told.count(imgcrypt.NoticeMissing) != 1 {
		t.Errorf("nothing was said of the missing manifest: %v", told)
	}

	// An image that was pulled for one platform decrypts for that one.
	sealed, _ := layersOf(t, s, enc, "arm64")
	delete(s.blobs, sealed[2].Digest)
	if _, err := imgcrypt.Decrypt(context.Background(), s, enc, imgcrypt.DecryptOptions{Identities: identities(me)}); !errors.As(err, &missing) {
		t.Errorf("an encrypted layer is missing: %v", err)
	}
	r := decrypt(t, s, enc, imgcrypt.DecryptOptions{Identities: identities(me), KeepMissing: true})
	_, want := layersOf(t, s, root, "amd64")
	if _, got := layersOf(t, s, r.Desc, "amd64"); got.Digest != want.Digest {
		t.Errorf("manifest for amd64 is %s, want %s", got.Digest, want.Digest)
	}
	for _, l := range sealed {
		delete(s.blobs, l.Digest)
	}
	amd64, _ := layersOf(t, s, enc, "amd64")
	delete(s.blobs, amd64[2].Digest)
	if _, err := imgcrypt.Decrypt(context.Background(), s, enc, imgcrypt.DecryptOptions{Identities: identities(me), KeepMissing: true}); !errors.As(err, &missing) {
		t.Errorf("every platform is missing: %v", err)
	}
}

// tamper replaces the blob of the first layer of a single encrypted manifest, and
// recomputes every digest above it, as whoever controls a registry can.
func tamper(t *testing.T, s *layoutStore, root ocispec.Descriptor, body func([]byte) []byte, annotate func(map[string]string)) ocispec.Descriptor {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(text(t, s, root), &m); err != nil {
		t.Fatal(err)
	}
	l := m["layers"].([]any)[0].(map[string]any)
	desc := ocispec.Descriptor{Digest: digest.Digest(l["digest"].(string))}
	forged := s.put("", body(bytes.Clone(text(t, s, desc))))
	l["digest"], l["size"] = forged.Digest, forged.Size
	annotations := make(map[string]string)
	for k, v := range l["annotations"].(map[string]any) {
		annotations[k] = v.(string)
	}
	annotate(annotations)
	l["annotations"] = annotations
	manifest, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return s.put(root.MediaType, manifest)
}

func TestTamperedImages(t *testing.T) {
	t.Parallel()
	s, root := writeKind(t, testimage.Spec{Layers: []testimage.Layer{{RandomSize: 3 << 20, Compression: testimage.None}}})
	me := newPair(t)
	enc := encrypt(t, s, root, imgcrypt.EncryptOptions{Recipients: recipients(me)}).Desc
	each(t, s, enc, func(m ocispec.Manifest, _ string) {
		if err := imgcrypt.VerifyLayers(context.Background(), s, m.Layers, identities(me)); err != nil {
			t.Errorf("VerifyLayers of what is right: %v", err)
		}
	})
	same := func(b []byte) []byte { return b }
	flip := func(at func(n int) int) func([]byte) []byte {
		return func(b []byte) []byte { b[at(len(b))] ^= 1; return b }
	}
	pubopts := func(edit func(map[string]any)) func(map[string]string) {
		return func(a map[string]string) {
			data, err := base64.StdEncoding.DecodeString(a[layer.PublicAnnotation])
			var m map[string]any
			if err != nil || json.Unmarshal(data, &m) != nil {
				t.Fatal("pubopts")
			}
			edit(m)
			data, _ = json.Marshal(m)
			a[layer.PublicAnnotation] = base64.StdEncoding.EncodeToString(data)
		}
	}
	keep := func(map[string]string) {}
	for name, c := range map[string]struct {
		body     func([]byte) []byte
		annotate func(map[string]string)
		want     error
	}{
		"first byte":    {flip(func(int) int { return 0 }), keep, layer.ErrTampered},
		"middle byte":   {flip(func(n int) int { return n / 2 }), keep, layer.ErrTampered},
		"last byte":     {flip(func(n int) int { return n - 1 }), keep, layer.ErrTampered},
		"truncated":     {func(b []byte) []byte { return b[:len(b)-1] }, keep, layer.ErrTampered},
		"empty":         {func(b []byte) []byte { return nil }, keep, layer.ErrTampered},
		"extended":      {func(b []byte) []byte { return append(b, 0) }, keep, layer.ErrTampered},
		"mac altered":   {same, pubopts(func(m map[string]any) { m["hmac"] = bytes.Repeat([]byte{1}, 32) }), layer.ErrTampered},
		"mac short":     {same, pubopts(func(m map[string]any) { m["hmac"] = []byte{1, 2} }), layer.ErrTampered},
		"mac missing":   {same, pubopts(func(m map[string]any) { delete(m, "hmac") }), layer.ErrTampered},
		"no pubopts":    {same, func(a map[string]string) { delete(a, layer.PublicAnnotation) }, layer.ErrTampered},
		"other cipher":  {same, pubopts(func(m map[string]any) { m["cipher"] = "ROT13" }), layer.ErrMalformed},
		"bad base64":    {same, func(a map[string]string) { a[layer.PublicAnnotation] = "!" }, layer.ErrMalformed},
		"not JSON":      {same, func(a map[string]string) { a[layer.PublicAnnotation] = "e30x" }, layer.ErrMalformed},
		"bad packet":    {same, func(a map[string]string) { a["org.opencontainers.image.enc.keys.jwe"] = "%%%" }, layer.ErrMalformed},
		"no packet":     {same, func(a map[string]string) { delete(a, "org.opencontainers.image.enc.keys.jwe") }, layer.ErrMalformed},
		"other's layer": {same, func(a map[string]string) { a["org.opencontainers.image.enc.keys.jwe"] = "e30=" }, keys.ErrNoKey},
	} {
		t.Run(name, func(t *testing.T) {
			forged := tamper(t, s, enc, c.body, c.annotate)
			before := len(s.stored())
			_, err := imgcrypt.Decrypt(context.Background(), s, forged, imgcrypt.DecryptOptions{Identities: identities(me)})
			var le *imgcrypt.LayerError
			if !errors.Is(err, c.want) || !errors.As(err, &le) {
				t.Errorf("got %v, want %v of a layer", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			if after := len(s.stored()); after != before {
				t.Errorf("%d blobs were left behind", after-before)
			}
			each(t, s, forged, func(m ocispec.Manifest, _ string) {
				if err := imgcrypt.VerifyLayers(context.Background(), s, m.Layers, identities(me)); !errors.Is(err, c.want) || !errors.As(err, &le) {
					t.Errorf("VerifyLayers: %v, want %v of a layer", err, c.want)
				}
			})
		})
	}
}

// A blob that is not what its descriptor says is refused before anything is stored.
func TestMismatch(t *testing.T) {
	t.Parallel()
	s, root := writeKind(t, testimage.Spec{})
	me := newPair(t)
	var m ocispec.Manifest
	if err := json.Unmarshal(text(t, s, root), &m); err != nil {
		t.Fatal(err)
	}
	s.blobs[m.Layers[0].Digest] = []byte("something else")
	_, err := imgcrypt.Encrypt(context.Background(), s, root, imgcrypt.EncryptOptions{Recipients: recipients(me)})
	if !errors.Is(err, imgcrypt.ErrMismatch) || len(s.stored()) != 1 {
		t.Errorf("encrypting another layer: %v; stored %v", err, s.stored())
	}
	s.blobs[root.Digest] = append(text(t, s, root), ' ')
	if _, err := imgcrypt.Encrypt(context.Background(), s, root, imgcrypt.EncryptOptions{Recipients: recipients(me)}); !errors.Is(err, imgcrypt.ErrMismatch) {
		t.Errorf("a manifest with a blank at its end: %v", err)
	}
}

func TestMalformedManifests(t *testing.T) {
	t.Parallel()
	me := newPair(t)
	const l = `{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}`
	for name, c := range map[string]struct{ mediaType, text string }{
		"not JSON":         {ocispec.MediaTypeImageManifest, `{`},
		"an array":         {ocispec.MediaTypeImageManifest, `[]`},
		"both":             {ocispec.MediaTypeImageManifest, `{"layers":[` + l + `],"manifests":[]}`},
		"both, index":      {ocispec.MediaTypeImageIndex, `{"layers":[` + l + `],"manifests":[]}`},
		"other type":       {ocispec.MediaTypeImageManifest, `{"mediaType":"application/vnd.oci.image.index.v1+json"}`},
		"layers twice":     {ocispec.MediaTypeImageManifest, `{"layers":[` + l + `],"Layers":[]}`},
		"annotation twice": {ocispec.MediaTypeImageManifest, `{"layers":[{"annotations":{},"annotations":{}}]}`},
		"layers no array":  {ocispec.MediaTypeImageManifest, `{"layers":{}}`},
		"layer no object":  {ocispec.MediaTypeImageManifest, `{"layers":[1]}`},
		"size no number":   {ocispec.MediaTypeImageManifest, `{"layers":[{"size":"1"}]}`},
		"negative size":    {ocispec.MediaTypeImageManifest, strings.Replace(`{"layers":[`+l+`]}`, `"size":0`, `"size":-1`, 1)},
		"bad digest":       {ocispec.MediaTypeImageManifest, `{"layers":[{"mediaType":"a/b","digest":"sha256:../../etc","size":1}]}`},
		"no layer type":    {ocispec.MediaTypeImageManifest, strings.Replace(`{"layers":[`+l+`]}`, `"mediaType"`, `"mediatyp"`, 1)},
		"leftover":         {ocispec.MediaTypeImageManifest, `{"layers":[` + strings.Replace(l, `"size":0`, `"size":0,"annotations":{"org.opencontainers.image.enc.keys.jwe":"x"}`, 1) + `]}`},
		"schema 1":         {"application/vnd.docker.distribution.manifest.v1+prettyjws", `{}`},
		"unknown type":     {"text/plain", `{}`},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t.TempDir())
			s.put("", nil)
			root := s.put(c.mediaType, []byte(c.text))
			_, err := imgcrypt.Encrypt(context.Background(), s, root, imgcrypt.EncryptOptions{Recipients: recipients(me)})
			if !errors.Is(err, imgcrypt.ErrManifest) {
				t.Errorf("Encrypt: %v", err)
			}
			if name != "no layer type" && name != "leftover" && name != "bad digest" && name != "negative size" {
				if err := imgcrypt.Authorize(context.Background(), s, root, imgcrypt.AuthorizeOptions{}); !errors.Is(err, imgcrypt.ErrManifest) {
					t.Errorf("Authorize: %v", err)
				}
			}
		})
	}
	s := newStore(t.TempDir())
	huge := s.put(ocispec.MediaTypeImageManifest, bytes.Repeat([]byte{' '}, 50<<20))
	if _, err := imgcrypt.Encrypt(context.Background(), s, huge, imgcrypt.EncryptOptions{Recipients: recipients(me)}); !errors.Is(err, imgcrypt.ErrManifest) || len(s.opened()) != 0 {
		t.Errorf("a manifest of 50 MiB: %v; read %v", err, s.opened())
	}
	deep := s.put(ocispec.MediaTypeImageIndex, []byte(`{"manifests":[]}`))
	for range 20 {
		text, _ := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{deep}})
		deep = s.put(ocispec.MediaTypeImageIndex, text)
	}
	if _, err := imgcrypt.Encrypt(context.Background(), s, deep, imgcrypt.EncryptOptions{Recipients: recipients(me)}); !errors.Is(err, imgcrypt.ErrManifest) {
		t.Errorf("indexes nested 20 deep: %v", err)
	}
}

func TestAuthorize(t *testing.T) {
	t.Parallel()
	s, root := writeKind(t, twoPlatforms)
	a, b := newPair(t), newPair(t)
	ctx := context.Background()
	if err := imgcrypt.Authorize(ctx, s, root, imgcrypt.AuthorizeOptions{}); err != nil {
		t.Errorf("a plain image: %v", err)
	}
	// The first layer is for a, the second for b alone.
	enc := encrypt(t, s, root, imgcrypt.EncryptOptions{Recipients: recipients(a, b), Select: imgcrypt.Selection{Layer: onLayer(0)}}).Desc
	enc = encrypt(t, s, enc, imgcrypt.EncryptOptions{Recipients: recipients(b), Select: imgcrypt.Selection{Layer: onLayer(1)}}).Desc
	var le *imgcrypt.LayerError
	if err := imgcrypt.Authorize(ctx, s, enc, imgcrypt.AuthorizeOptions{Identities: identities(a)}); !errors.Is(err, keys.ErrNoKey) || !errors.As(err, &le) || le.Index != 1 {
		t.Errorf("with a key that opens the first layer alone: %v", err)
	}
	if err := imgcrypt.Authorize(ctx, s, enc, imgcrypt.AuthorizeOptions{}); !errors.Is(err, keys.ErrNoKey) {
		t.Errorf("without a key: %v", err)
	}
	if err := imgcrypt.Authorize(ctx, s, enc, imgcrypt.AuthorizeOptions{Identities: identities(b)}); err != nil {
		t.Errorf("with the key of every layer: %v", err)
	}
	if err := imgcrypt.Authorize(ctx, s, enc, imgcrypt.AuthorizeOptions{Identities: identities(b), Platform: onPlatform("riscv64")}); !errors.Is(err, imgcrypt.ErrNothingSelected) {
		t.Errorf("a platform that is not there: %v", err)
	}
	_, manifest := layersOf(t, s, enc, "arm64")
	delete(s.blobs, manifest.Digest)
	if err := imgcrypt.Authorize(ctx, s, enc, imgcrypt.AuthorizeOptions{Identities: identities(b)}); !errors.Is(err, imgcrypt.ErrNotFound) {
		t.Errorf("a manifest is missing: %v", err)
	}
	if err := imgcrypt.Authorize(ctx, s, enc, imgcrypt.AuthorizeOptions{Identities: identities(b), Platform: onPlatform("amd64")}); err != nil {
		t.Errorf("the manifest of another platform is missing: %v", err)
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	s, root := writeKind(t, twoPlatforms)
	me := newPair(t)
	enc := encrypt(t, s, root, imgcrypt.EncryptOptions{Recipients: recipients(me), Select: imgcrypt.Selection{Layer: onLayer(1)}}).Desc
	_, manifest := layersOf(t, s, enc, "arm64")
	delete(s.blobs, manifest.Digest)
	before := len(s.opened())
	img, err := imgcrypt.Inspect(context.Background(), s, enc, imgcrypt.InspectOptions{Schemes: []keys.Scheme{jwe.Scheme()}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range img.Manifests {
		line := fmt.Sprintf("%s missing=%v attestation=%v", m.Platform.Architecture, m.Missing, m.Attestation)
		for _, l := range m.Layers {
			line += fmt.Sprintf(" %v%v%d", l.Encrypted, l.Schemes, len(l.Recipients))
		}
		got = append(got, line)
	}
	want := []string{
		"amd64 missing=false attestation=false false[]0 true[jwe]1 false[]0",
		"arm64 missing=true attestation=false",
		"unknown missing=false attestation=true false[]0",
		"unknown missing=false attestation=true false[]0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	layers, _ := layersOf(t, s, enc, "amd64")
	for _, d := range s.opened()[before:] {
		for _, l := range layers {
			if d == l.Digest {
				t.Errorf("layer %s was read", d)
			}
		}
	}
}

// What another tool has written anew decrypts, and is said to be inexact.
func TestRewrittenByAnotherTool(t *testing.T) {
	t.Parallel()
	for _, spec := range []testimage.Spec{{}, {Docker: true, InlineData: true}} {
		s, root := writeKind(t, spec)
		me := newPair(t)
		enc := encrypt(t, s, root, imgcrypt.EncryptOptions{Recipients: recipients(me)}).Desc
		var m map[string]any
		if err := json.Unmarshal(text(t, s, enc), &m); err != nil {
			t.Fatal(err)
		}
		again, err := json.MarshalIndent(m, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		var told notices
		r := decrypt(t, s, s.put(enc.MediaType, again), imgcrypt.DecryptOptions{Identities: identities(me), Notify: told.add})
		if told.count(imgcrypt.NoticeInexact) != 1 {
			t.Errorf("not said to be inexact: %v", told)
		}
		if r.Desc.MediaType != root.MediaType {
			t.Errorf("media type %s, want %s", r.Desc.MediaType, root.MediaType)
		}
		var want, got map[string]any
		if json.Unmarshal(text(t, s, root), &want) != nil || json.Unmarshal(text(t, s, r.Desc), &got) != nil {
			t.Fatal("not JSON")
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

// Keys that are there twice are settled, never a place for what was hidden.
func TestDuplicateMembers(t *testing.T) {
	t.Parallel()
	twice := func(manifest []byte) []byte {
		for _, name := range []string{"mediaType", "digest", "size"} {
			at := bytes.LastIndex(manifest, []byte(`"`+name+`":`))
			end := at + bytes.IndexAny(manifest[at:], ",}")
			manifest = bytes.Join([][]byte{manifest[:at], manifest[at:end], []byte(","), manifest[at:]}, nil)
		}
		return manifest
	}
	s, root := writeKind(t, testimage.Spec{EditManifest: twice})
	me := newPair(t)
	var told notices
	enc := encrypt(t, s, root, imgcrypt.EncryptOptions{Recipients: recipients(me), Notify: told.add}).Desc
	if told.count(imgcrypt.NoticeInexact) != 1 {
		t.Errorf("not said to be inexact: %v", told)
	}
	each(t, s, root, func(m ocispec.Manifest, _ string) {
		if strings.Contains(string(text(t, s, enc)), m.Layers[0].Digest.String()) {
			t.Errorf("the plain layer's digest is left: %s", text(t, s, enc))
		}
	})
	decrypt(t, s, enc, imgcrypt.DecryptOptions{Identities: identities(me)})
}

func TestPutFails(t *testing.T) {
	t.Parallel()
	s, root := writeKind(t, testimage.Spec{})
	full := errors.New("no space left on device")
	for _, mediaType := range []string{ocispec.MediaTypeImageLayerGzip + "+encrypted", ocispec.MediaTypeImageManifest} {
		s.fault = func(want ocispec.Descriptor) error {
			if want.MediaType == mediaType {
				return full
			}
			return nil
		}
		if _, err := imgcrypt.Encrypt(context.Background(), s, root, imgcrypt.EncryptOptions{Recipients: recipients(newPair(t))}); !errors.Is(err, full) {
			t.Errorf("%s: %v", mediaType, err)
		}
	}
}

// An artifact whose manifest has no config, and layers of a type of their own.
func TestArtifact(t *testing.T) {
	t.Parallel()
	s := newStore(t.TempDir())
	l := s.put("application/vnd.example.model", []byte("weights"))
	text, err := json.Marshal(map[string]any{
		"mediaType": ocispec.MediaTypeImageManifest, "artifactType": "application/vnd.example", "layers": []ocispec.Descriptor{l},
	})
	if err != nil {
		t.Fatal(err)
	}
	root := s.put(ocispec.MediaTypeImageManifest, text)
	me := newPair(t)
	enc := encrypt(t, s, root, imgcrypt.EncryptOptions{Recipients: recipients(me)}).Desc
	each(t, s, enc, func(m ocispec.Manifest, _ string) {
		if m.Layers[0].MediaType != "application/vnd.example.model+encrypted" || m.ArtifactType != "application/vnd.example" {
			t.Errorf("%+v", m)
		}
	})
	if refs := s.refs[enc.Digest]; len(refs) != 1 || refs[0].Digest == l.Digest {
		t.Errorf("refs %v", refs)
	}
	if got := decrypt(t, s, enc, imgcrypt.DecryptOptions{Identities: identities(me)}).Desc; got.Digest != root.Digest {
		t.Errorf("decrypted to %s, want %s", got.Digest, root.Digest)
	}
}
