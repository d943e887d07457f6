// Package jwe wraps layer secrets as JSON Web Encryption (RFC 7516), for RSA keys
// and EC keys of the curves P-256, P-384 and P-521.
//
// A packet is one JWE in its JSON serialisation, for one recipient when it is
// written here, for any number when others wrote it. Its content is encrypted with
// A256GCM, its key with RSA-OAEP or ECDH-ES+A256KW, or what a JWK's own "alg" asks
// for. Every packet written here names its recipient by "kid", the RFC 7638 SHA-256
// thumbprint of the public key, base64url without padding, so that people can see who
// can open a layer. Packets of other tools name nobody or somebody in a way of their
// own, so a "kid" only decides what is tried first, never what is not tried.
package jwe

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.SHA256
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	"imgcrypt/keys"
)

// Name is the scheme's name.
const Name = "jwe"

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

// recipient reads a public-key file.
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
	for _, k := range params.Keys(keys.ParamPublicKeys, "") {
		r, err := parseRecipient(k.Label, k.Data)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

func parseRecipient(label string, data []byte) (keys.Recipient, error) {
	key, err := keys.ParsePublicKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", label, err)
	}
	r, err := NewRecipient(key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", label, err)
	}
	return r, nil
}

// identity reads a private-key file. Keys of kinds that the scheme does not know
// are passed over, unless there is no other.
func identity(key keys.Key) (keys.Identity, error) {
	all, err := keys.ParsePrivateKeys(key.Data, key.Password)
	if errors.Is(err, keys.ErrNotKey) {
		return nil, keys.ErrNoMatch
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key.Label, err)
	}
	return NewIdentity(key.Label, all...)
}

// thumbprint returns the key id of a public or private key.
func thumbprint(key any) (string, error) {
	sum, err := (&jose.JSONWebKey{Key: key}).Thumbprint(crypto.SHA256)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// supportedCurve says whether JWE has a name for a curve.
func supportedCurve(c elliptic.Curve) bool {
	return c == elliptic.P256() || c == elliptic.P384() || c == elliptic.P521()
}

// usable returns the id of a private key that can open packets.
func usable(key crypto.PrivateKey) (id string, ok bool) {
	switch k := key.(type) {
	case *rsa.PrivateKey:
	case *ecdsa.PrivateKey:
		if !supportedCurve(k.Curve) {
			return "", false
		}
	default:
		return "", false
	}
	id, err := thumbprint(key)
	return id, err == nil
}
