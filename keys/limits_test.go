package keys

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

func mustMarshal(t testing.TB, v any) []byte {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func algorithmID(t testing.TB, oid asn1.ObjectIdentifier, params any) pkix.AlgorithmIdentifier {
	t.Helper()
	return pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: asn1.RawValue{FullBytes: mustMarshal(t, params)}}
}

// encryptedWith returns an encrypted PKCS#8 file with these parameters.
func encryptedWith(t testing.TB, kdf, cipher pkix.AlgorithmIdentifier, data []byte) []byte {
	t.Helper()
	return mustMarshal(t, encryptedKeyInfo{
		Algorithm: algorithmID(t, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}, pbes2Params{KDF: kdf, Cipher: cipher}),
		Data:      data,
	})
}

// What a file says about its encryption is checked before it costs anything.
func TestHostileEncryption(t *testing.T) {
	t.Parallel()
	salt := make([]byte, 16)
	block := make([]byte, 32)
	pbkdf2OID := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	scryptOID := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}
	aesOID := asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
	sha256 := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}, Parameters: asn1.NullRawValue}
	aes := algorithmID(t, aesOID, make([]byte, 16))
	pbkdf := func(n int) pkix.AlgorithmIdentifier {
		return algorithmID(t, pbkdf2OID, pbkdf2Params{Salt: salt, Iterations: n, PRF: sha256})
	}
	scrypt := func(n, r, p int) pkix.AlgorithmIdentifier {
		return algorithmID(t, scryptOID, scryptParams{Salt: salt, N: n, R: r, P: p})
	}
	const costly, damaged, unknown = "too much work", "a damaged encrypted private key", "encrypted in a way that is not supported"
	const big = 1 << 62
	for _, tt := range []struct {
		name        string
		kdf, cipher pkix.AlgorithmIdentifier
		data        []byte
		want        string
	}{
		{"iterations", pbkdf(maxPBKDF2Iterations + 1), aes, block, costly},
		{"all iterations", pbkdf(big), aes, block, costly},
		{"no iterations", pbkdf(0), aes, block, damaged},
		{"negative iterations", pbkdf(-1), aes, block, damaged},
		{"scrypt memory", scrypt(1<<22, 8, 1), aes, block, costly},
		{"scrypt N", scrypt(big, 1, 1), aes, block, costly},
		{"scrypt r", scrypt(2, big, 1), aes, block, costly},
		{"scrypt p", scrypt(2, 1, big), aes, block, costly},
		{"scrypt all", scrypt(big, big, big), aes, block, costly},
		{"scrypt nothing", scrypt(0, 0, 0), aes, block, damaged},
		{"scrypt negative", scrypt(-2, -2, 1), aes, block, damaged},
		{"scrypt no power of two", scrypt(3, 1, 1), aes, block, damaged},
		{"short iv", pbkdf(1), algorithmID(t, aesOID, make([]byte, 8)), block, damaged},
		{"long iv", pbkdf(1), algorithmID(t, aesOID, make([]byte, 17)), block, damaged},
		{"no iv", pbkdf(1), algorithmID(t, aesOID, 1), block, damaged},
		{"odd length", pbkdf(1), aes, block[:31], damaged},
		{"no data", pbkdf(1), aes, nil, damaged},
		{"one block", pbkdf(1), aes, block[:16], "wrong password"},
		{"cipher", pbkdf(1), algorithmID(t, asn1.ObjectIdentifier{1, 2, 3}, salt), block, unknown},
		{"kdf", algorithmID(t, asn1.ObjectIdentifier{1, 2, 3}, salt), aes, block, unknown},
		{"prf", algorithmID(t, pbkdf2OID, pbkdf2Params{Salt: salt, Iterations: 1, PRF: algorithmID(t, asn1.ObjectIdentifier{1, 2, 3}, 1)}), aes, block, unknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			_, err := ParsePrivateKeys(encryptedWith(t, tt.kdf, tt.cipher, tt.data), []byte("pw"))
			if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, ErrNotKey) && !errors.Is(err, ErrPassword) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("took %s", d)
			}
		})
	}
}

// Numbers that would take minutes to calculate with are refused by their size.
func TestHostileRSA(t *testing.T) {
	t.Parallel()
	huge := new(big.Int).Lsh(big.NewInt(1), 200_000)
	huge.SetBit(huge, 0, 1)
	three := big.NewInt(3)
	numbers := func(n, p *big.Int) []byte {
		return mustMarshal(t, struct {
			Version                      int
			N, E, D, P, Q, Dp, Dq, QInv1 *big.Int
		}{0, n, three, three, p, three, three, three, three})
	}
	pkcs8 := func(pkcs1 []byte) []byte {
		return mustMarshal(t, struct {
			Version   int
			Algorithm pkix.AlgorithmIdentifier
			Key       []byte
		}{0, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, Parameters: asn1.NullRawValue}, pkcs1})
	}
	b64 := base64.RawURLEncoding.EncodeToString(huge.Bytes())
	for name, data := range map[string][]byte{
		"PKCS1 n": numbers(huge, three),
		"PKCS1 p": numbers(three, huge),
		"PKCS8 p": pkcs8(numbers(three, huge)),
		"JWK n":   fmt.Appendf(nil, `{"kty":"RSA","n":%q,"e":"AQAB","d":"Aw","p":"Aw","q":"Aw"}`, b64),
		"JWK p":   fmt.Appendf(nil, `{"kty":"RSA","n":"Aw","e":"AQAB","d":"Aw","p":%q,"q":"Aw"}`, b64),
	} {
		if _, err := ParsePrivateKeys(data, nil); !errors.Is(err, ErrNotKey) || !strings.Contains(err.Error(), "more than 16384 bits") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A costly but allowed derivation still works.
func TestAllowedScrypt(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	kdf := algorithmID(t, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}, scryptParams{Salt: []byte("salt"), N: 1 << 15, R: 8, P: 1, KeyLength: 32})
	c := cbcCipher{iv: make([]byte, 16), keySize: 32}
	derive, err := parseKDF(kdf, c.keySize)
	if err != nil {
		t.Fatal(err)
	}
	der := encryptedWith(t, kdf, algorithmID(t, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}, c.iv), encryptCBC(t, derive, c.iv, plain))
	got, err := ParsePrivateKey(der, []byte("pw"))
	if err != nil || !key.Equal(got) {
		t.Errorf("%v", err)
	}
}
