package keys

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
)

// form is how a key or certificate is written.
type form int

const (
	formUnknown form = iota
	formPKIX
	formPKCS1Public
	formCertificate
	formPKCS8
	formPKCS1
	formSEC1
	formEncrypted // PKCS#8, encrypted
	formLegacy    // PEM with its own encryption
)

func (f form) private() bool { return f >= formPKCS8 }

// item is one PEM block, or a whole DER file.
type item struct {
	form  form
	der   []byte
	block *pem.Block // nil if the file is DER
}

// items takes data apart without parsing any key.
func items(data []byte) []item {
	if !bytes.Contains(data, []byte("-----BEGIN ")) {
		return []item{{form: formOf(data), der: data}}
	}
	var all []item
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return all
		}
		it := item{form: formOf(block.Bytes), der: block.Bytes, block: block}
		//lint:ignore SA1019 it is weak, and yet what old keys are encrypted with.
		if x509.IsEncryptedPEMBlock(block) {
			it.form = formLegacy
		}
		all = append(all, it)
	}
}

// formOf tells a form by the ASN.1 types of its first elements. PEM labels are not
// asked: not every tool writes the right one.
func formOf(der []byte) form {
	var parts []asn1.RawValue
	rest, err := asn1.Unmarshal(der, &parts)
	if err != nil || len(rest) > 0 || len(parts) < 2 {
		return formUnknown
	}
	is := func(i, tag int) bool {
		return i < len(parts) && parts[i].Class == asn1.ClassUniversal && parts[i].Tag == tag
	}
	n := len(parts)
	switch {
	case is(0, asn1.TagInteger) && is(1, asn1.TagInteger):
		if n == 2 {
			return formPKCS1Public
		}
		if n >= 9 {
			return formPKCS1
		}
	case is(0, asn1.TagInteger) && is(1, asn1.TagOctetString):
		return formSEC1
	case is(0, asn1.TagInteger) && is(1, asn1.TagSequence) && is(2, asn1.TagOctetString):
		return formPKCS8
	case is(0, asn1.TagSequence) && is(1, asn1.TagBitString) && n == 2:
		return formPKIX
	case is(0, asn1.TagSequence) && is(1, asn1.TagOctetString) && n == 2:
		return formEncrypted
	case is(0, asn1.TagSequence) && is(1, asn1.TagSequence) && is(2, asn1.TagBitString) && n == 3:
		return formCertificate
	}
	return formUnknown
}

// notPrivate says what data, which has no private key, is instead.
func notPrivate(data []byte, all []item) error {
	for _, it := range all {
		switch it.form {
		case formPKIX, formPKCS1Public:
			return errPublicGiven("a public key")
		case formCertificate:
			return errPublicGiven("a certificate")
		}
	}
	return notKey("%s", guess(data, all))
}

func errPublicGiven(what string) error {
	return notKey("it holds %s, and opening takes the private key that belongs to it", what)
}

// notPublic says what data, which has no public key, is instead.
func notPublic(data []byte, all []item) error {
	for _, it := range all {
		if it.form.private() {
			return errPrivateGiven()
		}
	}
	return notKey("%s", guess(data, all))
}

func errPrivateGiven() error {
	return notKey("it holds a private key, and a recipient is its public half (openssl pkey -pubout writes it)")
}

// guess says what data is that is neither of the forms.
func guess(data []byte, all []item) string {
	text := bytes.TrimSpace(data)
	has := func(prefix string) bool { return bytes.HasPrefix(text, []byte(prefix)) }
	switch {
	case len(text) == 0:
		return "an empty file"
	case bytes.Contains(text, []byte("-----BEGIN OPENSSH PRIVATE KEY-----")):
		return "a private key in OpenSSH's own format (ssh-keygen -p -m PEM converts it)"
	case has("ssh-rsa ") || has("ssh-ed25519 ") || has("ecdsa-sha2-"):
		return "a public key in OpenSSH's own format (ssh-keygen -e -m PKCS8 converts it)"
	case bytes.Contains(text, []byte("-----BEGIN PGP ")):
		return "an OpenPGP key"
	case isPKCS12(data):
		return "a PKCS#12 file (openssl pkcs12 -nodes converts it)"
	case bytes.Contains(text, []byte("-----BEGIN ")) && len(all) == 0:
		return "damaged PEM"
	case len(all) > 0 && all[0].block != nil:
		return fmt.Sprintf("PEM without a key (%.40q)", all[0].block.Type)
	}
	return "neither PEM, DER nor JWK"
}

// isPKCS12 tells a PKCS#12 file by its version and its content's type (RFC 7292).
func isPKCS12(data []byte) bool {
	var pfx struct {
		Version int
		Content struct {
			Type asn1.ObjectIdentifier
			Rest asn1.RawValue
		}
	}
	_, err := asn1.Unmarshal(data, &pfx)
	return err == nil && pfx.Version == 3 && pfx.Content.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1})
}
