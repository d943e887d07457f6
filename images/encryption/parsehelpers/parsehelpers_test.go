package parsehelpers_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/containers/ocicrypt"
	encconfig "github.com/containers/ocicrypt/config"
	"github.com/go-jose/go-jose/v4"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/youmark/pkcs8"

	"imgcrypt/images/encryption/parsehelpers"
	"imgcrypt/keys"
	"imgcrypt/keys/pgp"
	"imgcrypt/keys/provider"
)

// must is for what only fails where the machine is broken.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func write(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func certificate(key crypto.Signer) []byte {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotAfter: time.Now().Add(time.Hour)}
	return must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
}

func jwk(key any, alg string) []byte {
	return must(jose.JSONWebKey{Key: key, Algorithm: alg, KeyID: "mine"}.MarshalJSON())
}

// plainText is what layers hold here.
const plainText = "the bytes of a layer"

// checkPair lets ocicrypt, which is what reads these configurations elsewhere, encrypt
// with the one and decrypt with the other.
func checkPair(t *testing.T, enc, dec encconfig.CryptoConfig) {
	t.Helper()
	desc := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip,
		Digest:    digest.FromString(plainText),
		Size:      int64(len(plainText)),
	}
	sealed, finish, err := ocicrypt.EncryptLayer(enc.EncryptConfig, bytes.NewReader([]byte(plainText)), desc)
	if err != nil {
		t.Fatal(err)
	}
	ciphertext := must(io.ReadAll(sealed))
	desc.Annotations = must(finish())
	plain, _, err := ocicrypt.DecryptLayer(dec.DecryptConfig, bytes.NewReader(ciphertext), desc, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(must(io.ReadAll(plain))); got != plainText {
		t.Errorf("got %q", got)
	}
}

