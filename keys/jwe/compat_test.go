package jwe_test

import (
	"bytes"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"testing"

	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/config"
	"github.com/go-jose/go-jose/v4"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
	"imgcrypt/layer"
)

// Everything here has ocicrypt, as skopeo and CRI-O use it, on the other side.

const plaintext = "the layer's content"

// ocicryptKeys are the public and private half of a key in a format that ocicrypt reads.
func ocicryptKeys(t testing.TB, key crypto.Signer, format string) (public, private []byte) {
	t.Helper()
	private, public = pemOf(t, key)
	if format == "PEM" {
		return public, private
	}
	jwk := func(k any, kid, alg string) []byte {
		data, err := json.Marshal(jose.JSONWebKey{Key: k, KeyID: kid, Algorithm: alg})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	if format == "JWK with kid" {
		return jwk(key.Public(), "own name", string(defaultAlg(key))), jwk(key, "own name", "")
	}
	// Without an alg ocicrypt takes RSA-OAEP for every JWK, which only fits RSA.
	return jwk(key.Public(), "", string(defaultAlg(key))), jwk(key, "", "")
}

func ocicryptEncrypt(t testing.TB, publics ...[]byte) ([]byte, ocispec.Descriptor) {
	t.Helper()
	cc, err := config.EncryptWithJwe(publics)
	if err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{Digest: digest.FromString(plaintext), Size: int64(len(plaintext))}
	r, finish, err := ocicrypt.EncryptLayer(cc.EncryptConfig, bytes.NewReader([]byte(plaintext)), desc)
	if err != nil {
		t.Fatal(err)
	}
	ciphertext, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	annotations, err := finish()
	if err != nil {
		t.Fatal(err)
	}
	desc.Annotations = annotations
	return ciphertext, desc
}

func ocicryptDecrypt(ciphertext []byte, desc ocispec.Descriptor, private []byte) (string, error) {
	cc, err := config.DecryptWithPrivKeys([][]byte{private}, [][]byte{nil})
	if err != nil {
		return "", err
	}
	r, _, err := ocicrypt.DecryptLayer(cc.DecryptConfig, bytes.NewReader(ciphertext), desc, false)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(r)
	return string(data), err
}

func formats() []string { return []string{"PEM", "JWK", "JWK with kid"} }

func TestOpensWhatOcicryptWrapped(t *testing.T) {
	t.Parallel()
	for _, format := range formats() {
		var publics [][]byte
		for _, p := range pairs()[:len(pairs())-1] {
			public, _ := ocicryptKeys(t, p.private, format)
			publics = append(publics, public)
		}
		for _, p := range pairs() {
			public, private := ocicryptKeys(t, p.private, format)
			id, err := jwe.Scheme().Identity(keys.Key{Label: p.name, Data: private})
			if err != nil {
				t.Fatal(err)
			}
			_, alone := ocicryptEncrypt(t, public)
			_, together := ocicryptEncrypt(t, publics...)
			inTurn := together
			inTurn.Annotations = maps.Clone(alone.Annotations)
			name := layer.KeysAnnotationPrefix + "jwe"
			inTurn.Annotations[name] = together.Annotations[name] + "," + alone.Annotations[name]
			last := p.name == pairs()[len(pairs())-1].name
			for kind, desc := range map[string]ocispec.Descriptor{"alone": alone, "together": together, "in turn": inTurn} {
				secret, err := keys.Open(t.Context(), []keys.Identity{id}, desc.Annotations)
				if last && kind == "together" {
					if !errors.Is(err, keys.ErrNoKey) {
						t.Errorf("%s %s %s: opened for a stranger: %v", format, p.name, kind, err)
					}
					continue
				}
				if err != nil || secret.Digest != digest.FromString(plaintext) {
					t.Errorf("%s %s %s: %v", format, p.name, kind, err)
				}
			}
		}
	}
}

// What is wrapped here is put beside ocicrypt's ciphertext, whose secret is known
// from opening it.
func TestOcicryptOpensWhatIsWrappedHere(t *testing.T) {
	t.Parallel()
	seedPublic, seedPrivate := ocicryptKeys(t, find("rsa"), "PEM")
	seed, err := jwe.Scheme().Identity(keys.Key{Data: seedPrivate})
	if err != nil {
		t.Fatal(err)
	}
	ciphertext, desc := ocicryptEncrypt(t, seedPublic)
	secret, err := keys.Open(t.Context(), []keys.Identity{seed}, desc.Annotations)
	if err != nil {
		t.Fatal(err)
	}
	data, err := layer.MarshalSecret(secret)
	if err != nil {
		t.Fatal(err)
	}
	name := layer.KeysAnnotationPrefix + "jwe"
	for _, format := range formats() {
		all := ""
		for _, p := range pairs() {
			public, _ := ocicryptKeys(t, p.private, format)
			r, err := jwe.Scheme().Recipients(t.Context(), keys.Parameters{"pubkeys": {public}})
			if err != nil {
				t.Fatal(err)
			}
			all = layer.AddPacket(all, wrap(t, r[0], string(data)))
		}
		ours := desc
		ours.Annotations = maps.Clone(desc.Annotations)
		ours.Annotations[name] = all
		for _, p := range pairs() {
			_, private := ocicryptKeys(t, p.private, format)
			if got, err := ocicryptDecrypt(ciphertext, ours, private); err != nil || got != plaintext {
				t.Errorf("%s %s: %q, %v", format, p.name, got, err)
			}
			// ocicrypt adds a recipient to what was wrapped here.
			if err := ocicryptAdds(ciphertext, ours, private, seedPublic, seedPrivate); err != nil {
				t.Errorf("%s %s: adding: %v", format, p.name, err)
			}
		}
	}
}

func ocicryptAdds(ciphertext []byte, desc ocispec.Descriptor, private, newPublic, newPrivate []byte) error {
	cc, err := config.EncryptWithJwe([][]byte{newPublic})
	if err != nil {
		return err
	}
	dc, err := config.DecryptWithPrivKeys([][]byte{private}, [][]byte{nil})
	if err != nil {
		return err
	}
	cc.EncryptConfig.DecryptConfig = *dc.DecryptConfig
	_, finish, err := ocicrypt.EncryptLayer(cc.EncryptConfig, bytes.NewReader(ciphertext), desc)
	if err != nil {
		return err
	}
	if desc.Annotations, err = finish(); err != nil {
		return err
	}
	got, err := ocicryptDecrypt(ciphertext, desc, newPrivate)
	if err == nil && got != plaintext {
		err = fmt.Errorf("got %q", got)
	}
	return err
}
