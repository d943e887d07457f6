package jwe_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
	"imgcrypt/layer"
)

// pair is one key pair.
type pair struct {
	name    string
	private crypto.Signer
}

// pairs are made once, since RSA keys take long.
var pairs = sync.OnceValue(func() []pair {
	must := func(k crypto.Signer, err error) crypto.Signer {
		if err != nil {
			panic(err)
		}
		return k
	}
	ec := func(c elliptic.Curve) crypto.Signer {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		return must(k, err)
	}
	rsaKey := func() crypto.Signer {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		return must(k, err)
	}
	return []pair{{"rsa", rsaKey()}, {"rsa2", rsaKey()}, {"p256", ec(elliptic.P256())}, {"p256b", ec(elliptic.P256())}, {"p384", ec(elliptic.P384())}, {"p521", ec(elliptic.P521())}}
})

func find(name string) crypto.Signer {
	for _, p := range pairs() {
		if p.name == name {
			return p.private
		}
	}
	panic(name)
}

func newRecipient(t testing.TB, key crypto.Signer, alg string) *jwe.Recipient {
	t.Helper()
	r, err := jwe.NewRecipient(keys.PublicKey{Key: key.Public(), Algorithm: alg})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newIdentity(t testing.TB, private ...crypto.PrivateKey) *jwe.Identity {
	t.Helper()
	id, err := jwe.NewIdentity("key", private...)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func wrap(t testing.TB, r keys.Recipient, secret string) layer.Packet {
	t.Helper()
	p, err := r.Wrap(context.Background(), []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// foreign makes one JWE for several recipients, as other tools do, with kids if
// they are set.
func foreign(t testing.TB, secret string, enc jose.ContentEncryption, recipients ...jose.Recipient) layer.Packet {
	t.Helper()
	e, err := jose.NewMultiEncrypter(enc, recipients, nil)
	if err != nil {
		t.Fatal(err)
	}
	obj, err := e.Encrypt([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return layer.Packet{Scheme: "jwe", Data: []byte(obj.FullSerialize())}
}

func defaultAlg(key crypto.Signer) jose.KeyAlgorithm {
	if _, ok := key.(*rsa.PrivateKey); ok {
		return jose.RSA_OAEP
	}
	return jose.ECDH_ES_A256KW
}

// The header is what other tools see of a packet.
func TestWireFormat(t *testing.T) {
	t.Parallel()
	for _, p := range pairs() {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			r := newRecipient(t, p.private, "")
			packet := wrap(t, r, "secret")
			var raw struct {
				Protected    string
				EncryptedKey string `json:"encrypted_key"`
				IV           string
				Ciphertext   string
				Tag          string
				Unprotected  any
				Header       any
				Recipients   any
			}
			if err := json.Unmarshal(packet.Data, &raw); err != nil {
				t.Fatal(err)
			}
			text, err := base64.RawURLEncoding.DecodeString(raw.Protected)
			if err != nil {
				t.Fatal(err)
			}
			var head map[string]any
			if err := json.Unmarshal(text, &head); err != nil {
				t.Fatal(err)
			}
			delete(head, "epk")
			want := map[string]any{"alg": string(defaultAlg(p.private)), "enc": "A256GCM", "kid": r.KeyID()}
			if d := cmp.Diff(want, head); d != "" {
				t.Errorf("protected header (-want +got):\n%s", d)
			}
			if raw.EncryptedKey == "" || raw.IV == "" || raw.Ciphertext == "" || raw.Tag == "" || raw.Unprotected != nil || raw.Header != nil || raw.Recipients != nil {
				t.Errorf("not the flattened serialisation: %s", packet.Data)
			}
			if !r.Owns(packet) {
				t.Error("the recipient does not own its packet")
			}
			if got := jwe.Describe(packet); len(got) != 1 || got[0] != r.KeyID() {
				t.Errorf("described as %q, want %q", got, r.KeyID())
			}
			for _, q := range pairs() {
				got, err := newIdentity(t, q.private).Unwrap(t.Context(), []layer.Packet{{Scheme: "pgp"}, packet})
				switch {
				case q.name == p.name && (err != nil || string(got) != "secret"):
					t.Errorf("%s: %q, %v", q.name, got, err)
				case q.name != p.name && (!errors.Is(err, keys.ErrNoMatch) || got != nil):
					t.Errorf("%s opens it: %q, %v", q.name, got, err)
				}
				if newRecipient(t, q.private, "").Owns(packet) != (q.name == p.name) {
					t.Errorf("Owns of %s", q.name)
				}
			}
		})
	}
}

// The example of RFC 7638, section 3.1.
func TestThumbprint(t *testing.T) {
	t.Parallel()
	key, err := keys.ParsePublicKey([]byte(`{"kty":"RSA","e":"AQAB","alg":"RSA-OAEP","kid":"2011-04-29","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"}`))
	if err != nil {
		t.Fatal(err)
	}
	r, err := jwe.NewRecipient(key)
	if err != nil {
		t.Fatal(err)
	}
	if want := "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"; r.KeyID() != want {
		t.Errorf("got %s, want %s", r.KeyID(), want)
	}
}

func TestAlgorithmOfAJWK(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		key, alg string
		ok       bool
	}{
		{"rsa", "RSA-OAEP", true}, {"rsa", "RSA-OAEP-256", true},
		{"p256", "ECDH-ES+A128KW", true}, {"p384", "ECDH-ES+A192KW", true}, {"p521", "ECDH-ES+A256KW", true},
		{"rsa", "RSA1_5", false}, {"rsa", "RS256", false}, {"rsa", "ECDH-ES+A256KW", false},
		{"p256", "ECDH-ES", false}, {"p256", "ES256", false}, {"p256", "RSA-OAEP", false}, {"p256", "dir", false},
	} {
		t.Run(tt.key+"/"+tt.alg, func(t *testing.T) {
			t.Parallel()
			private := find(tt.key)
			data, err := json.Marshal(jose.JSONWebKey{Key: private.Public(), KeyID: "mine", Algorithm: tt.alg})
			if err != nil {
				t.Fatal(err)
			}
			all, err := jwe.Scheme().Recipients(t.Context(), keys.Parameters{"pubkeys": {data}})
			if !tt.ok {
				if !errors.Is(err, keys.ErrNotKey) || !strings.Contains(err.Error(), "pubkeys[0]: not a usable key: its alg is") || !strings.Contains(err.Error(), tt.alg) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			packet := wrap(t, all[0], "secret")
			if got := jwe.Describe(packet); got[0] != newRecipient(t, private, "").KeyID() {
				t.Errorf("the JWK's own kid is used: %q", got)
			}
			obj, err := jose.ParseEncrypted(string(packet.Data), []jose.KeyAlgorithm{jose.KeyAlgorithm(tt.alg)}, []jose.ContentEncryption{jose.A256GCM})
			if err != nil || obj.Header.Algorithm != tt.alg {
				t.Errorf("%v", err)
			}
			// As a private key neither kid nor alg matters.
			for _, alg := range []string{"", "RSA-OAEP", "ES256", "dir", "nonsense"} {
				own, err := json.Marshal(jose.JSONWebKey{Key: private, KeyID: "another", Algorithm: alg, Use: "sig"})
				if err != nil {
					t.Fatal(err)
				}
				id, err := jwe.Scheme().Identity(keys.Key{Label: "k", Data: own})
				if err != nil {
					t.Fatal(err)
				}
				if got, err := id.Unwrap(t.Context(), []layer.Packet{packet}); err != nil || string(got) != "secret" {
					t.Errorf("alg %q: %q, %v", alg, got, err)
				}
			}
		})
	}
}

// One JWE for recipients of all types opens for each, in every order, with and
// without kid, for every algorithm.
func TestSeveralRecipients(t *testing.T) {
	t.Parallel()
	algs := map[string][]jose.KeyAlgorithm{
		"rsa":  {jose.RSA_OAEP, jose.RSA_OAEP_256},
		"p256": {jose.ECDH_ES_A128KW, jose.ECDH_ES_A192KW, jose.ECDH_ES_A256KW},
		"p384": {jose.ECDH_ES_A256KW}, "p521": {jose.ECDH_ES_A256KW}, "rsa2": {jose.RSA_OAEP},
	}
	var all []jose.Recipient
	for _, p := range pairs() {
		for _, alg := range algs[p.name] {
			all = append(all, jose.Recipient{Algorithm: alg, Key: p.private.Public()})
		}
	}
	stranger := newIdentity(t, find("p256b"))
	for _, enc := range []jose.ContentEncryption{jose.A128CBC_HS256, jose.A192CBC_HS384, jose.A256CBC_HS512, jose.A128GCM, jose.A192GCM, jose.A256GCM} {
		for _, kid := range []string{"none", "thumbprint", "own"} {
			for shift := range all {
				if enc != jose.A256GCM && shift > 0 {
					break // the order has nothing to do with the content's cipher
				}
				order := slices.Concat(slices.Clone(all[shift:]), all[:shift])
				for i, r := range order {
					switch kid {
					case "thumbprint":
						sum, err := (&jose.JSONWebKey{Key: r.Key}).Thumbprint(crypto.SHA256)
						if err != nil {
							t.Fatal(err)
						}
						order[i].KeyID = base64.RawURLEncoding.EncodeToString(sum)
					case "own":
						order[i].KeyID = fmt.Sprint("key ", i)
					}
				}
				packet := foreign(t, "secret", enc, order...)
				for name := range algs {
					if got, err := newIdentity(t, find(name)).Unwrap(t.Context(), []layer.Packet{packet}); err != nil || string(got) != "secret" {
						t.Fatalf("%s, kid %s, shift %d, %s: %q, %v", enc, kid, shift, name, got, err)
					}
				}
				if _, err := stranger.Unwrap(t.Context(), []layer.Packet{packet}); !errors.Is(err, keys.ErrNoMatch) {
					t.Fatalf("stranger: %v", err)
				}
			}
		}
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	a := jose.Recipient{Algorithm: jose.ECDH_ES_A256KW, Key: find("p256").Public(), KeyID: "zz"}
	b := jose.Recipient{Algorithm: jose.RSA_OAEP, Key: find("rsa").Public()}
	c := jose.Recipient{Algorithm: jose.ECDH_ES_A256KW, Key: find("p384").Public(), KeyID: "aa"}
	odd := a
	odd.KeyID = "a, b\x1b[31m\n"
	long := a
	long.KeyID = strings.Repeat("x", 300)
	compact := func() layer.Packet {
		e, err := jose.NewEncrypter(jose.A256GCM, a, nil)
		if err != nil {
			t.Fatal(err)
		}
		obj, err := e.Encrypt([]byte("secret"))
		if err != nil {
			t.Fatal(err)
		}
		s, err := obj.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return layer.Packet{Scheme: "jwe", Data: []byte(s)}
	}()
	for _, tt := range []struct {
		name   string
		packet layer.Packet
		want   []string
	}{
		{"one", foreign(t, "s", jose.A256GCM, a), []string{"zz"}},
		{"one without", foreign(t, "s", jose.A256GCM, b), []string{"[jwe]"}},
		{"in order", foreign(t, "s", jose.A256GCM, a, b, c), []string{"zz", "[jwe]", "aa"}},
		{"odd", foreign(t, "s", jose.A256GCM, odd, b), []string{`"a, b\x1b[31m\n"`, "[jwe]"}},
		{"long", foreign(t, "s", jose.A256GCM, long), []string{`"` + strings.Repeat("x", 256) + `"`}},
		{"compact", compact, []string{"zz"}},
		{"number", layer.Packet{Data: []byte(`{"header":{"kid":1}}`)}, []string{"[jwe]"}},
		{"unprotected", layer.Packet{Data: []byte(`{"unprotected":{"kid":"u"},"header":{"kid":"h"}}`)}, []string{"u"}},
		{"garbage", layer.Packet{Data: []byte("garbage")}, []string{"[jwe]"}},
		{"half", layer.Packet{Data: []byte(`{"protected":"!"}`)}, []string{"[jwe]"}},
		{"empty", layer.Packet{}, []string{"[jwe]"}},
	} {
		if d := cmp.Diff(tt.want, jwe.Describe(tt.packet)); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
	if got, err := newIdentity(t, find("p256")).Unwrap(t.Context(), []layer.Packet{compact}); err != nil || string(got) != "secret" {
		t.Errorf("compact: %q, %v", got, err)
	}
}

// A wrong key is no match, a packet that names the key and does not open is damaged.
func TestDamage(t *testing.T) {
	t.Parallel()
	key := find("p256")
	r := newRecipient(t, key, "")
	good := wrap(t, r, "secret")
	spoil := func(p layer.Packet, member string) layer.Packet {
		var m map[string]any
		if err := json.Unmarshal(p.Data, &m); err != nil {
			t.Fatal(err)
		}
		data, err := base64.RawURLEncoding.DecodeString(m[member].(string))
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		m[member] = base64.RawURLEncoding.EncodeToString(data)
		out, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return layer.Packet{Scheme: "jwe", Data: out}
	}
	other := wrap(t, newRecipient(t, find("rsa"), ""), "other")
	id := newIdentity(t, find("p384"), key)
	for _, member := range []string{"ciphertext", "tag", "iv", "encrypted_key"} {
		bad := spoil(good, member)
		var damaged *jwe.DamagedError
		_, err := id.Unwrap(t.Context(), []layer.Packet{other, bad})
		if !errors.As(err, &damaged) || damaged.KeyID != r.KeyID() || !errors.Is(err, layer.ErrMalformed) || errors.Is(err, keys.ErrNoMatch) {
			t.Errorf("%s: %v", member, err)
		}
		if got, err := id.Unwrap(t.Context(), []layer.Packet{bad, other, good}); err != nil || string(got) != "secret" {
			t.Errorf("%s beside a good one: %q, %v", member, got, err)
		}
		if _, err := newIdentity(t, find("p256b")).Unwrap(t.Context(), []layer.Packet{bad}); !errors.Is(err, keys.ErrNoMatch) {
			t.Errorf("%s for a stranger: %v", member, err)
		}
		anonymous := spoil(foreign(t, "s", jose.A256GCM, jose.Recipient{Algorithm: jose.ECDH_ES_A256KW, Key: key.Public()}), member)
		if _, err := id.Unwrap(t.Context(), []layer.Packet{anonymous}); !errors.Is(err, keys.ErrNoMatch) {
			t.Errorf("%s without kid: %v", member, err)
		}
	}
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	id := newIdentity(t, find("p256"))
	good := wrap(t, newRecipient(t, find("p256"), ""), "secret")
	symmetric := foreign(t, "s", jose.A256GCM, jose.Recipient{Algorithm: jose.A256KW, Key: make([]byte, 32)})
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"empty":      {nil, "no JWE"},
		"text":       {[]byte("text"), "no JWE"},
		"half":       {good.Data[:len(good.Data)/2], "no JWE"},
		"no headers": {[]byte(`{}`), `not supported (alg "", enc "")`},
		"symmetric":  {symmetric.Data, `not supported (alg "A256KW", enc "A256GCM")`},
		"duplicates": {bytes.Replace(good.Data, []byte("{"), []byte(`{"iv":"",`), 1), "damaged, or of an algorithm"},
	} {
		bad := layer.Packet{Scheme: "jwe", Data: tt.data}
		_, err := id.Unwrap(t.Context(), []layer.Packet{bad})
		if !errors.Is(err, layer.ErrMalformed) || errors.Is(err, keys.ErrNoMatch) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := id.Unwrap(t.Context(), []layer.Packet{bad, good}); err != nil || string(got) != "secret" {
			t.Errorf("%s beside a good one: %q, %v", name, got, err)
		}
	}
	if _, err := id.Unwrap(t.Context(), []layer.Packet{{Scheme: "pgp", Data: []byte("x")}}); !errors.Is(err, keys.ErrNoMatch) {
		t.Errorf("other scheme: %v", err)
	}
	if _, err := id.Unwrap(t.Context(), nil); !errors.Is(err, keys.ErrNoMatch) {
		t.Errorf("no packets: %v", err)
	}
}

func TestCanceled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := newRecipient(t, find("p256"), "")
	if _, err := r.Wrap(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Wrap: %v", err)
	}
	if _, err := newIdentity(t, find("p256")).Unwrap(ctx, []layer.Packet{wrap(t, r, "s")}); !errors.Is(err, context.Canceled) {
		t.Errorf("Unwrap: %v", err)
	}
}

func TestUnusableKeys(t *testing.T) {
	t.Parallel()
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	even := *find("rsa").Public().(*rsa.PublicKey)
	even.E = 2
	for name, key := range map[string]crypto.PublicKey{"P-224": p224.Public(), "Ed25519": ed.Public(), "exponent 2": &even, "nil": nil} {
		if _, err := jwe.NewRecipient(keys.PublicKey{Key: key}); !errors.Is(err, keys.ErrNotKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := jwe.NewIdentity("k", p224, ed, nil); !errors.Is(err, keys.ErrNoMatch) {
		t.Errorf("identity: %v", err)
	}
	if id, err := jwe.NewIdentity("k", p224, find("p256")); err != nil || id.Name() != "k" {
		t.Errorf("one of two: %v", err)
	}
}

// A recipient and an identity serve many layers at the same time.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	for _, p := range pairs() {
		r, id := newRecipient(t, p.private, ""), newIdentity(t, p.private)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				secret := fmt.Sprint("secret ", i)
				packet, err := r.Wrap(t.Context(), []byte(secret))
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := id.Unwrap(t.Context(), []layer.Packet{packet}); err != nil || string(got) != secret {
					t.Errorf("%q, %v", got, err)
				}
			})
		}
		wg.Wait()
	}
}

func pemOf(t testing.TB, key crypto.Signer) (private, public []byte) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub})
}
