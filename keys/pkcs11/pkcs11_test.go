package pkcs11_test

import (
	"context"
	"os"
	"testing"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testsofthsm"
	"imgcrypt/keys"
	"imgcrypt/keys/pkcs11"
	"imgcrypt/layer"
)

// config returns one that knows the token's module and the helper.
func config(t testing.TB, token *testsofthsm.Token) pkcs11.Config {
	t.Helper()
	testenv.Need(t, testenv.Cgo)
	return pkcs11.Config{File: token.Config, Helper: testenv.Build(t, testenv.TokenHelper)}
}

func recipient(t testing.TB, c pkcs11.Config, path string) keys.Recipient {
	t.Helper()
	r, err := pkcs11.Scheme(c).Recipient(t.Context(), path, new(keys.Files))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func identity(t testing.TB, c pkcs11.Config, path string) keys.Identity {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	id, err := pkcs11.Scheme(c).Identity(keys.Key{Label: path, Data: data})
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

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	for _, bits := range []int{2048, 3072} {
		key := token.NewKey(t, testsofthsm.Options{Bits: bits})
		for _, hash := range []string{"", "sha1", "sha256"} {
			if bits == 2048 && hash == "sha256" {
				continue
			}
			c := config(t, token)
			c.OAEPHash = hash
			id := identity(t, c, key.YAML)
			for _, path := range []string{key.PublicKey, key.YAML} {
				p := wrap(t, recipient(t, c, path), "secret")
				t.Log(string(p.Data))
				got, err := id.Unwrap(t.Context(), []layer.Packet{p})
				if err != nil || string(got) != "secret" {
					t.Errorf("%d %q %s: %q, %v", bits, hash, path, got, err)
				}
			}
		}
	}
}
