package pkcs7_test

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"slices"
	"testing"
)

// What follows writes packets that no tool writes.

func marshal(t testing.TB, v any) asn1.RawValue {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return asn1.RawValue{FullBytes: der}
}

func implicit(tag int, constructed bool, body []byte) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: constructed, Bytes: body}
}

func rsaEncryption() pkix.AlgorithmIdentifier {
	return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}}
}

// buildRecipient names a certificate by issuer, which is DER, and serial.
func buildRecipient(t testing.TB, issuer []byte, serial *big.Int, key []byte) asn1.RawValue {
	t.Helper()
	return marshal(t, struct {
		Version int
		ID      struct {
			Issuer asn1.RawValue
			Serial *big.Int
		}
		Algorithm pkix.AlgorithmIdentifier
		Key       []byte
	}{
		ID: struct {
			Issuer asn1.RawValue
			Serial *big.Int
		}{asn1.RawValue{FullBytes: issuer}, serial},
		Algorithm: rsaEncryption(), Key: key,
	})
}

// buildName is a name of one attribute per RDN.
func buildName(t testing.TB, attributes ...pkix.AttributeTypeAndValue) []byte {
	t.Helper()
	var rdns pkix.RDNSequence
	for _, a := range attributes {
		rdns = append(rdns, pkix.RelativeDistinguishedNameSET{a})
	}
	return marshal(t, rdns).FullBytes
}

func commonName(name string) pkix.AttributeTypeAndValue {
	return pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: name}
}

// buildElement writes DER of whatever there is in it.
func buildElement(tag byte, parts ...[]byte) []byte {
	body := slices.Concat(parts...)
	header := []byte{tag, 0x84, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(header[2:], uint32(len(body)))
	return append(header, body...)
}

// buildPacket encrypts nothing: its content is content, of AES-256-GCM if algorithm is nil.
func buildPacket(t testing.TB, algorithm *pkix.AlgorithmIdentifier, content []byte, recipients ...asn1.RawValue) []byte {
	t.Helper()
	if algorithm == nil {
		algorithm = &pkix.AlgorithmIdentifier{
			Algorithm: asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 46},
			Parameters: marshal(t, struct {
				Nonce  []byte
				ICVLen int
			}{make([]byte, 12), 16}),
		}
	}
	return buildEnvelope(t, recipients, struct {
		Type      asn1.ObjectIdentifier
		Algorithm pkix.AlgorithmIdentifier
		Content   asn1.RawValue
	}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}, *algorithm, implicit(0, false, content)})
}

func buildEnvelope(t testing.TB, recipients []asn1.RawValue, content any) []byte {
	t.Helper()
	enveloped := marshal(t, struct {
		Version    int
		Recipients []asn1.RawValue `asn1:"set"`
		Content    any
	}{2, recipients, content})
	return marshal(t, struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue
	}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}, implicit(0, true, enveloped.FullBytes)}).FullBytes
}
