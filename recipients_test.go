package imgcrypt_test

import (
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
	o.Identities = nil
	if same := encrypt(t, s, res.Desc, o); same.Layers != 0 || same.Desc.Digest != res.Desc.Digest {
		t.Errorf("the same recipients changed %d layers", same.Layers)
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
