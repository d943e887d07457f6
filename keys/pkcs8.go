package keys

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509/pkix"
	"encoding/asn1"
	"hash"

	"golang.org/x/crypto/scrypt"
)

// Limits on the work that an encrypted key may ask for before anything of it is
// known to be right. They are some hundred times what OpenSSL writes.
const (
	maxPBKDF2Iterations = 10_000_000
	maxScryptMemory     = 256 << 20 // bytes: 128·N·r
	maxScryptWork       = 1 << 22   // N·r·p
)

// encryptedKeyInfo and what follows are RFC 5958, RFC 8018 and RFC 7914.
type encryptedKeyInfo struct {
	Algorithm pkix.AlgorithmIdentifier
	Data      []byte
}

type pbes2Params struct {
	KDF    pkix.AlgorithmIdentifier
	Cipher pkix.AlgorithmIdentifier
}

type pbkdf2Params struct {
	Salt       []byte
	Iterations int
	KeyLength  int                      `asn1:"optional"`
	PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
}

type scryptParams struct {
	Salt      []byte
	N, R, P   int
	KeyLength int `asn1:"optional"`
}

// decryptPKCS8 returns the PKCS#8 DER inside an encrypted one.
func decryptPKCS8(der, password []byte) ([]byte, error) {
	var info encryptedKeyInfo
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, errDamagedEncryption()
	}
	if oid := info.Algorithm.Algorithm.String(); oid != "1.2.840.113549.1.5.13" { // PBES2
		return nil, errOldEncryption(oid)
	}
	var params pbes2Params
	if _, err := asn1.Unmarshal(info.Algorithm.Parameters.FullBytes, &params); err != nil {
		return nil, errDamagedEncryption()
	}
	c, err := parseCipher(params.Cipher)
	if err != nil {
		return nil, err
	}
	derive, err := parseKDF(params.KDF, c.keySize)
	if err != nil {
		return nil, err
	}
	if len(info.Data) == 0 || len(info.Data)%len(c.iv) != 0 {
		return nil, errDamagedEncryption()
	}
	if password == nil {
		return nil, errNoPassword()
	}
	key, err := derive(password)
	if err != nil {
		return nil, errDamagedEncryption()
	}
	block, err := c.new(key)
	if err != nil {
		return nil, errDamagedEncryption()
	}
	plain := make([]byte, len(info.Data))
	cipher.NewCBCDecrypter(block, c.iv).CryptBlocks(plain, info.Data)
	plain, ok := unpad(plain, len(c.iv))
	if !ok || formOf(plain) != formPKCS8 {
		return nil, errWrongPassword()
	}
	return plain, nil
}

// cbcCipher is a block cipher in CBC mode, where the block size is that of iv.
type cbcCipher struct {
	new     func(key []byte) (cipher.Block, error)
	keySize int
	iv      []byte
}

func parseCipher(id pkix.AlgorithmIdentifier) (cbcCipher, error) {
	c := cbcCipher{new: aes.NewCipher}
	size := aes.BlockSize
	switch oid := id.Algorithm.String(); oid {
	case "2.16.840.1.101.3.4.1.2":
		c.keySize = 16
	case "2.16.840.1.101.3.4.1.22":
		c.keySize = 24
	case "2.16.840.1.101.3.4.1.42":
		c.keySize = 32
	case "1.2.840.113549.3.7":
		c.new, c.keySize, size = des.NewTripleDESCipher, 24, des.BlockSize
	default:
		return c, errOldEncryption(oid)
	}
	if _, err := asn1.Unmarshal(id.Parameters.FullBytes, &c.iv); err != nil || len(c.iv) != size {
		return c, errDamagedEncryption()
	}
	return c, nil
}

// parseKDF returns the derivation of a key of the given size. It has checked what
// the derivation will cost.
func parseKDF(id pkix.AlgorithmIdentifier, size int) (func(password []byte) ([]byte, error), error) {
	switch oid := id.Algorithm.String(); oid {
	case "1.2.840.113549.1.5.12":
		var p pbkdf2Params
		if _, err := asn1.Unmarshal(id.Parameters.FullBytes, &p); err != nil || p.Iterations < 1 {
			return nil, errDamagedEncryption()
		}
		if p.Iterations > maxPBKDF2Iterations {
			return nil, errCostly()
		}
		newHash, err := parsePRF(p.PRF)
		if err != nil {
			return nil, err
		}
		return func(password []byte) ([]byte, error) {
			return pbkdf2.Key(newHash, string(password), p.Salt, p.Iterations, size)
		}, nil
	case "1.3.6.1.4.1.11591.4.11":
		var p scryptParams
		if _, err := asn1.Unmarshal(id.Parameters.FullBytes, &p); err != nil || p.N < 2 || p.R < 1 || p.P < 1 {
			return nil, errDamagedEncryption()
		}
		// Divisions, because the products may not fit an int.
		if p.N > maxScryptMemory/128/p.R || p.P > maxScryptWork/(p.N*p.R) {
			return nil, errCostly()
		}
		return func(password []byte) ([]byte, error) {
			return scrypt.Key(password, p.Salt, p.N, p.R, p.P, size)
		}, nil
	default:
		return nil, errOldEncryption(oid)
	}
}

func parsePRF(id pkix.AlgorithmIdentifier) (func() hash.Hash, error) {
	if len(id.Algorithm) == 0 {
		return sha1.New, nil // RFC 8018's default
	}
	switch oid := id.Algorithm.String(); oid {
	case "1.2.840.113549.2.7":
		return sha1.New, nil
	case "1.2.840.113549.2.8":
		return sha256.New224, nil
	case "1.2.840.113549.2.9":
		return sha256.New, nil
	case "1.2.840.113549.2.10":
		return sha512.New384, nil
	case "1.2.840.113549.2.11":
		return sha512.New, nil
	default:
		return nil, errOldEncryption(oid)
	}
}

// unpad removes the padding of RFC 8018, section 6.1.1.
func unpad(plain []byte, blockSize int) ([]byte, bool) {
	n := int(plain[len(plain)-1])
	if n < 1 || n > blockSize || n > len(plain) {
		return nil, false
	}
	body, pad := plain[:len(plain)-n], plain[len(plain)-n:]
	return body, bytes.Equal(pad, bytes.Repeat([]byte{byte(n)}, n))
}

func errDamagedEncryption() error { return notKey("a damaged encrypted private key") }

func errCostly() error {
	return notKey("an encrypted private key whose password takes too much work to check")
}

func errOldEncryption(oid string) error {
	return notKey("a private key encrypted in a way that is not supported (%.60s; openssl pkcs8 -topk8 converts it)", oid)
}
