// Package pkcs7 wraps layer secrets as CMS EnvelopedData (RFC 5652), for the holders of
// X.509 certificates with RSA keys.
//
// A packet written here has one recipient, named by the issuer and the serial number of
// the certificate. Its content is encrypted with AES-128-GCM, its key with RSA, padded as
// PKCS #1 v1.5 asks for: what every version of ocicrypt opens, and nothing else is. Packets
// of others may have any number of recipients, RSA-OAEP, and AES-GCM with longer keys. Content
// in CBC mode is not read: it has no check against changes, so whether a packet that somebody
// changed opens would tell them, bit by bit, the secret of a layer.
//
// A certificate carries a key here and vouches for nothing: neither who signed it nor what
// it is meant for is looked at, and one that has expired is worth a warning. Opening takes
// the private key only. Its certificates, where they are given too, decide which recipients
// are tried first, and what is a damaged packet rather than somebody else's.
package pkcs7

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"imgcrypt/keys"
)

// Name is the scheme's name.
const Name = "pkcs7"

// Scheme returns the scheme.
func Scheme() keys.Scheme {
	return keys.Scheme{
		Name:       Name,
		Recipient:  recipient,
		Recipients: recipients,
		Identity:   identity,
		Describe:   Describe,
	}
}

// recipient reads a file of a certificate, which may be followed by its chain.
func recipient(_ context.Context, path string, files *keys.Files) (keys.Recipient, error) {
	data, err := files.Read(path)
	if err != nil {
		return nil, err
	}
	return parseRecipient(path, data)
}

// recipients reads ocicrypt's parameters.
func recipients(_ context.Context, params keys.Parameters) ([]keys.Recipient, error) {
	var all []keys.Recipient
	for _, k := range params.Keys(keys.ParamCertificates, "") {
		r, err := parseRecipient(k.Label, k.Data)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

func parseRecipient(label string, data []byte) (keys.Recipient, error) {
	chain, err := keys.ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", label, err)
	}
	for i, cert := range chain[1:] {
		if !bytes.Equal(chain[i].RawIssuer, cert.RawSubject) {
			return nil, fmt.Errorf("%s: %w: several certificates that are no chain: give each in a file of its own", label, keys.ErrNotKey)
		}
	}
	r, err := NewRecipient(label, chain[0])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", label, err)
	}
	return r, nil
}

// identity reads a private-key file, and the certificates in it. Keys that are not RSA
// are passed over, unless there is no other.
func identity(key keys.Key) (keys.Identity, error) {
	all, err := keys.ParsePrivateKeys(key.Data, key.Password)
	if errors.Is(err, keys.ErrNotKey) {
		return nil, keys.ErrNoMatch
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key.Label, err)
	}
	// One that cannot be read is no reason to refuse the key, which opens without it.
	own, _ := keys.ParseCertificates(key.Data)
	return NewIdentity(key.Label, slices.Concat(own, key.Certificates), all...)
}
