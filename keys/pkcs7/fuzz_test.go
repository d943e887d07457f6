package pkcs7_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imgcrypt/keys"
	"imgcrypt/keys/pkcs7"
	"imgcrypt/layer"
)

// vectors are packets that others wrote for testdata/cert.pem, by the names of the tools.
func vectors(t testing.TB) map[string]layer.Packet {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", "*.der"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d packets, %v", len(paths), err)
	}
	all := make(map[string]layer.Packet)
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(path)] = packet(data)
	}
	return all
}

// vectorKeys are the key of testdata, alone and with its certificate.
func vectorKeys(t testing.TB) []keys.Identity {
	t.Helper()
	parser := keys.Parser{Schemes: []keys.Scheme{pkcs7.Scheme()}}
	var all []keys.Identity
	for _, recipients := range [][]string{nil, {"pkcs7:testdata/cert.pem"}} {
		ids, err := parser.Identities([]string{"testdata/key.pem"}, recipients)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ids...)
	}
	return all
}

func TestVectors(t *testing.T) {
	t.Parallel()
	for name, p := range vectors(t) {
		for i, id := range vectorKeys(t) {
			data, err := id.Unwrap(t.Context(), []layer.Packet{p})
			if err == nil {
				_, err = layer.ParseSecret(data)
			}
			if err != nil {
				t.Errorf("%s, key %d: %v", name, i, err)
			}
		}
	}
}

// The packet has the secret of a layer, and is in CBC mode.
func TestRefusedVector(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(filepath.Join("testdata", "refused", "openssl-3.0-cbc.der"))
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range vectorKeys(t) {
		if _, err := id.Unwrap(t.Context(), []layer.Packet{packet(data)}); !errors.Is(err, layer.ErrMalformed) || !strings.HasSuffix(err.Error(), "not supported (CBC)") {
			t.Errorf("key %d: %v", i, err)
		}
	}
}

func FuzzPKCS7Unwrap(f *testing.F) {
	known := make(map[string]bool)
	ids := vectorKeys(f)
	for name, p := range vectors(f) {
		f.Add(p.Data)
		secret, err := ids[0].Unwrap(f.Context(), []layer.Packet{p})
		if err != nil {
			f.Fatalf("%s: %v", name, err)
		}
		known[string(secret)] = true
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, id := range ids {
			secret, err := id.Unwrap(t.Context(), []layer.Packet{packet(data)})
			switch {
			case err == nil && !known[string(secret)]:
				t.Errorf("another secret: %q", secret)
			case err != nil && !errors.Is(err, keys.ErrNoMatch) && !errors.Is(err, layer.ErrMalformed):
				t.Errorf("an error of no kind: %v", err)
			}
		}
	})
}

func FuzzPKCS7Describe(f *testing.F) {
	for _, p := range vectors(f) {
		f.Add(p.Data)
	}
	r, err := pkcs7.Scheme().Recipient(f.Context(), "testdata/cert.pem", new(keys.Files))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		checkDescription(t, pkcs7.Describe(packet(data)))
		r.(keys.Owner).Owns(packet(data))
	})
}

const zeroSecret = "secret"

// zeroSealed is zeroSecret, encrypted with a key and a nonce of zeros.
func zeroSealed(t testing.TB, keySize int) []byte {
	t.Helper()
	block, err := aes.NewCipher(make([]byte, keySize))
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return gcm.Seal(nil, make([]byte, 12), []byte(zeroSecret), nil)
}

// FuzzPKCS7Parts puts packets together, because the lengths in them make most changes of
// a whole one end early. The content key is right, so that content is decrypted.
func FuzzPKCS7Parts(f *testing.F) {
	id := vectorKeys(f)[0]
	cert, err := os.ReadFile(filepath.Join("testdata", "cert.pem"))
	if err != nil {
		f.Fatal(err)
	}
	certs, err := keys.ParseCertificates(cert)
	if err != nil {
		f.Fatal(err)
	}
	wrapped := make(map[int][]byte)
	for _, size := range []int{0, 16, 24, 32} {
		//lint:ignore SA1019 it is what packets have.
		if wrapped[size], err = rsa.EncryptPKCS1v15(rand.Reader, certs[0].PublicKey.(*rsa.PublicKey), make([]byte, size)); err != nil {
			f.Fatal(err)
		}
	}
	null, nonce := []byte{5, 0}, make([]byte, 12)
	rsaOID := []byte("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01")
	aesOID := []byte("\x60\x86\x48\x01\x65\x03\x04\x01")
	gcm := append([]byte{0x30, 17, 0x84, 12}, append(nonce, 2, 1, 16)...)
	iv := append([]byte{4, 16}, make([]byte, 16)...)
	oaep := []byte("\x30\x0d\xa0\x0b\x30\x09\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00")
	add := func(keySize int, keyOID, keyParams, oid, params []byte) {
		f.Add(keySize, certs[0].RawIssuer, []byte{1}, keyOID, keyParams, oid, params, byte(0x80), zeroSealed(f, keySize))
	}
	add(16, rsaOID, null, append(bytes.Clone(aesOID), 6), gcm)
	add(24, rsaOID, null, append(bytes.Clone(aesOID), 26), gcm)
	add(32, rsaOID, nil, append(bytes.Clone(aesOID), 46), slices.Concat([]byte{0x10, 19}, gcm))
	add(32, rsaOID, null, append(bytes.Clone(aesOID), 42), iv)
	add(16, append(bytes.Clone(rsaOID[:8]), 7), oaep, append(bytes.Clone(aesOID), 6), gcm)
	f.Fuzz(func(t *testing.T, keySize int, issuer, serial, keyOID, keyParams, oid, params []byte, contentTag byte, content []byte) {
		key, ok := wrapped[keySize]
		if !ok {
			key = content
		}
		info := buildElement(0x30, []byte{2, 1, 0},
			buildElement(0x30, issuer, buildElement(2, serial)),
			buildElement(0x30, buildElement(6, keyOID), keyParams),
			buildElement(4, key))
		body := buildElement(0x30, buildElement(6, []byte("\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01")),
			buildElement(0x30, buildElement(6, oid), params),
			buildElement(contentTag, content))
		p := packet(buildElement(0x30, buildElement(6, []byte("\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03")),
			buildElement(0xa0, buildElement(0x30, []byte{2, 1, 0}, buildElement(0x31, info), body))))
		secret, err := id.Unwrap(t.Context(), []layer.Packet{p})
		switch {
		case err == nil && string(secret) != zeroSecret:
			t.Errorf("another secret: %q", secret)
		case err != nil && !errors.Is(err, keys.ErrNoMatch) && !errors.Is(err, layer.ErrMalformed):
			t.Errorf("an error of no kind: %v", err)
		}
		checkDescription(t, pkcs7.Describe(p))
	})
}
