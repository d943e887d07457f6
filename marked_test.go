package imgcrypt_test

import (
	"context"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
	"imgcrypt/layer"
)

// vault is a recipient whose packets tell nobody for whom they are: all that differs is
// one byte, which is for the holder of the secret text who.
type vault struct{ who string }

func (v vault) Wrap(_ context.Context, secret []byte) (layer.Packet, error) {
	return layer.Packet{Scheme: "provider.vault", Data: append([]byte{v.who[0]}, secret...)}, nil
}

func (v vault) Mark() (scheme, text string) { return "provider.vault", v.who }

func (v vault) Unwrap(_ context.Context, packets []layer.Packet) ([]byte, error) {
	for _, p := range packets {
		if p.Scheme == "provider.vault" && p.Data[0] == v.who[0] {
			return p.Data[1:], nil
		}
	}
	return nil, keys.ErrNoMatch
}

func TestMarkedRecipients(t *testing.T) {
	t.Parallel()
	s, plain := writeKind(t, testimage.Spec{Layers: testimage.Layers(2, testimage.Gzip)})
	alice, bob := vault{"alice's secret"}, vault{"bob's secret"}
	add := func(root imgcrypt.Result, recipients ...keys.Recipient) imgcrypt.Result {
		t.Helper()
		return encrypt(t, s, root.Desc, imgcrypt.EncryptOptions{Recipients: recipients, Identities: []keys.Identity{alice}})
	}
	packets := func(root imgcrypt.Result) (n int) {
		each(t, s, root.Desc, func(m ocispec.Manifest, _ string) {
			for _, l := range m.Layers {
				n += 1 + strings.Count(l.Annotations[layer.KeysAnnotationPrefix+"provider.vault"], ",")
			}
		})
		return n
	}
	first := add(imgcrypt.Result{Desc: plain}, alice, alice)
	if n := packets(first); n != 2 {
		t.Errorf("%d packets for one recipient of two layers", n)
	}
	again := add(first, alice)
	if diff := cmp.Diff(first.Desc, again.Desc); diff != "" || again.Layers != 0 {
		t.Errorf("adding who is there: %d layers, %s", again.Layers, diff)
	}
	both := add(first, alice, bob)
	if n := packets(both); n != 4 || both.Layers != 2 {
		t.Errorf("%d packets for two recipients, %d layers", n, both.Layers)
	}
	if diff := cmp.Diff(both.Desc, add(both, bob, alice).Desc); diff != "" {
		t.Error(diff)
	}
	for _, who := range []vault{alice, bob} {
		back := decrypt(t, s, both.Desc, imgcrypt.DecryptOptions{Identities: []keys.Identity{who}})
		if diff := cmp.Diff(plain, back.Desc); diff != "" {
			t.Error(diff)
		}
	}
	// Nothing in the image tells who they are.
	manifest := string(text(t, s, both.Desc))
	for _, who := range []string{alice.who, base64.StdEncoding.EncodeToString([]byte(alice.who))} {
		if strings.Contains(manifest, who) {
			t.Errorf("the manifest contains %q", who)
		}
	}
}
