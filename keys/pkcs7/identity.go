package pkcs7

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

// Identity is the holder of one or more private keys.
type Identity struct {
	name  string
	keys  []*rsa.PrivateKey
	certs []*x509.Certificate // those of keys
}

// NewIdentity returns the identity with these private keys, called name in errors. Keys
// that are not RSA are passed over, and so are certificates that belong to none of the
// keys. If no key is left, the error wraps [keys.ErrNoMatch].
func NewIdentity(name string, certs []*x509.Certificate, private ...crypto.PrivateKey) (*Identity, error) {
	id := &Identity{name: name}
	for _, key := range private {
		if k, ok := key.(*rsa.PrivateKey); ok {
			id.keys = append(id.keys, k)
		}
	}
	if len(id.keys) == 0 {
		return nil, keys.ErrNoMatch
	}
	for _, cert := range certs {
		mine := slices.ContainsFunc(id.keys, func(k *rsa.PrivateKey) bool { return keys.IsCertificateOf(cert, k) })
		if mine && !slices.ContainsFunc(id.certs, cert.Equal) {
			id.certs = append(id.certs, cert)
		}
	}
	return id, nil
}

// Name implements [keys.Named].
func (id *Identity) Name() string { return id.name }

// DamagedError means that a packet names a certificate of a key but does not open with the
// key: the packet was damaged or forged. It wraps [layer.ErrMalformed].
type DamagedError struct {
	// Certificate is the certificate as [Describe] prints it.
	Certificate string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("damaged pkcs7 packet: it names the certificate %s but does not open with its key", e.Certificate)
}

// Unwrap returns [layer.ErrMalformed].
func (e *DamagedError) Unwrap() error { return layer.ErrMalformed }

// maxTried bounds the recipients of a layer that are tried: those that a certificate of the
// identity names, and as many others. Each of them costs every key an operation.
const maxTried = 64

// candidate is one recipient of a packet.
type candidate struct {
	env  *envelope
	info recipientInfo
}

// Unwrap implements [keys.Identity]. Recipients that are named by a certificate of the
// identity's keys are tried first, then others whose keys have the length of one of the
// identity's, since the certificate may not be known; of each kind 64 at most.
// If none opens, the error is a [*DamagedError] if there was such a recipient; else it wraps
// [layer.ErrMalformed] if a packet cannot be read or is of a kind that is not supported; else
// it is [keys.ErrNoMatch].
func (id *Identity) Unwrap(ctx context.Context, packets []layer.Packet) ([]byte, error) {
	first, rest, failed := id.candidates(packets)
	if len(first) > maxTried {
		first = first[:maxTried]
		failed = append(failed, malformed("more than %d recipients of the name of this key's certificate", maxTried))
	}
	if len(rest) > maxTried {
		rest = rest[:maxTried]
		failed = append(failed, malformed("more than %d recipients that may be this key (its certificate would tell)", maxTried))
	}
	all := slices.Concat(first, rest)
	var damaged *DamagedError
	for i, c := range all {
		secret, err := id.open(ctx, c)
		switch named := i < len(first); {
		case err == nil:
			return secret, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case named && errors.Is(err, layer.ErrMalformed):
			failed = append(failed, err)
		case named && damaged == nil:
			damaged = &DamagedError{Certificate: c.info.String()}
		}
	}
	if damaged != nil {
		return nil, damaged
	}
	switch n := len(failed); n {
	case 0:
	case 1:
		return nil, failed[0]
	default:
		return nil, fmt.Errorf("%w (and %d more such packets)", failed[0], n-1)
	}
	return nil, keys.ErrNoMatch
}

// candidates returns the recipients of all packets that may be this identity: those that
// are by name, and the others. failed are the packets that cannot be read.
func (id *Identity) candidates(packets []layer.Packet) (first, rest []candidate, failed []error) {
	for _, p := range packets {
		if p.Scheme != Name {
			continue
		}
		env, err := parse(p.Data)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		for _, info := range env.recipients {
			c := candidate{env: env, info: info}
			switch {
			case slices.ContainsFunc(id.certs, info.names):
				first = append(first, c)
			case slices.ContainsFunc(id.keys, info.fits):
				rest = append(rest, c)
			}
		}
	}
	return first, rest, failed
}

// fits says whether what was encrypted for r has the length that key makes. It spares
// most operations with keys that cannot be the right ones.
func (r recipientInfo) fits(key *rsa.PrivateKey) bool { return len(r.key) == key.Size() }

// open tries all keys.
func (id *Identity) open(ctx context.Context, c candidate) ([]byte, error) {
	failed := errClosed
	for _, key := range id.keys {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !c.info.fits(key) {
			continue
		}
		secret, err := c.env.open(c.info, key)
		if err == nil {
			return secret, nil
		}
		failed = err
	}
	return nil, failed
}

// Parameters implements [keys.Portable]: the private keys as PKCS#8, not encrypted, and
// their certificates as DER. Without a certificate ocicrypt opens nothing.
func (id *Identity) Parameters() (keys.Parameters, error) {
	params := make(keys.Parameters)
	for _, k := range id.keys {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", id.name, keys.ErrNotKey, err)
		}
		params.Merge(keys.Parameters{keys.ParamPrivateKeys: {der}})
	}
	for _, cert := range id.certs {
		params.Merge(keys.Parameters{keys.ParamCertificates: {slices.Clone(cert.Raw)}})
	}
	return params, nil
}
