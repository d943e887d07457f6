package jwe_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
	"imgcrypt/layer"
)

func FuzzJWEUnwrap(f *testing.F) {
	// The same in every run, so that what the fuzzer found stays found.
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), append(make([]byte, 31), 7))
	if err != nil {
		f.Fatal(err)
	}
	r, id := newRecipient(f, key, ""), newIdentity(f, key)
	mine := jose.Recipient{Algorithm: jose.ECDH_ES_A128KW, Key: key.Public()}
	other := jose.Recipient{Algorithm: jose.RSA_OAEP, Key: find("rsa").Public(), KeyID: "other"}
	f.Add(wrap(f, r, "secret").Data)
	f.Add(foreign(f, "secret", jose.A128CBC_HS256, other, mine).Data)
	f.Add(foreign(f, "secret", jose.A256GCM, mine).Data)
	f.Add([]byte("e30.e30.e30.e30.e30"))
	f.Add([]byte(`{"protected":"e30","recipients":[{"header":{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"kty":"EC","crv":"P-256","x":"","y":""}}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := layer.Packet{Scheme: "jwe", Data: data}
		if len(jwe.Describe(p)) == 0 {
			t.Error("described as nothing")
		}
		secret, err := id.Unwrap(t.Context(), []layer.Packet{p})
		if err == nil && !bytes.Equal(secret, []byte("secret")) {
			t.Errorf("another secret: %q", secret)
		}
		if err != nil && !errors.Is(err, keys.ErrNoMatch) && !errors.Is(err, layer.ErrMalformed) {
			t.Errorf("an error of no kind: %v", err)
		}
	})
}
