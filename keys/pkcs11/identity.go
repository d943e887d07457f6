package pkcs11

import (
	"context"
	"fmt"

	"imgcrypt/internal/tokenproto"
	"imgcrypt/keys"
	"imgcrypt/layer"
)

// Identity is the holder of a key on a token.
type Identity struct{ token *token }

// Name implements [keys.Named].
func (id *Identity) Name() string { return id.token.label }

// Unwrap implements [keys.Identity]. If there is a packet of this scheme, the token is asked about all of them in one
// operation, those first that name its key. If none opens, the error is a [*DamagedError] if one names it; else it
// wraps [layer.ErrMalformed] if a packet is not what it should be; else it is [keys.ErrNoMatch]. If the token could not
// be asked, it is a [*TokenError]. After a token has refused the PIN, it is not given it again.
func (id *Identity) Unwrap(ctx context.Context, packets []layer.Packet) ([]byte, error) {
	blobs, bad := collect(packets)
	if len(blobs) > 0 {
		answer, err := id.token.ask(ctx, tokenproto.Unwrap, blobs)
		if err != nil {
			return nil, err
		}
		switch answer.Reason {
		case "":
			return answer.Secret, nil
		case tokenproto.Damaged:
			return nil, &DamagedError{KeyID: tokenproto.KeyID(answer.Modulus, answer.Exponent)}
		}
	}
	switch n := len(bad); n {
	case 0:
		return nil, keys.ErrNoMatch
	case 1:
		return nil, bad[0]
	default:
		return nil, fmt.Errorf("%w (and %d more such packets or recipients)", bad[0], n-1)
	}
}

// collect returns what can be tried, and what is wrong with the rest. The number of recipients is bounded, since each
// costs the token an operation.
func collect(packets []layer.Packet) (blobs []tokenproto.Blob, bad []error) {
	for _, p := range packets {
		if p.Scheme != Name {
			continue
		}
		all, err := parse(p.Data)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		if len(blobs)+len(all) > tokenproto.MaxBlobs {
			bad = append(bad, malformed("more than %d recipients", tokenproto.MaxBlobs))
			continue
		}
		for _, r := range all {
			blob, err := r.blob()
			if err != nil {
				bad = append(bad, err)
				continue
			}
			blobs = append(blobs, blob)
		}
	}
	return blobs, bad
}

// Parameters implements [keys.Portable]: the key file with the PIN in it, and the configuration of modules if there
// is one.
func (id *Identity) Parameters() (keys.Parameters, error) { return id.token.parameters() }
