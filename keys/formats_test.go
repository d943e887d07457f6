package keys_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"imgcrypt/keys"
)

// concat joins the blocks of one PEM file.
func concat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func toJWK(t testing.TB, key any, alg string) []byte {
	t.Helper()
	data, err := json.Marshal(jose.JSONWebKey{Key: key, KeyID: "a name of its own", Algorithm: alg})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// sameKey says whether got is the private key that belongs to the public PEM.
func sameKey(t testing.TB, got any, public []byte) bool {
	t.Helper()
	block, _ := pem.Decode(public)
	want, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if signer, ok := got.(crypto.Signer); ok {
		got = signer.Public()
	}
	k, ok := got.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(want)
}

// unencrypted returns one private key in every format without a password.
func unencrypted(t testing.TB, private []byte) map[string][]byte {
	t.Helper()
	key, err := keys.ParsePrivateKey(private, nil)
	if err != nil {
		t.Fatal(err)
	}
	cert := certificateOf(t, private)
	forms := map[string][]byte{
		"PKCS8 PEM":              private,
		"PKCS8 DER":              openssl(t, private, "pkcs8", "-topk8", "-nocrypt", "-outform", "DER"),
		"JWK":                    toJWK(t, key, ""),
		"JWK with an alg":        toJWK(t, key, "RS256"),
		"JWK after white space":  append([]byte("\n\t "), toJWK(t, key, "")...),
		"certificate first":      concat(cert, private),
		"key first":              concat(private, cert),
		"public key first":       concat(publicOf(t, private), private),
		"text around it":         concat([]byte("Bag Attributes\n  friendlyName: x\n"), private, []byte("\nafter\n")),
		"line ends of Windows":   bytes.ReplaceAll(private, []byte("\n"), []byte("\r\n")),
		"byte order mark before": concat([]byte("\xef\xbb\xbf"), private),
	}
	switch key.(type) {
	case *rsa.PrivateKey:
		forms["PKCS1 PEM"] = openssl(t, private, "rsa", "-traditional")
		forms["PKCS1 DER"] = openssl(t, private, "rsa", "-traditional", "-outform", "DER")
	case *ecdsa.PrivateKey:
		sec1 := openssl(t, private, "ec")
		forms["SEC1 PEM"] = sec1
		forms["SEC1 DER"] = openssl(t, private, "ec", "-outform", "DER")
		params := openssl(t, private, "ec", "-param_out")
		i := bytes.Index(params, []byte("-----BEGIN EC PARAMETERS-----"))
		j := bytes.Index(params, []byte("-----END EC PARAMETERS-----\n")) + len("-----END EC PARAMETERS-----\n")
		forms["compressed point"] = openssl(t, private, "ec", "-conv_form", "compressed")
		forms["without public half"] = openssl(t, private, "ec", "-no_public")
		forms["EC PARAMETERS first"] = concat(params[i:j], sec1)
	}
	return forms
}

// encrypted returns the key in every format with the password.
func encrypted(t testing.TB, private []byte) map[string][]byte {
	t.Helper()
	pass := "pass:" + password
	topk8 := func(args ...string) []byte {
		return openssl(t, private, append([]string{"pkcs8", "-topk8", "-passout", pass}, args...)...)
	}
	forms := map[string][]byte{
		"PKCS8 as openssl's default": topk8(),
		"PKCS8 DER":                  topk8("-outform", "DER"),
		"PKCS8 AES-128, SHA-1":       topk8("-v2", "aes-128-cbc", "-v2prf", "hmacWithSHA1"),
		"PKCS8 AES-192, SHA-512":     topk8("-v2", "aes-192-cbc", "-v2prf", "hmacWithSHA512"),
		"PKCS8 AES-256, SHA-384":     topk8("-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA384"),
		"PKCS8 SHA-224":              topk8("-v2prf", "hmacWithSHA224"),
		"PKCS8 3DES":                 topk8("-v2", "des3"),
		"PKCS8 many iterations":      topk8("-iter", "20000"),
		"PKCS8 scrypt":               topk8("-scrypt"),
		"PKCS8 genpkey":              openssl(t, private, "pkey", "-aes256", "-passout", pass),
		"key and certificate":        concat(certificateOf(t, private), topk8()),
	}
	for _, c := range []string{"-aes128", "-aes192", "-aes256", "-des3"} {
		forms["legacy "+c] = openssl(t, private, "pkey", "-traditional", c, "-passout", pass)
	}
	return forms
}

// testKeys returns a private key of each kind, as PKCS#8 PEM.
func testKeys(t *testing.T) map[string][]byte {
	return map[string][]byte{
		"RSA":   newRSA(t),
		"P-256": newEC(t, "P-256"),
		"P-384": newEC(t, "P-384"),
		"P-521": newEC(t, "P-521"),
	}
}

func TestParsePrivateKey(t *testing.T) {
	t.Parallel()
	for kind, private := range testKeys(t) {
		public := publicOf(t, private)
		for name, data := range unencrypted(t, private) {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				for _, pw := range [][]byte{nil, {}, []byte("not needed")} {
					key, err := keys.ParsePrivateKey(data, pw)
					if err != nil {
						t.Fatal(err)
					}
					if !sameKey(t, key, public) {
						t.Error("another key came out")
					}
				}
			})
		}
	}
}

