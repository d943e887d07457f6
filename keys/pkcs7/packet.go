package pkcs7

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"

	"imgcrypt/layer"
)

// The object identifiers of RFC 5652 and RFC 8017.
const (
	oidData          = "1.2.840.113549.1.7.1"
	oidEnvelopedData = "1.2.840.113549.1.7.3"
	oidRSA           = "1.2.840.113549.1.1.1"
	oidRSAOAEP       = "1.2.840.113549.1.1.7"
)

// contentInfo and what follows are RFC 5652, sections 3 and 6.
type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"explicit,optional,tag:0"`
}

type envelopedData struct {
	Version    int
	Originator asn1.RawValue   `asn1:"optional,tag:0"`
	Recipients []asn1.RawValue `asn1:"set"`
	Content    encryptedContentInfo
}

type encryptedContentInfo struct {
	Type      asn1.ObjectIdentifier
	Algorithm pkix.AlgorithmIdentifier
	Content   asn1.RawValue `asn1:"optional,tag:0"`
}

type keyTransRecipientInfo struct {
	Version   int
	ID        asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Key       []byte
}

type issuerAndSerial struct {
	Issuer asn1.RawValue
	Serial *big.Int
}

// envelope is a packet, taken apart.
type envelope struct {
	recipients []recipientInfo
	content    content
}

// recipientInfo says for whom a content key was encrypted, and how.
type recipientInfo struct {
	// issuer, a DER name, and serial are those of the certificate; or keyID is its
	// subject key identifier.
	issuer []byte
	serial *big.Int
	keyID  []byte
	// algorithm and key are empty if the recipient's is no RSA key.
	algorithm pkix.AlgorithmIdentifier
	key       []byte
}

// names says whether cert is the recipient's.
func (r recipientInfo) names(cert *x509.Certificate) bool {
	if r.serial != nil {
		return r.serial.Cmp(cert.SerialNumber) == 0 && bytes.Equal(r.issuer, cert.RawIssuer)
	}
	return len(r.keyID) > 0 && bytes.Equal(r.keyID, cert.SubjectKeyId)
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("pkcs7 packet: %w: "+format, append([]any{layer.ErrMalformed}, args...)...)
}

// parse takes a packet apart. Its errors wrap [layer.ErrMalformed].
func parse(data []byte) (*envelope, error) {
	der, rest, err := normalize(data, 0)
	if err != nil || len(rest) > 0 {
		return nil, malformed("no CMS")
	}
	var info contentInfo
	if rest, err := asn1.Unmarshal(der, &info); err != nil || len(rest) > 0 {
		return nil, malformed("no CMS")
	}
	if info.Type.String() != oidEnvelopedData {
		return nil, malformed("CMS of a type that is not supported (%.60s)", info.Type)
	}
	var enveloped envelopedData
	if rest, err := asn1.Unmarshal(info.Content.Bytes, &enveloped); err != nil || len(rest) > 0 {
		return nil, malformed("damaged EnvelopedData")
	}
	env := new(envelope)
	if env.content, err = parseContent(enveloped.Content); err != nil {
		return nil, err
	}
	for _, raw := range enveloped.Recipients {
		r, err := parseRecipientInfo(raw)
		if err != nil {
			return nil, err
		}
		env.recipients = append(env.recipients, r)
	}
	return env, nil
}

// parseRecipientInfo takes the kinds without an RSA key for recipients of whom nothing is known.
func parseRecipientInfo(raw asn1.RawValue) (recipientInfo, error) {
	if raw.Class == asn1.ClassContextSpecific {
		return recipientInfo{}, nil
	}
	var info keyTransRecipientInfo
	if rest, err := asn1.Unmarshal(raw.FullBytes, &info); err != nil || len(rest) > 0 {
		return recipientInfo{}, malformed("a damaged recipient")
	}
	r := recipientInfo{algorithm: info.Algorithm, key: info.Key}
	if info.ID.Class == asn1.ClassContextSpecific && info.ID.Tag == 0 {
		r.keyID = info.ID.Bytes
		return r, nil
	}
	var id issuerAndSerial
	if rest, err := asn1.Unmarshal(info.ID.FullBytes, &id); err != nil || len(rest) > 0 {
		return recipientInfo{}, malformed("a damaged recipient")
	}
	r.issuer, r.serial = id.Issuer.FullBytes, id.Serial
	return r, nil
}

// seal returns the packet with secret in it for the holder of cert, whose key is key.
func seal(cert *x509.Certificate, key *rsa.PublicKey, secret []byte) ([]byte, error) {
	contentKey := make([]byte, sealKeySize)
	rand.Read(contentKey)
	//lint:ignore SA1019 other tools open no other padding.
	wrapped, err := rsa.EncryptPKCS1v15(rand.Reader, key, contentKey)
	if err != nil {
		return nil, err
	}
	content, err := sealContent(contentKey, secret)
	if err != nil {
		return nil, err
	}
	id, err := asn1.Marshal(issuerAndSerial{Issuer: asn1.RawValue{FullBytes: cert.RawIssuer}, Serial: cert.SerialNumber})
	if err != nil {
		return nil, err
	}
	info, err := asn1.Marshal(keyTransRecipientInfo{
		ID:        asn1.RawValue{FullBytes: id},
		Algorithm: pkix.AlgorithmIdentifier{Algorithm: oid(oidRSA)},
		Key:       wrapped,
	})
	if err != nil {
		return nil, err
	}
	body, err := asn1.Marshal(struct {
		Version    int
		Recipients []asn1.RawValue `asn1:"set"`
		Content    encryptedContentInfo
	}{Recipients: []asn1.RawValue{{FullBytes: info}}, Content: content})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(contentInfo{
		Type:    oid(oidEnvelopedData),
		Content: asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: body},
	})
}
