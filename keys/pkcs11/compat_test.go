//go:build cgo

package pkcs11_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	ocicryptconfig "github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap"
	ocicrypt "github.com/containers/ocicrypt/keywrap/pkcs11"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testsofthsm"
	"imgcrypt/keys"
	"imgcrypt/keys/pkcs11"
	"imgcrypt/layer"
)

// Everything here has ocicrypt on the other side. It loads SoftHSM into the test's own process and sets environment
// variables, so none of these tests runs beside others.

// theirs are the parameters with which ocicrypt uses what is used here.
func theirs(t testing.TB, who any) map[string][][]byte {
	t.Helper()
	params, err := who.(keys.Portable).Parameters()
	if err != nil {
		t.Fatal(err)
	}
	return params
}

func ocicryptWraps(kw keywrap.KeyWrapper, params map[string][][]byte, secret string) (layer.Packet, error) {
	ec := &ocicryptconfig.EncryptConfig{Parameters: params, DecryptConfig: ocicryptconfig.DecryptConfig{Parameters: params}}
	data, err := kw.WrapKeys(ec, []byte(secret))
	return layer.Packet{Scheme: "pkcs11", Data: data}, err
}

// Both ways, for each hash that the key has room for, with public keys and with key files, whichever tool has made
// the key, and one recipient among others.
func TestOcicrypt(t *testing.T) {
	testenv.Need(t, "p11tool")
	token := testsofthsm.New(t)
	kw := ocicrypt.NewKeyWrapper()
	for _, c := range []struct {
		name, hash string
		key        testsofthsm.Key
		// SoftHSM knows SHA-1 only, so with anything else ocicrypt can wrap for a public key and nothing more.
		opens bool
	}{
		{"2048, pkcs11-tool", "sha1", token.Key, true},
		{"2048, p11tool", "sha1", token.NewKey(t, testsofthsm.Options{GnuTLS: true}), true},
		{"3072", "sha1", token.NewKey(t, testsofthsm.Options{Bits: 3072}), true},
		{"3072", "sha256", token.NewKey(t, testsofthsm.Options{Bits: 3072}), false},
	} {
		t.Run(c.name+" "+c.hash, func(t *testing.T) {
			t.Setenv("OCICRYPT_OAEP_HASHALG", c.hash)
			conf := hashConfig(t, token, c.hash)
			id := newIdentity(t, conf, c.key.YAML)
			strange := wrap(t, newRecipient(t, config(t, token), testsofthsm.New(t).PublicKey), "strange")
			for _, path := range []string{c.key.PublicKey, c.key.YAML} {
				r := newRecipient(t, conf, path)
				if path != c.key.YAML || c.opens {
					p, err := ocicryptWraps(kw, theirs(t, r), "theirs")
					if err != nil {
						t.Fatalf("%s: ocicrypt cannot wrap: %v", path, err)
					}
					for _, packets := range [][]layer.Packet{{p}, {strange, p}, {merge(t, strange, p)}} {
						if secret, err := id.Unwrap(t.Context(), packets); err != nil || string(secret) != "theirs" {
							t.Errorf("%s: theirs: %q, %v", path, secret, err)
						}
					}
					if got := pkcs11.Describe(p); len(got) != 1 || got[0] != "[pkcs11]" {
						t.Errorf("described as %q", got)
					}
				}
				ours := wrap(t, r, "ours")
				secret, err := kw.UnwrapKey(&ocicryptconfig.DecryptConfig{Parameters: theirs(t, id)}, ours.Data)
				if c.opens && (err != nil || string(secret) != "ours") {
					t.Errorf("%s: ours: %q, %v", path, secret, err)
				}
				if !c.opens && err == nil {
					t.Errorf("%s: SoftHSM opens %s in ocicrypt, too: say so in the documents", path, c.hash)
				}
			}
		})
	}
}

// hashConfig is config with a hash.
func hashConfig(t testing.TB, token *testsofthsm.Token, hash string) pkcs11.Config {
	c := config(t, token)
	c.OAEPHash = hash
	return c
}

// Packets from before hashes were written have none, which is SHA-1.
func TestOldPacket(t *testing.T) {
	token := testsofthsm.New(t)
	c := hashConfig(t, token, "sha1")
	p := wrap(t, newRecipient(t, c, token.PublicKey), "secret")
	p.Data = []byte(strings.Replace(string(p.Data), `,"hash":"sha1"`, "", 1))
	if secret, err := newIdentity(t, c, token.YAML).Unwrap(t.Context(), []layer.Packet{p}); err != nil || string(secret) != "secret" {
		t.Errorf("%q, %v", secret, err)
	}
	if secret, err := ocicrypt.NewKeyWrapper().UnwrapKey(&ocicryptconfig.DecryptConfig{Parameters: theirs(t, newIdentity(t, c, token.YAML))}, p.Data); err != nil || string(secret) != "secret" {
		t.Errorf("ocicrypt: %q, %v", secret, err)
	}
}

// A PIN that was given here is in what ocicrypt gets.
func TestOcicryptWithPIN(t *testing.T) {
	token := testsofthsm.New(t)
	c := hashConfig(t, token, "sha1")
	without, _, _ := strings.Cut(token.URI, "&pin-value=")
	path := token.WriteYAML(t, "without.yaml", without)
	id, err := pkcs11.Scheme(c).Identity(keys.Key{Label: path, Data: read(t, path), Password: []byte(token.PIN)})
	if err != nil {
		t.Fatal(err)
	}
	p := wrap(t, newRecipient(t, c, path), "secret")
	secret, err := ocicrypt.NewKeyWrapper().UnwrapKey(&ocicryptconfig.DecryptConfig{Parameters: theirs(t, id)}, p.Data)
	if err != nil || string(secret) != "secret" {
		t.Errorf("%q, %v", secret, err)
	}
}

// What is said of ocicrypt in docs/adr/0010: where that changes, things can be simpler here.
func TestOcicryptAsDescribed(t *testing.T) {
	t.Setenv("OCICRYPT_OAEP_HASHALG", "")
	token := testsofthsm.New(t)
	secret, err := layer.MarshalSecret(layer.Secret{Digest: "sha256:" + layerDigest})
	if err != nil {
		t.Fatal(err)
	}
	if len(secret) != 193 {
		t.Errorf("a secret has %d bytes", len(secret))
	}
	params := theirs(t, newRecipient(t, config(t, token), token.PublicKey))
	if _, err := ocicryptWraps(ocicrypt.NewKeyWrapper(), params, string(secret)); err == nil {
		t.Error("ocicrypt has room for a secret in 2048 bits with SHA-256")
	}
	// Its errors have the PIN in them, ours have not.
	bad := token.WriteYAML(t, "bad.yaml", strings.Replace(token.URI, "object=key%201", "object=nothing", 1))
	c := config(t, token)
	p := wrap(t, newRecipient(t, c, token.PublicKey), "x")
	id := newIdentity(t, c, bad)
	_, err = ocicrypt.NewKeyWrapper().UnwrapKey(&ocicryptconfig.DecryptConfig{Parameters: theirs(t, id)}, p.Data)
	if err == nil || !strings.Contains(err.Error(), token.PIN) {
		t.Errorf("ocicrypt: %v", err)
	}
	if _, err = id.Unwrap(t.Context(), []layer.Packet{p}); !errors.Is(err, keys.ErrUnreachable) || strings.Contains(fmt.Sprintf("%v %+v", err, id), token.PIN) {
		t.Errorf("here: %v", err)
	}
}
