package pkcs7

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"time"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

// MinRSABits is the size of the smallest RSA key that is encrypted for. Smaller
// ones still open what others encrypted.
const MinRSABits = 2048

// maxRSABits bounds the work of one packet.
const maxRSABits = 16384

// Recipient is the holder of one certificate's private key.
type Recipient struct {
	name string
	cert *x509.Certificate
	key  *rsa.PublicKey
}

// NewRecipient returns the recipient with this certificate, called name in warnings. Its
// key must be an RSA key of at least [MinRSABits]. Errors wrap [keys.ErrNotKey].
func NewRecipient(name string, cert *x509.Certificate) (*Recipient, error) {
	switch k := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < MinRSABits || n > maxRSABits {
			return nil, fmt.Errorf("%w: a certificate of an RSA key of %d bits cannot be encrypted for (%d to %d can)", keys.ErrNotKey, n, MinRSABits, maxRSABits)
		}
		r := &Recipient{name: name, cert: cert, key: k}
		// Some keys are only found to be impossible when they are used, and that
		// must not be after a layer was encrypted.
		if _, err := seal(r.cert, r.key, nil); err != nil {
			return nil, fmt.Errorf("%w: nothing can be encrypted for it", keys.ErrNotKey)
		}
		return r, nil
	case *ecdsa.PublicKey:
		return nil, fmt.Errorf("%w: a certificate of an EC key cannot be encrypted for with pkcs7, only RSA can (jwe takes EC keys)", keys.ErrNotKey)
	}
	return nil, fmt.Errorf("%w: a certificate of a key of this kind cannot be encrypted for (RSA can)", keys.ErrNotKey)
}

// Wrap implements [keys.Recipient].
func (r *Recipient) Wrap(ctx context.Context, secret []byte) (layer.Packet, error) {
	if err := ctx.Err(); err != nil {
		return layer.Packet{}, err
	}
	data, err := seal(r.cert, r.key, secret)
	if err != nil {
		return layer.Packet{}, fmt.Errorf("encrypting for pkcs7 certificate %s: %w", r.name, err)
	}
	return layer.Packet{Scheme: Name, Data: data}, nil
}

// Owns implements [keys.Owner]: one of the packet's recipients is the certificate. Packets of
// other tools may have more recipients than this one, so to own a packet is to be able to open
// it, not to be the only one who is. A certificate that was renewed is another recipient.
func (r *Recipient) Owns(p layer.Packet) bool {
	if p.Scheme != Name {
		return false
	}
	env, err := parse(p.Data)
	if err != nil {
		return false
	}
	for _, info := range env.recipients {
		if info.names(r.cert) {
			return true
		}
	}
	return false
}

// Caution implements [keys.Cautioned]: the certificate has expired, or is not valid yet.
func (r *Recipient) Caution() error {
	switch now := time.Now(); {
	case now.After(r.cert.NotAfter):
		return fmt.Errorf("%s: the certificate expired at %s; it is used all the same", r.name, r.cert.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(r.cert.NotBefore):
		return fmt.Errorf("%s: the certificate is not valid before %s; it is used all the same", r.name, r.cert.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// Parameters implements [keys.Portable]: the certificate as DER.
func (r *Recipient) Parameters() (keys.Parameters, error) {
	return keys.Parameters{keys.ParamCertificates: {bytes.Clone(r.cert.Raw)}}, nil
}
