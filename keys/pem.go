package keys

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
)

// PublicKey is what a public-key file holds.
type PublicKey struct {
	// Key is an *rsa.PublicKey, an *ecdsa.PublicKey or another kind that
	// crypto/x509 knows.
	Key crypto.PublicKey
	// Algorithm is a JWK's own "alg"; empty if it has none, and for other formats.
	Algorithm string
}

// ParsePublicKey reads an RSA or EC public key: a JWK, or PEM or DER of a PKIX or
// PKCS#1 public key or of a certificate. In PEM, blocks of other kinds are passed
// over, and the certificates after the first must be its chain. A file with several
// different keys is refused, as encrypting for one of them would leave out the others.
// Errors wrap [ErrNotKey].
func ParsePublicKey(data []byte) (PublicKey, error) {
	data = bytes.TrimPrefix(data, byteOrderMark())
	if isJSON(data) {
		return parseJWKPublic(data)
	}
	var public []crypto.PublicKey
	var chain []*x509.Certificate
	all := items(data)
	for _, it := range all {
		switch it.form {
		case formPKIX, formPKCS1Public:
			key, err := parsePublic(it)
			if err != nil {
				return PublicKey{}, err
			}
			public = append(public, key)
		case formCertificate:
			cert, err := x509.ParseCertificate(it.der)
			if err != nil {
				return PublicKey{}, notKey("a damaged certificate")
			}
			if n := len(chain); n > 0 && !bytes.Equal(chain[n-1].RawIssuer, cert.RawSubject) {
				return PublicKey{}, notKey("several certificates that are no chain: give each in a file of its own")
			}
			chain = append(chain, cert)
		}
	}
	if len(chain) > 0 {
		if chain[0].PublicKey == nil {
			return PublicKey{}, notKey("a certificate of a kind that is not supported")
		}
		public = append(public, chain[0].PublicKey)
	}
	if len(public) == 0 {
		return PublicKey{}, notPublic(data, all)
	}
	for _, other := range public[1:] {
		if k, ok := public[0].(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(other) {
			return PublicKey{}, notKey("several different public keys: give each in a file of its own")
		}
	}
	return PublicKey{Key: public[0]}, nil
}

func parsePublic(it item) (crypto.PublicKey, error) {
	if it.form == formPKCS1Public {
		key, err := x509.ParsePKCS1PublicKey(it.der)
		if err != nil {
			return nil, notKey("a damaged public key")
		}
		return key, nil
	}
	key, err := x509.ParsePKIXPublicKey(it.der)
	if err != nil {
		return nil, notKey("a public key that is damaged or of a kind that is not supported")
	}
	return key, nil
}

// ParsePrivateKey returns the first of what [ParsePrivateKeys] returns.
func ParsePrivateKey(data, password []byte) (crypto.PrivateKey, error) {
	all, err := ParsePrivateKeys(data, password)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// ParsePrivateKeys reads all private keys of a file: a JWK, or PEM or DER of PKCS#8
// (also encrypted), PKCS#1 and SEC1, or PEM with the encryption that OpenSSL used
// before PKCS#8. In PEM, blocks of other kinds are passed over. A nil password
// means that none was given; one that is not needed is ignored.
//
// Without an error there is at least one key: an *rsa.PrivateKey, an
// *ecdsa.PrivateKey or another kind that crypto/x509 knows. Errors wrap
// [ErrPassword] if the password is missing or wrong, else [ErrNotKey], and never
// contain any part of data or password.
func ParsePrivateKeys(data, password []byte) ([]crypto.PrivateKey, error) {
	data = bytes.TrimPrefix(data, byteOrderMark())
	if isJSON(data) {
		key, err := parseJWKPrivate(data)
		if err != nil {
			return nil, err
		}
		return []crypto.PrivateKey{key}, nil
	}
	var private []crypto.PrivateKey
	all := items(data)
	for _, it := range all {
		if !it.form.private() {
			continue
		}
		key, err := parsePrivate(it, password)
		if err != nil {
			return nil, err
		}
		private = append(private, key)
	}
	if len(private) == 0 {
		return nil, notPrivate(data, all)
	}
	return private, nil
}

func parsePrivate(it item, password []byte) (crypto.PrivateKey, error) {
	switch it.form {
	case formEncrypted:
		der, err := decryptPKCS8(it.der, password)
		if err != nil {
			return nil, err
		}
		return parsePlain(formPKCS8, der)
	case formLegacy:
		return parseLegacy(it.block, password)
	}
	return parsePlain(it.form, it.der)
}

// parseLegacy decrypts what OpenSSL wrote before PKCS#8, where only the padding
// tells a wrong password; by chance it looks right in one case of 256.
func parseLegacy(block *pem.Block, password []byte) (crypto.PrivateKey, error) {
	if password == nil {
		return nil, errNoPassword()
	}
	//lint:ignore SA1019 it is weak, and yet what old keys are encrypted with.
	der, err := x509.DecryptPEMBlock(block, password)
	if err == x509.IncorrectPasswordError {
		return nil, errWrongPassword()
	}
	if err != nil {
		return nil, notKey("an encrypted private key that is damaged or of a kind that is not supported")
	}
	form := formOf(der)
	if !form.private() || form == formEncrypted {
		return nil, errWrongPassword()
	}
	return parsePlain(form, der)
}

// maxRSABits bounds RSA keys, because the work that they cause grows with the
// third power of their size.
const maxRSABits = 16384

func parsePlain(form form, der []byte) (crypto.PrivateKey, error) {
	var key crypto.PrivateKey
	var err error
	switch form {
	case formPKCS8:
		var info struct {
			Version   int
			Algorithm struct {
				OID        asn1.ObjectIdentifier
				Parameters asn1.RawValue `asn1:"optional"`
			}
			Key []byte
		}
		if _, err := asn1.Unmarshal(der, &info); err != nil {
			return nil, notKey("a damaged private key")
		}
		if formOf(info.Key) == formPKCS1 && oversized(info.Key) {
			return nil, errOversized()
		}
		key, err = x509.ParsePKCS8PrivateKey(der)
		der = info.Key
	case formPKCS1:
		if oversized(der) {
			return nil, errOversized()
		}
		key, err = x509.ParsePKCS1PrivateKey(der)
	case formSEC1:
		key, err = x509.ParseECPrivateKey(der)
	}
	if err != nil || key == nil {
		return nil, notKey("a private key that is damaged or of a kind that is not supported")
	}
	if ec, ok := key.(*ecdsa.PrivateKey); ok && !consistent(ec, der) {
		return nil, notKey("a damaged private key: its public and private halves do not belong together")
	}
	return key, nil
}

// consistent compares key with the public half that its SEC1 form may carry, which
// crypto/x509 passes over. Without this a damaged key would pass for another one.
func consistent(key *ecdsa.PrivateKey, sec1 []byte) bool {
	var parts []asn1.RawValue
	if _, err := asn1.Unmarshal(sec1, &parts); err != nil || len(parts) < 2 {
		return false
	}
	var public asn1.BitString
	for _, part := range parts[2:] {
		switch {
		case part.Class != asn1.ClassContextSpecific || part.Tag > 1:
			return false
		case part.Tag == 1:
			if _, err := asn1.Unmarshal(part.Bytes, &public); err != nil {
				return false
			}
		}
	}
	got := public.Bytes
	if len(got) == 0 {
		return true
	}
	want, err := key.PublicKey.Bytes()
	if err != nil {
		return false
	}
	if len(got) < len(want) {
		// Compressed: a byte for the sign of y, then x.
		return len(got) == 1+len(want)/2 && bytes.Equal(got[1:], want[1:len(got)])
	}
	return bytes.Equal(got, want)
}

// byteOrderMark begins text files that Windows tools wrote.
func byteOrderMark() []byte { return []byte("\xef\xbb\xbf") }

// oversized looks at the lengths of the numbers in a PKCS#1 private key, before
// anything calculates with them.
func oversized(der []byte) bool {
	var numbers []asn1.RawValue
	if _, err := asn1.Unmarshal(der, &numbers); err != nil {
		return false
	}
	for _, n := range numbers {
		if len(n.Bytes) > maxRSABits/8+1 {
			return true
		}
	}
	return false
}

func errOversized() error { return notKey("an RSA key of more than %d bits", maxRSABits) }

func notKey(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrNotKey}, args...)...)
}

func errNoPassword() error {
	return fmt.Errorf("it is encrypted: give its %w as KEY:file=PATH, :fd=N or :pass=PASSWORD", ErrPassword)
}

func errWrongPassword() error {
	return fmt.Errorf("wrong %w (or a damaged file)", ErrPassword)
}

// kindOf names a key's kind for errors.
func kindOf(key any) string {
	switch k := key.(type) {
	case *rsa.PrivateKey, *rsa.PublicKey:
		return "an RSA key"
	case *ecdsa.PrivateKey:
		return "an EC key of curve " + k.Curve.Params().Name
	case *ecdsa.PublicKey:
		return "an EC key of curve " + k.Curve.Params().Name
	case ed25519.PrivateKey, ed25519.PublicKey:
		return "an Ed25519 key"
	case *ecdh.PrivateKey, *ecdh.PublicKey:
		return "an X25519 key"
	}
	return "a key of this kind"
}
