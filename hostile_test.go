package imgcrypt_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testimage"
	"imgcrypt/layer"
)

// everything calls all that reads an image, and returns the errors by name.
func everything(s imgcrypt.Store, root ocispec.Descriptor, me pair) map[string]error {
	ctx := context.Background()
	_, inspect := imgcrypt.Inspect(ctx, s, root, imgcrypt.InspectOptions{})
	_, encrypt := imgcrypt.Encrypt(ctx, s, root, imgcrypt.EncryptOptions{Recipients: recipients(me), KeepMissing: true})
	_, decrypt := imgcrypt.Decrypt(ctx, s, root, imgcrypt.DecryptOptions{Identities: identities(me), KeepMissing: true})
	return map[string]error{
		"Inspect":   inspect,
		"Authorize": imgcrypt.Authorize(ctx, s, root, imgcrypt.AuthorizeOptions{}),
		"Encrypt":   encrypt,
		"Decrypt":   decrypt,
	}
}

// Seven indexes that each name the one below a hundred times are a hundred million
// million manifests.
func TestIndexBomb(t *testing.T) {
	t.Parallel()
	s, me := newStore(t.TempDir()), newPair(t)
	for name, leaf := range map[string]ocispec.Descriptor{
		"manifests": s.put(ocispec.MediaTypeImageManifest, []byte(`{"layers":[]}`)),
		"large":     s.put(ocispec.MediaTypeImageManifest, []byte(`{"layers":[],"x":"`+strings.Repeat("x", 3<<20)+`"}`)),
		"nothing":   s.put(ocispec.MediaTypeImageIndex, []byte(`{}`)),
		"missing":   {MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest("sha256:" + zeros), Size: 2},
	} {
		root := leaf
		for range 7 {
			entries := make([]ocispec.Descriptor, 100)
			for i := range entries {
				entries[i] = root
			}
			text, err := json.Marshal(ocispec.Index{Manifests: entries})
			if err != nil {
				t.Fatal(err)
			}
			root = s.put(ocispec.MediaTypeImageIndex, text)
		}
		for verb, err := range everything(s, root, me) {
			if !errors.Is(err, imgcrypt.ErrManifest) && !errors.Is(err, imgcrypt.ErrNotFound) {
				t.Errorf("%s: %s: %v", name, verb, err)
			}
		}
	}
}

var zeros = strings.Repeat("0", 64)

func TestManyLayers(t *testing.T) {
	t.Parallel()
	s, me := newStore(t.TempDir()), newPair(t)
	root := s.put(ocispec.MediaTypeImageManifest, []byte(`{"layers":[{}`+strings.Repeat(",{}", 1<<16)+`]}`))
	for verb, err := range everything(s, root, me) {
		if !errors.Is(err, imgcrypt.ErrManifest) {
			t.Errorf("%s: %v", verb, err)
		}
	}
}

func TestLargestSize(t *testing.T) {
	t.Parallel()
	s, root := writeKind(t, testimage.Spec{})
	me := newPair(t)
	res, err := imgcrypt.Encrypt(context.Background(), s, root, imgcrypt.EncryptOptions{Recipients: recipients(me)})
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		Layers []struct{ Size int64 }
	}
	before := string(text(t, s, res.Desc))
	if err := json.Unmarshal([]byte(before), &m); err != nil {
		t.Fatal(err)
	}
	size := func(n int64) string { return `"size":` + strconv.FormatInt(n, 10) }
	at := strings.LastIndex(before, size(m.Layers[len(m.Layers)-1].Size))
	after := before[:at] + strings.Replace(before[at:], size(m.Layers[len(m.Layers)-1].Size), size(math.MaxInt64), 1)
	_, err = imgcrypt.Decrypt(context.Background(), s, s.put(res.Desc.MediaType, []byte(after)), imgcrypt.DecryptOptions{Identities: identities(me)})
	if !errors.Is(err, layer.ErrTampered) {
		t.Errorf("a layer of %d bytes: %v", int64(math.MaxInt64), err)
	}
}

// Errors and notices get to terminals, where what is in manifests must not do anything.
func TestUnprintable(t *testing.T) {
	t.Parallel()
	const bad = "\x1b[2J\x00\n\u202eok"
	s, me := newStore(t.TempDir()), newPair(t)
	var shown []string
	show := func(m, platform, what string) {
		root := s.put(ocispec.MediaTypeImageManifest, []byte(m))
		entry, err := json.Marshal(ocispec.Descriptor{
			MediaType: root.MediaType, Digest: root.Digest, Size: root.Size,
			Platform: &ocispec.Platform{OS: "linux" + platform, Architecture: platform, Variant: platform},
		})
		if err != nil {
			t.Fatal(err)
		}
		root = s.put(ocispec.MediaTypeImageIndex, []byte(`{"manifests":[`+string(entry)+`]}`))
		for verb, err := range everything(s, root, me) {
			if err != nil {
				shown = append(shown, verb+" "+what+": "+err.Error())
			}
		}
		_, err = imgcrypt.Encrypt(context.Background(), s, root, imgcrypt.EncryptOptions{
			Recipients: recipients(me), Select: imgcrypt.Selection{Platform: func(*ocispec.Platform) bool { return false }},
			Notify: func(n imgcrypt.Notice) { shown = append(shown, n.Text) },
		})
		if err != nil {
			shown = append(shown, err.Error())
		}
	}
	quoted, _ := json.Marshal(bad)
	value := string(quoted)
	name := strings.Trim(value, `"`)
	show(`{"layers":[{"mediaType":"x+encrypted","digest":"sha256:`+zeros+`","size":1}]}`, bad, "platform")
	show(`{"layers":[{"mediaType":"x+encrypted","digest":`+value+`,"size":1}]}`, "", "digest")
	show(`{"layers":[{"mediaType":`+strings.Replace(value, "ok", "+encrypted", 1)+`,"digest":"sha256:`+zeros+`","size":1}]}`, "", "media type")
	show(`{"layers":[{"mediaType":"x","digest":"sha256:`+zeros+`","size":1,"annotations":{"org.opencontainers.image.enc.keys.`+name+`":"!"}}]}`, "", "annotation")
	show(`{"layers":[{"mediaType":"x+encrypted","digest":"sha256:`+zeros+`","size":1,"annotations":{"org.opencontainers.image.enc.keys.`+name+`":"eHg="}}]}`, "", "scheme")
	if len(shown) < 8 {
		t.Errorf("only %d texts", len(shown))
	}
	for _, line := range shown {
		if strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q", line)
		}
		if len(line) > 2000 {
			t.Errorf("%d bytes: %.200s", len(line), line)
		}
	}
}
