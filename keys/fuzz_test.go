package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// fixedKey is the same in every run, so that what the fuzzer found stays found.
func fixedKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), append(make([]byte, 31), 7))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// encryptCBC pads and encrypts with the password "pw".
func encryptCBC(t testing.TB, derive func([]byte) ([]byte, error), iv, plain []byte) []byte {
	t.Helper()
	key, err := derive([]byte("pw"))
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	n := aes.BlockSize - len(plain)%aes.BlockSize
	data := append([]byte{}, plain...)
	for range n {
		data = append(data, byte(n))
	}
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(data, data)
	return data
}

// seeds are small files of every format.
func seeds(f *testing.F) [][]byte {
	f.Helper()
	must := func(data []byte, err error) []byte {
		if err != nil {
			f.Fatal(err)
		}
		return data
	}
	key := fixedKey(f)
	pkcs8 := must(x509.MarshalPKCS8PrivateKey(key))
	sec1 := must(x509.MarshalECPrivateKey(key))
	pkix := must(x509.MarshalPKIXPublicKey(key.Public()))
	var all [][]byte
	add := func(label string, der []byte) {
		all = append(all, der, pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}))
	}
	add("PRIVATE KEY", pkcs8)
	add("EC PRIVATE KEY", sec1)
	add("PUBLIC KEY", pkix)
	for _, kdf := range []struct {
		oid    asn1.ObjectIdentifier
		params any
	}{
		{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}, pbkdf2Params{Salt: []byte("salt"), Iterations: 1, PRF: algorithmID(f, asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}, 0)}},
		{asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}, scryptParams{Salt: []byte("salt"), N: 2, R: 1, P: 1}},
	} {
		id := algorithmID(f, kdf.oid, kdf.params)
		iv := make([]byte, 16)
		derive, err := parseKDF(id, 16)
		if err != nil {
			f.Fatal(err)
		}
		add("ENCRYPTED PRIVATE KEY", encryptedWith(f, id, algorithmID(f, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}, iv), encryptCBC(f, derive, iv, pkcs8)))
	}
	all = append(all,
		[]byte("-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00112233445566778899AABBCCDDEEFF\n\nAAAAAAAAAAAAAAAAAAAAAA==\n-----END EC PRIVATE KEY-----\n"),
		must(jose.JSONWebKey{Key: key}.MarshalJSON()),
		must(jose.JSONWebKey{Key: key.Public(), Algorithm: "ECDH-ES+A128KW"}.MarshalJSON()),
		[]byte(`{"kty":"RSA","n":"AQAB","e":"AQAB"}`),
		[]byte(`{"kty":"RSA","n":"AQAB","e":"AQAB","d":"Aw","p":"Aw","q":"BQ"}`),
	)
	all = append(all, append(append([]byte{}, all[1]...), all[5]...))
	return all
}

// expensive keeps the fuzzer from waiting for derivations that are merely slow.
func expensive(data []byte) bool {
	for _, it := range items(data) {
		var info encryptedKeyInfo
		var params pbes2Params
		if it.form != formEncrypted {
			continue
		}
		if _, err := asn1.Unmarshal(it.der, &info); err != nil {
			continue
		}
		if _, err := asn1.Unmarshal(info.Algorithm.Parameters.FullBytes, &params); err != nil {
			continue
		}
		var p pbkdf2Params
		if _, err := asn1.Unmarshal(params.KDF.Parameters.FullBytes, &p); err == nil && p.Iterations > 1000 && p.Iterations <= maxPBKDF2Iterations {
			return true
		}
		var s scryptParams
		if _, err := asn1.Unmarshal(params.KDF.Parameters.FullBytes, &s); err == nil && (s.N > 64 || s.R > 8 || s.P > 8) {
			return true
		}
	}
	return false
}

func FuzzParsePrivateKey(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s, []byte("pw"))
	}
	f.Fuzz(func(t *testing.T, data, password []byte) {
		if expensive(data) {
			return
		}
		for _, pw := range [][]byte{nil, password} {
			all, err := ParsePrivateKeys(data, pw)
			if err == nil && (len(all) == 0 || all[0] == nil) {
				t.Error("neither key nor error")
			}
			if err != nil && !errors.Is(err, ErrNotKey) && !errors.Is(err, ErrPassword) {
				t.Errorf("an error of no kind: %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("two lines: %q", err)
			}
		}
	})
}

func FuzzParsePublicKey(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := ParsePublicKey(data)
		if (err == nil) != (key.Key != nil) {
			t.Errorf("key %v, error %v", key.Key, err)
		}
		if err != nil && !errors.Is(err, ErrNotKey) {
			t.Errorf("an error of no kind: %v", err)
		}
	})
}

func FuzzParseKeyArg(f *testing.F) {
	for _, s := range []string{"k", "k:pw", "k:pass=a:b", "k:file=C:\\pw", "k:fd=3", `C:\k.pem:pw`, ":", "", "C:", `C:\`, "é:\\x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		path, password, given := splitKey(s)
		back := path
		if given {
			back += ":" + password
		}
		if back != s {
			t.Errorf("%q came apart as %q and %q", s, path, password)
		}
		if !given && strings.Contains(s, ":") && !strings.HasPrefix(path[1:], ":") {
			t.Errorf("%q: no password found", s)
		}
		if strings.HasPrefix(password, "file=") || strings.HasPrefix(password, "fd=") {
			return // would read
		}
		pw, err := new(Parser).password(password)
		if err != nil || pw == nil || strings.TrimPrefix(password, "pass=") != string(pw) {
			t.Errorf("%q: password %q, %v", s, pw, err)
		}
	})
}
