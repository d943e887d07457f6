package imgcrypt_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
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

// layerDigests returns the digests of all layers, in the image's order.
func layerDigests(t *testing.T, s *layoutStore, root ocispec.Descriptor) (all []digest.Digest) {
	t.Helper()
	each(t, s, root, func(m ocispec.Manifest, _ string) {
		for _, l := range m.Layers {
			all = append(all, l.Digest)
		}
	})
	return all
}

// opens says which of the pairs open every layer, and checks that these decrypt the
// image to plain.
func opens(t *testing.T, s *layoutStore, root, plain ocispec.Descriptor, pairs ...pair) (can []bool) {
	t.Helper()
	for _, p := range pairs {
		err := imgcrypt.Authorize(t.Context(), s, root, imgcrypt.AuthorizeOptions{Identities: identities(p)})
		if err != nil && !errors.Is(err, keys.ErrNoKey) {
			t.Fatal(err)
		}
		can = append(can, err == nil)
		if err == nil {
			if diff := cmp.Diff(plain, decrypt(t, s, root, imgcrypt.DecryptOptions{Identities: identities(p)}).Desc); diff != "" {
				t.Error(diff)
			}
		}
	}
	return can
}

func kid(t *testing.T, p pair) string {
	t.Helper()
	return p.recipient.(*jwe.Recipient).KeyID()
}

func remove(t *testing.T, names ...string) imgcrypt.RemoveOptions {
	t.Helper()
	return imgcrypt.RemoveOptions{
		Schemes: []keys.Scheme{jwe.Scheme()},
		Remove:  func(r imgcrypt.Recipient) bool { return slices.Contains(names, r.Name) },
	}
}

func TestRemoveRecipients(t *testing.T) {
	t.Parallel()
	a, b := newPair(t), newPair(t)
	s, plain := writeKind(t, twoPlatforms)
	both := encrypt(t, s, plain, imgcrypt.EncryptOptions{Recipients: append(recipients(a, b), vault{"vault"})}).Desc
	res, err := imgcrypt.RemoveRecipients(t.Context(), s, both, remove(t, kid(t, a)))
	if err != nil || res.Layers == 0 {
		t.Fatal(res.Layers, err)
	}
	if diff := cmp.Diff([]bool{false, true}, opens(t, s, res.Desc, plain, a, b)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(layerDigests(t, s, both), layerDigests(t, s, res.Desc)); diff != "" {
		t.Error(diff)
	}
	// All of a scheme: its annotation goes, too.
	res, err = imgcrypt.RemoveRecipients(t.Context(), s, both, remove(t, kid(t, a), kid(t, b)))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text(t, s, res.Desc)), "keys.jwe") {
		t.Error("the annotation of jwe is still there")
	}
	if diff := cmp.Diff(plain, decrypt(t, s, res.Desc, imgcrypt.DecryptOptions{Identities: []keys.Identity{vault{"vault"}}}).Desc); diff != "" {
		t.Error(diff)
	}
	// Nobody, and everybody.
	if res, err = imgcrypt.RemoveRecipients(t.Context(), s, both, remove(t, "nobody")); err != nil || res.Layers != 0 || res.Desc.Digest != both.Digest {
		t.Errorf("%d layers, %v", res.Layers, err)
	}
	var which *imgcrypt.LayerError
	_, err = imgcrypt.RemoveRecipients(t.Context(), s, both, remove(t, kid(t, a), kid(t, b), "[provider.vault]"))
	if !errors.Is(err, imgcrypt.ErrLastRecipient) || !errors.As(err, &which) {
		t.Errorf("got %v", err)
	}
}

// A packet that another tool made for several cannot lose one of them.
func TestRemoveFromASharedPacket(t *testing.T) {
	t.Parallel()
	a, b := newPair(t), newPair(t)
	s, plain := writeKind(t, testimage.Spec{})
	both := encrypt(t, s, plain, imgcrypt.EncryptOptions{Recipients: recipients(a, b)}).Desc
	o := remove(t, "a")
	o.Schemes = []keys.Scheme{{Name: "jwe", Describe: func(layer.Packet) []string { return []string{"a", "b"} }}}
	if _, err := imgcrypt.RemoveRecipients(t.Context(), s, both, o); !errors.Is(err, imgcrypt.ErrSharedPacket) || !strings.Contains(err.Error(), "b stays") {
		t.Errorf("got %v", err)
	}
}

