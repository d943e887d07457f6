package jwe

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

// MinRSABits is the size of the smallest RSA key that is encrypted for. Smaller
// ones still open what others encrypted.
const MinRSABits = 2048

// Recipient is the holder of one public key.
type Recipient struct {
	id        string
	key       keys.PublicKey
	encrypter jose.Encrypter
}

// NewRecipient returns the recipient with this public key. If key.Algorithm is set,
// it must be one of RSA-OAEP, RSA-OAEP-256, ECDH-ES+A128KW, ECDH-ES+A192KW and
// ECDH-ES+A256KW, and fit the key. Errors wrap [keys.ErrNotKey].
func NewRecipient(key keys.PublicKey) (*Recipient, error) {
	alg, err := algorithm(key)
	if err != nil {
		return nil, err
	}
	id, err := thumbprint(key.Key)
	if err != nil {
		return nil, fmt.Errorf("%w: it has no thumbprint", keys.ErrNotKey)
	}
	e, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: alg, Key: key.Key, KeyID: id}, nil)
	if err == nil {
		// Some keys are only found to be impossible when they are used, and that
		// must not be after a layer was encrypted.
		_, err = e.Encrypt(nil)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: nothing can be encrypted for it", keys.ErrNotKey)
	}
	return &Recipient{id: id, key: key, encrypter: e}, nil
}

func algorithm(key keys.PublicKey) (jose.KeyAlgorithm, error) {
	var fit []jose.KeyAlgorithm // the first is the default
	switch k := key.Key.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < MinRSABits || n > maxRSABits {
			return "", fmt.Errorf("%w: an RSA key of %d bits cannot be encrypted for (%d to %d can)", keys.ErrNotKey, n, MinRSABits, maxRSABits)
		}
		fit = []jose.KeyAlgorithm{jose.RSA_OAEP, jose.RSA_OAEP_256}
	case *ecdsa.PublicKey:
		if !supportedCurve(k.Curve) {
			return "", fmt.Errorf("%w: an EC key of curve %s cannot be encrypted for (P-256, P-384 and P-521 can)", keys.ErrNotKey, k.Curve.Params().Name)
		}
		fit = []jose.KeyAlgorithm{jose.ECDH_ES_A256KW, jose.ECDH_ES_A192KW, jose.ECDH_ES_A128KW}
	default:
		return "", fmt.Errorf("%w: a key of this kind cannot be encrypted for (RSA and EC keys can)", keys.ErrNotKey)
	}
	if key.Algorithm == "" {
		return fit[0], nil
	}
	alg := jose.KeyAlgorithm(key.Algorithm)
	if !slices.Contains(fit, alg) {
		return "", fmt.Errorf("%w: its alg is %.40q, for a key of this kind it can be %q", keys.ErrNotKey, key.Algorithm, fit)
	}
	return alg, nil
}

// maxRSABits bounds the work of one packet.
const maxRSABits = 16384

// KeyID returns the "kid" in the recipient's packets.
func (r *Recipient) KeyID() string { return r.id }

// Wrap implements [keys.Recipient].
func (r *Recipient) Wrap(ctx context.Context, secret []byte) (layer.Packet, error) {
	if err := ctx.Err(); err != nil {
		return layer.Packet{}, err
	}
	obj, err := r.encrypter.Encrypt(secret)
	if err != nil {
		return layer.Packet{}, fmt.Errorf("encrypting for jwe key %s: %w", r.id, err)
	}
	return layer.Packet{Scheme: Name, Data: []byte(obj.FullSerialize())}, nil
}

// Owns implements [keys.Owner].
func (r *Recipient) Owns(p layer.Packet) bool {
	return p.Scheme == Name && slices.Contains(keyIDs(p.Data), r.id)
}

// Parameters implements [keys.Portable]: a PKIX public key or, where an algorithm is
// named, a JWK.
func (r *Recipient) Parameters() (keys.Parameters, error) {
	var data []byte
	var err error
	if r.key.Algorithm != "" {
		data, err = jose.JSONWebKey{Key: r.key.Key, Algorithm: r.key.Algorithm}.MarshalJSON()
	} else {
		data, err = x509.MarshalPKIXPublicKey(r.key.Key)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", keys.ErrNotKey, err)
	}
	return keys.Parameters{keys.ParamPublicKeys: {data}}, nil
}