func TestParseEncryptedPrivateKey(t *testing.T) {
	t.Parallel()
	for kind, private := range testKeys(t) {
		public := publicOf(t, private)
		for name, data := range encrypted(t, private) {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				key, err := keys.ParsePrivateKey(data, []byte(password))
				if err != nil {
					t.Fatal(err)
				}
				if !sameKey(t, key, public) {
					t.Error("another key came out")
				}
				_, err = keys.ParsePrivateKey(data, nil)
				if !errors.Is(err, keys.ErrPassword) || !strings.Contains(err.Error(), "is encrypted: give its password as KEY:file=PATH, :fd=N or :pass=PASSWORD") {
					t.Errorf("without password: %v", err)
				}
				for i := range 3 {
					_, err = keys.ParsePrivateKey(data, fmt.Append(nil, "wrong", i))
					if !errors.Is(err, keys.ErrPassword) || !strings.Contains(err.Error(), "wrong password") {
						t.Errorf("wrong password: %v", err)
					}
				}
				if _, err = keys.ParsePrivateKey(data, []byte{}); !errors.Is(err, keys.ErrPassword) {
					t.Errorf("empty password: %v", err)
				}
			})
		}
	}
}

// A wrong password must not be taken for a damaged file when the padding looks
// right, as it does by chance in one case of 256.
func TestPaddingByChance(t *testing.T) {
	t.Parallel()
	ec := newEC(t, "P-256")
	for name, data := range map[string][]byte{
		"legacy": openssl(t, ec, "pkey", "-traditional", "-aes128", "-passout", "pass:"+password),
		"PKCS8":  openssl(t, ec, "pkcs8", "-topk8", "-iter", "1", "-passout", "pass:"+password),
	} {
		for i := range 3000 {
			if _, err := keys.ParsePrivateKey(data, fmt.Append(nil, i)); !errors.Is(err, keys.ErrPassword) {
				t.Fatalf("%s, password %d: %v", name, i, err)
			}
		}
	}
}

func TestParsePrivateKeysAll(t *testing.T) {
	t.Parallel()
	a, b := newRSA(t), newEC(t, "P-256")
	got, err := keys.ParsePrivateKeys(concat(a, certificateOf(t, a), b), nil)
	if err != nil || len(got) != 2 || !sameKey(t, got[0], publicOf(t, a)) || !sameKey(t, got[1], publicOf(t, b)) {
		t.Errorf("got %d keys, error %v", len(got), err)
	}
}