func TestReplace(t *testing.T) {
	t.Parallel()
	a, b, c := newPair(t), newPair(t), newPair(t)
	s, plain := writeKind(t, twoPlatforms)
	both := encrypt(t, s, plain, imgcrypt.EncryptOptions{Recipients: recipients(a, b)}).Desc
	o := imgcrypt.EncryptOptions{Recipients: recipients(b, c), Replace: true}
	if _, err := imgcrypt.Encrypt(t.Context(), s, both, o); !errors.Is(err, keys.ErrNoKey) {
		t.Errorf("replaced without a key: %v", err)
	}
	o.Identities = identities(a)
	res := encrypt(t, s, both, o)
	if diff := cmp.Diff([]bool{false, true, true}, opens(t, s, res.Desc, plain, a, b, c)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(layerDigests(t, s, both), layerDigests(t, s, res.Desc)); diff != "" {
		t.Error(diff)
	}
}

func TestRekey(t *testing.T) {
	t.Parallel()
	a, b := newPair(t), newPair(t)
	for _, jobs := range []int{0, 4} {
		s, plain := writeKind(t, twoPlatforms)
		old := encrypt(t, s, plain, imgcrypt.EncryptOptions{Recipients: recipients(a)}).Desc
		res := encrypt(t, s, old, imgcrypt.EncryptOptions{Recipients: recipients(b), Identities: identities(a), Rekey: true, Jobs: jobs})
		if diff := cmp.Diff([]bool{false, true}, opens(t, s, res.Desc, plain, a, b)); diff != "" {
			t.Error(diff)
		}
		before := layerDigests(t, s, old)
		for _, d := range layerDigests(t, s, res.Desc) {
			if slices.Contains(before, d) {
				t.Errorf("layer %s has its old key", d)
			}
		}
	}
}

// namesake is a recipient who takes every packet of its scheme for its own.
type namesake struct{ keys.Recipient }

func (namesake) Owns(p layer.Packet) bool { return p.Scheme == "jwe" }

// Two who are called the same both get a packet.
func TestNamesakes(t *testing.T) {
	t.Parallel()
	a, b := newPair(t), newPair(t)
	s, plain := writeKind(t, testimage.Spec{})
	res := encrypt(t, s, plain, imgcrypt.EncryptOptions{Recipients: []keys.Recipient{namesake{a.recipient}, namesake{b.recipient}}})
	if diff := cmp.Diff([]bool{true, true}, opens(t, s, res.Desc, plain, a, b)); diff != "" {
		t.Error(diff)
	}
	// And who is replaced is gone, whatever its packet says.
	res = encrypt(t, s, res.Desc, imgcrypt.EncryptOptions{Recipients: []keys.Recipient{namesake{b.recipient}}, Identities: identities(a), Replace: true})
	if diff := cmp.Diff([]bool{false, true}, opens(t, s, res.Desc, plain, a, b)); diff != "" {
		t.Error(diff)
	}
}

// unreadable makes packets of a scheme whose annotation nobody would read.
type unreadable struct{ keys.Recipient }

func (unreadable) Wrap(context.Context, []byte) (layer.Packet, error) {
	return layer.Packet{Scheme: "provider.a\u00a0b", Data: []byte("x")}, nil
}

func TestUnreadablePacket(t *testing.T) {
	t.Parallel()
	s, plain := writeKind(t, testimage.Spec{})
	_, err := imgcrypt.Encrypt(t.Context(), s, plain, imgcrypt.EncryptOptions{Recipients: []keys.Recipient{unreadable{}}})
	if err == nil || !strings.Contains(err.Error(), "nobody could read the packet") {
		t.Errorf("got %v", err)
	}
}

// One blob that is a plain layer here and an encrypted one there is worked on twice.
func TestRekeyOfABlobInTwoRoles(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	s, plain := writeKind(t, testimage.Spec{})
	sealed := encrypt(t, s, plain, imgcrypt.EncryptOptions{Recipients: recipients(p)}).Desc
	var mixed ocispec.Descriptor
	each(t, s, sealed, func(m ocispec.Manifest, _ string) {
		asPlain := m
		asPlain.Layers = []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: m.Layers[0].Digest, Size: m.Layers[0].Size}}
		text := func(v any) []byte {
			data, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
		first := s.put(ocispec.MediaTypeImageManifest, text(asPlain))
		index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{first, sealed}}
		index.SchemaVersion = 2
		mixed = s.put(ocispec.MediaTypeImageIndex, text(index))
	})
	for _, jobs := range []int{0, 4} {
		res := encrypt(t, s, mixed, imgcrypt.EncryptOptions{Recipients: recipients(p), Identities: identities(p), Rekey: true, Jobs: jobs})
		var index ocispec.Index
		if err := json.Unmarshal(text(t, s, res.Desc), &index); err != nil {
			t.Fatal(err)
		}
		if back := decrypt(t, s, index.Manifests[1], imgcrypt.DecryptOptions{Identities: identities(p)}); back.Desc.Digest != plain.Digest {
			t.Errorf("jobs %d: the encrypted manifest decrypts to %s, want %s", jobs, back.Desc.Digest, plain.Digest)
		}
	}
}