func TestFormats(t *testing.T) {
	t.Parallel()
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))
	ecKey := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	rsaPublic := pemBlock("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(rsaKey.Public())))
	ecPublic := pemBlock("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(ecKey.Public())))
	rsaPrivate := pemBlock("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(rsaKey)))
	sec1 := pemBlock("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ecKey)))
	encrypted := pemBlock("ENCRYPTED PRIVATE KEY", must(pkcs8.MarshalPrivateKey(ecKey, []byte("a:b"), nil)))
	//lint:ignore SA1019 it is what old keys are encrypted with.
	legacy := pem.EncodeToMemory(must(x509.EncryptPEMBlock(rand.Reader, "RSA PRIVATE KEY",
		x509.MarshalPKCS1PrivateKey(rsaKey), []byte("a:b"), x509.PEMCipherAES256)))

	tests := []struct {
		name            string
		public, private []byte
		suffix          string
	}{
		{"RSA, PEM", rsaPublic, rsaPrivate, ""},
		{"RSA, PKCS#1 and DER", x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey), x509.MarshalPKCS1PrivateKey(rsaKey), ""},
		{"RSA, legacy encryption", rsaPublic, legacy, ":pass=a:b"},
		{"EC, SEC1", ecPublic, sec1, ""},
		{"EC, SEC1 after its parameters", ecPublic, append(pemBlock("EC PARAMETERS", []byte{6, 5, 0x2b, 0x81, 4, 0, 0x22}), sec1...), ""},
		{"EC, encrypted PKCS#8", ecPublic, encrypted, ":a:b"},
		{"RSA, JWK with algorithm", jwk(rsaKey.Public(), "RSA-OAEP-256"), jwk(rsaKey, ""), ""},
		{"EC, JWK without algorithm", jwk(ecKey.Public(), ""), jwk(ecKey, "ECDH-ES+A128KW"), ""},
		{"EC, JWK with algorithm", jwk(ecKey.Public(), "ECDH-ES+A128KW"), sec1, ""},
		{"certificate, key and certificate", pemBlock("CERTIFICATE", certificate(ecKey)),
			append(pemBlock("CERTIFICATE", certificate(ecKey)), sec1...), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			args := parsehelpers.EncArgs{
				Recipient: []string{"jwe:" + write(t, "public", tt.public)},
				Key:       []string{write(t, "private", tt.private) + tt.suffix},
			}
			enc, err := parsehelpers.CreateCryptoConfig(parsehelpers.EncArgs{Recipient: args.Recipient}, nil)
			if err != nil {
				t.Fatal(err)
			}
			dec, err := parsehelpers.CreateDecryptCryptoConfig(parsehelpers.EncArgs{Key: args.Key}, nil)
			if err != nil {
				t.Fatal(err)
			}
			checkPair(t, enc, dec)
			checkPrivateParameters(t, dec.DecryptConfig, 1)
		})
	}
}

// checkPrivateParameters checks that private keys are unencrypted PKCS#8 and that each
// has an empty password.
func checkPrivateParameters(t *testing.T, dc *encconfig.DecryptConfig, n int) {
	t.Helper()
	if got := slices.Sorted(maps.Keys(dc.Parameters)); !slices.Equal(got, []string{"privkeys", "privkeys-passwords"}) {
		t.Fatalf("parameters %q", got)
	}
	private, passwords := dc.Parameters["privkeys"], dc.Parameters["privkeys-passwords"]
	if len(private) != n || len(passwords) != n {
		t.Fatalf("%d keys, %d passwords, want %d", len(private), len(passwords), n)
	}
	for i := range private {
		if _, err := x509.ParsePKCS8PrivateKey(private[i]); err != nil {
			t.Error(err)
		}
		// As JSON, an absent password would be null and not "".
		if passwords[i] == nil || len(passwords[i]) > 0 {
			t.Errorf("password %#v", passwords[i])
		}
	}
}

func TestAlgorithmIsKept(t *testing.T) {
	t.Parallel()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	cc, err := parsehelpers.CreateCryptoConfig(parsehelpers.EncArgs{
		Recipient: []string{"jwe:" + write(t, "jwk", jwk(key.Public(), "ECDH-ES+A192KW"))},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(cc.EncryptConfig.Parameters["pubkeys"][0], &got); err != nil {
		t.Fatal(err)
	}
	if got["alg"] != "ECDH-ES+A192KW" || got["kid"] != "" || got["d"] != "" {
		t.Errorf("got %v", got)
	}
}

// A file's keys that nothing can use do not keep away the one that can be used.
func TestSeveralKeysInAFile(t *testing.T) {
	t.Parallel()
	var file []byte
	_, signing, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecKey := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	otherKey := must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	for _, key := range []any{signing, ecKey, otherKey} {
		file = append(file, pemBlock("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key)))...)
	}
	dec, err := parsehelpers.CreateDecryptCryptoConfig(parsehelpers.EncArgs{Key: []string{write(t, "keys", file)}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkPrivateParameters(t, dec.DecryptConfig, 2)
	enc, err := parsehelpers.CreateCryptoConfig(parsehelpers.EncArgs{
		Recipient: []string{"jwe:" + write(t, "public", must(x509.MarshalPKIXPublicKey(otherKey.Public())))},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkPair(t, enc, dec)
}

func TestKeysOfAnEncryption(t *testing.T) {
	t.Parallel()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	cc, err := parsehelpers.CreateCryptoConfig(parsehelpers.EncArgs{
		Recipient: []string{"jwe:" + write(t, "public", must(x509.MarshalPKIXPublicKey(key.Public())))},
		Key:       []string{write(t, "private", must(x509.MarshalPKCS8PrivateKey(key)))},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkPrivateParameters(t, cc.DecryptConfig, 1)
	checkPrivateParameters(t, &cc.EncryptConfig.DecryptConfig, 1)
	// ocicrypt's users write into these maps.
	cc.EncryptConfig.AttachDecryptConfig(cc.DecryptConfig)
	checkPrivateParameters(t, cc.DecryptConfig, 1)
	checkPair(t, cc, cc)
}

func TestNothingGiven(t *testing.T) {
	t.Parallel()
	for _, create := range []func(parsehelpers.EncArgs, []ocispec.Descriptor) (encconfig.CryptoConfig, error){
		parsehelpers.CreateCryptoConfig, parsehelpers.CreateDecryptCryptoConfig,
	} {
		cc, err := create(parsehelpers.EncArgs{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(cc.DecryptConfig.Parameters)+len(cc.EncryptConfig.Parameters)+len(cc.EncryptConfig.DecryptConfig.Parameters) > 0 {
			t.Errorf("got %v", cc)
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	public := write(t, "public", must(x509.MarshalPKIXPublicKey(key.Public())))
	private := write(t, "private", must(x509.MarshalPKCS8PrivateKey(key)))
	encrypted := write(t, "encrypted", must(pkcs8.MarshalPrivateKey(key, []byte("password"), nil)))
	_, signing, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	useless := write(t, "useless", must(x509.MarshalPKCS8PrivateKey(signing)))
	missing := filepath.Join(t.TempDir(), "missing")

	type args = parsehelpers.EncArgs
	tests := []struct {
		name string
		args args
		want error
	}{
		{"recipient without scheme", args{Recipient: []string{public}}, keys.ErrUnknownScheme},
		{"unknown scheme", args{Recipient: []string{"age:" + public}}, keys.ErrUnknownScheme},
		{"pgp recipient that gpg does not know", args{Recipient: []string{"pgp:me@example.test"}, GPGHomedir: t.TempDir()}, pgp.ErrNotFound},
		{"public key for pkcs7", args{Recipient: []string{"jwe:" + public, "pkcs7:" + public}}, keys.ErrNotKey},
		{"EC key for pkcs11", args{Recipient: []string{"pkcs11:" + public}}, keys.ErrNotKey},
		{"provider without configuration", args{Recipient: []string{"provider:kbs"}}, provider.ErrConfig},
		{"public key of a decryption", args{DecRecipient: []string{"pkcs7:" + public}}, keys.ErrNotKey},
		{"key of a provider without configuration", args{Key: []string{"provider:kbs"}}, provider.ErrConfig},
		{"recipient's file is missing", args{Recipient: []string{"jwe:" + missing}}, fs.ErrNotExist},
		{"private key as recipient", args{Recipient: []string{"jwe:" + private}}, keys.ErrNotKey},
		{"key's file is missing", args{Key: []string{missing}}, fs.ErrNotExist},
		{"public key as key", args{Key: []string{public}}, keys.ErrNotKey},
		{"key that cannot open anything", args{Key: []string{useless}}, keys.ErrNotKey},
		{"no password", args{Key: []string{encrypted}}, keys.ErrPassword},
		{"wrong password", args{Key: []string{encrypted + ":wrong"}}, keys.ErrPassword},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := parsehelpers.CreateCryptoConfig(tt.args, nil)
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if err != nil {
				t.Log(err) // to be read by people
			}
		})
	}
}

// A key that comes through a pipe can be read only once, also where it is named twice.
// It is in the configuration once.
func TestFilesAreReadOnce(t *testing.T) {
	t.Parallel()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	reader, writer := must2(os.Pipe())
	defer reader.Close()
	go func() {
		defer writer.Close()
		writer.Write(must(x509.MarshalPKCS8PrivateKey(key)))
	}()
	path := filepath.Join("/proc/self/fd", fdName(reader))
	if _, err := os.Stat(path); err != nil {
		path = filepath.Join("/dev/fd", fdName(reader))
	}
	cc, err := parsehelpers.CreateCryptoConfig(parsehelpers.EncArgs{Key: []string{path, path}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkPrivateParameters(t, cc.DecryptConfig, 1)
}

func TestGPGVersions(t *testing.T) {
	t.Parallel()
	for version, ok := range map[string]bool{"1": true, "2": true, "v1": true, "v2": true, "3": false, "v": false, "two": false} {
		client, err := parsehelpers.CreateGPGClient(parsehelpers.EncArgs{GPGVersion: version, GPGHomedir: t.TempDir()})
		if (err == nil && client != nil) != ok {
			t.Errorf("version %q: %v", version, err)
		}
	}
}

func must2[T, U any](v T, w U, err error) (T, U) {
	if err != nil {
		panic(err)
	}
	return v, w
}

// fdName returns the number of an open file as its name below /proc/self/fd.
func fdName(f *os.File) string {
	return strconv.Itoa(int(f.Fd()))
}