func TestParsePublicKey(t *testing.T) {
	t.Parallel()
	for kind, private := range testKeys(t) {
		public := publicOf(t, private)
		cert := certificateOf(t, private)
		key, err := keys.ParsePrivateKey(private, nil)
		if err != nil {
			t.Fatal(err)
		}
		forms := map[string][]byte{
			"PKIX PEM":            public,
			"PKIX DER":            openssl(t, private, "pkey", "-pubout", "-outform", "DER"),
			"certificate PEM":     cert,
			"certificate DER":     openssl(t, cert, "x509", "-outform", "DER"),
			"JWK":                 toJWK(t, key.(crypto.Signer).Public(), ""),
			"key and certificate": concat(private, cert),
			"public and private":  concat(private, public),
			"twice the same":      concat(public, cert, public),
		}
		if kind == "RSA" {
			forms["PKCS1 PEM"] = openssl(t, private, "rsa", "-RSAPublicKey_out")
			forms["PKCS1 DER"] = openssl(t, private, "rsa", "-RSAPublicKey_out", "-outform", "DER")
		}
		for name, data := range forms {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				got, err := keys.ParsePublicKey(data)
				if err != nil {
					t.Fatal(err)
				}
				if !sameKey(t, got.Key, public) {
					t.Error("another key came out")
				}
				if got.Algorithm != "" {
					t.Errorf("alg %q", got.Algorithm)
				}
			})
		}
	}
}

func TestParsePublicKeyChain(t *testing.T) {
	t.Parallel()
	ca, leaf := newEC(t, "P-256"), newEC(t, "P-384")
	caCert := certificateOf(t, ca)
	request := openssl(t, nil, "req", "-new", "-key", writeFile(t, "k", leaf), "-subj", "/CN=leaf")
	leafCert := openssl(t, request, "x509", "-req", "-CA", writeFile(t, "ca", caCert), "-CAkey", writeFile(t, "cakey", ca), "-CAcreateserial", "-CAserial", writeFile(t, "serial", []byte("01\n")))
	got, err := keys.ParsePublicKey(concat(leafCert, caCert))
	if err != nil || !sameKey(t, got.Key, publicOf(t, leaf)) {
		t.Errorf("chain: %v", err)
	}
	if _, err := keys.ParsePublicKey(concat(caCert, leafCert)); !errors.Is(err, keys.ErrNotKey) {
		t.Errorf("no chain: %v", err)
	}
}

// notPrivate and notPublic are what must be refused, with words that the error has to
// contain.
type refused struct {
	name string
	data []byte
	want string
}

