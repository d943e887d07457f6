package jwe

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

// Identity is the holder of one or more private keys.
type Identity struct {
	name string
	keys []privateKey
}

type privateKey struct {
	id  string
	key crypto.PrivateKey
}

// NewIdentity returns the identity with these private keys, called name in errors.
// Keys that are neither RSA nor EC of a supported curve are passed over. If that
// leaves none, the error wraps [keys.ErrNoMatch].
func NewIdentity(name string, private ...crypto.PrivateKey) (*Identity, error) {
	id := &Identity{name: name}
	for _, key := range private {
		if kid, ok := usable(key); ok {
			id.keys = append(id.keys, privateKey{id: kid, key: key})
		}
	}
	if len(id.keys) == 0 {
		return nil, keys.ErrNoMatch
	}
	return id, nil
}

// Name implements [keys.Named].
func (id *Identity) Name() string { return id.name }

// DamagedError means that a packet names a key by its thumbprint but does not open
// with it: the packet was damaged or forged. It wraps [layer.ErrMalformed].
type DamagedError struct {
	// KeyID is the thumbprint.
	KeyID string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("damaged jwe packet: it names key %s but does not open with it", e.KeyID)
}

// Unwrap returns [layer.ErrMalformed].
func (e *DamagedError) Unwrap() error { return layer.ErrMalformed }

// maxRecipients bounds the recipients of a layer. Each of them costs every key that
// is tried an operation, and one is written in some fifty bytes.
const maxRecipients = 1024

// candidate is one packet, taken apart.
type candidate struct {
	obj  *jose.JSONWebEncryption
	kids []string
}

// Unwrap implements [keys.Identity]. Packets that name one of the identity's keys are
// tried first. If none opens, the error is a [*DamagedError] if such a packet was
// among them; else it wraps [layer.ErrMalformed] if a packet is no JWE or one of a
// kind that is not supported; else it is [keys.ErrNoMatch].
func (id *Identity) Unwrap(ctx context.Context, packets []layer.Packet) ([]byte, error) {
	var first, rest []candidate
	var malformed []error
	recipients := 0
	for _, p := range packets {
		if p.Scheme != Name {
			continue
		}
		c := candidate{kids: keyIDs(p.Data)}
		if recipients+len(c.kids) > maxRecipients {
			malformed = append(malformed, fmt.Errorf("jwe packet: %w: more than %d recipients", layer.ErrMalformed, maxRecipients))
			continue
		}
		recipients += len(c.kids)
		var err error
		if c.obj, err = parse(p.Data); err != nil {
			malformed = append(malformed, err)
			continue
		}
		if id.named(c.kids) != "" {
			first = append(first, c)
		} else {
			rest = append(rest, c)
		}
	}
	for _, c := range slices.Concat(first, rest) {
		for _, k := range id.keys {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if _, _, secret, err := c.obj.DecryptMulti(k.key); err == nil {
				return secret, nil
			}
		}
	}
	if len(first) > 0 {
		return nil, &DamagedError{KeyID: id.named(first[0].kids)}
	}
	switch n := len(malformed); n {
	case 0:
	case 1:
		return nil, malformed[0]
	default:
		return nil, fmt.Errorf("%w (and %d more such packets)", malformed[0], n-1)
	}
	return nil, keys.ErrNoMatch
}

// named returns the first of kids that is one of the identity's keys.
func (id *Identity) named(kids []string) string {
	for _, kid := range kids {
		if slices.ContainsFunc(id.keys, func(k privateKey) bool { return k.id == kid }) {
			return kid
		}
	}
	return ""
}

// Parameters implements [keys.Portable]: the private keys as PKCS#8, not encrypted.
func (id *Identity) Parameters() (keys.Parameters, error) {
	params := make(keys.Parameters)
	for _, k := range id.keys {
		der, err := x509.MarshalPKCS8PrivateKey(k.key)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", id.name, keys.ErrNotKey, err)
		}
		params.Merge(keys.Parameters{keys.ParamPrivateKeys: {der}})
	}
	return params, nil
}