func TestRefusedAsPrivate(t *testing.T) {
	t.Parallel()
	rsaKey, ec := newRSA(t), newEC(t, "P-256")
	pub := publicOf(t, rsaKey)
	signer := func(p []byte) crypto.Signer {
		k, err := keys.ParsePrivateKey(p, nil)
		if err != nil {
			t.Fatal(err)
		}
		return k.(crypto.Signer)
	}
	other := signer(newEC(t, "P-256")).(*ecdsa.PrivateKey)
	mixed := *signer(ec).(*ecdsa.PrivateKey)
	mixed.PublicKey = other.PublicKey
	damaged := bytes.Clone(toDER(t, rsaKey))
	damaged[len(damaged)/2] ^= 1
	for _, tt := range []refused{
		{"empty", nil, "an empty file"},
		{"blank", []byte(" \n"), "an empty file"},
		{"public key", pub, "it holds a public key, and opening takes the private key"},
		{"public key DER", openssl(t, rsaKey, "pkey", "-pubout", "-outform", "DER"), "it holds a public key"},
		{"public PKCS1", openssl(t, rsaKey, "rsa", "-RSAPublicKey_out"), "it holds a public key"},
		{"certificate", certificateOf(t, rsaKey), "it holds a certificate"},
		{"public JWK", toJWK(t, signer(ec).Public(), ""), "it holds a public key"},
		{"symmetric JWK", []byte(`{"kty":"oct","k":"AAAA"}`), "a symmetric JWK"},
		{"JWK set", []byte(`{"keys":[]}`), "a set of JWKs"},
		{"JSON", []byte(`{"a":1}`), "JSON that is no JWK"},
		{"half JSON", []byte(`{"a":1`), "not JSON"},
		{"JWK of two keys", toJWK(t, &mixed, ""), "do not belong together"},
		{"unknown curve JWK", []byte(`{"kty":"EC","crv":"secp256k1","x":"AA","y":"AA","d":"AA"}`), "not supported"},
		{"text", []byte("hello"), "neither PEM, DER nor JWK"},
		{"damaged PEM", ec[:len(ec)-30], "damaged PEM"},
		{"damaged DER", damaged, "damaged"},
		{"parameters", openssl(t, nil, "ecparam", "-name", "prime256v1"), `PEM without a key ("EC PARAMETERS")`},
		{"secp256k1", newEC(t, "secp256k1"), "not supported"},
		{"explicit curve", openssl(t, ec, "pkey", "-ec_param_enc", "explicit"), "not supported"},
		{"OpenSSH", []byte("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"), "ssh-keygen -p -m PEM"},
		{"OpenSSH public", []byte("ssh-rsa AAAA x@y"), "ssh-keygen -e -m PKCS8"},
		{"OpenPGP", []byte("-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nAAAA\n=AAAA\n-----END PGP PRIVATE KEY BLOCK-----\n"), "an OpenPGP key"},
		{"PKCS12", openssl(t, concat(ec, certificateOf(t, ec)), "pkcs12", "-export", "-passout", "pass:x"), "openssl pkcs12 -nodes converts it"},
		{"PBES1", openssl(t, ec, "pkcs8", "-topk8", "-v1", "PBE-SHA1-3DES", "-passout", "pass:x"), "openssl pkcs8 -topk8 converts it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := keys.ParsePrivateKey(tt.data, []byte(password))
			if !errors.Is(err, keys.ErrNotKey) || errors.Is(err, keys.ErrPassword) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestRefusedAsPublic(t *testing.T) {
	t.Parallel()
	private, other := newEC(t, "P-256"), newEC(t, "P-256")
	key, err := keys.ParsePrivateKey(private, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []refused{
		{"empty", nil, "an empty file"},
		{"private key", private, "it holds a private key, and a recipient is its public half"},
		{"private key DER", toDER(t, private), "it holds a private key"},
		{"encrypted private key", openssl(t, private, "pkcs8", "-topk8", "-passout", "pass:x"), "it holds a private key"},
		{"legacy private key", openssl(t, private, "ec", "-aes128", "-passout", "pass:x"), "it holds a private key"},
		{"private JWK", toJWK(t, key, ""), "it holds a private key"},
		{"two keys", concat(publicOf(t, private), publicOf(t, other)), "several different public keys"},
		{"key and foreign certificate", concat(publicOf(t, private), certificateOf(t, other)), "several different public keys"},
		{"request", openssl(t, nil, "req", "-new", "-key", writeFile(t, "k", private), "-subj", "/CN=x"), "damaged certificate"},
		{"secp256k1", publicOf(t, newEC(t, "secp256k1")), "not supported"},
		{"text", []byte("hello"), "neither PEM, DER nor JWK"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := keys.ParsePublicKey(tt.data)
			if !errors.Is(err, keys.ErrNotKey) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// Every flipped byte of an encrypted key is an error of one of the two kinds, or
// harmless, and never a panic.
func TestFlippedBytes(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: plain})
	der := openssl(t, block, "pkcs8", "-topk8", "-outform", "DER", "-iter", "10", "-passout", "pass:"+password)
	for i := range der {
		bad := bytes.Clone(der)
		bad[i] ^= 0x04
		got, err := keys.ParsePrivateKey(bad, []byte(password))
		switch {
		case err == nil:
			if !key.Equal(got) {
				t.Errorf("byte %d: another key came out", i)
			}
		case !errors.Is(err, keys.ErrNotKey) && !errors.Is(err, keys.ErrPassword):
			t.Errorf("byte %d: %v", i, err)
		}
	}
}
