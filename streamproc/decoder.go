package streamproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

// Decoder opens the layers that payloads are about.
type Decoder struct {
	// Schemes are the ways of wrapping a secret that it knows.
	Schemes []keys.Scheme
	// NodeKeys returns the node's own identities, and what is to be said about
	// key files that could not be used. It is called only for a layer that the
	// payload's keys do not open. nil: the node has none.
	NodeKeys func() (ids []keys.Identity, warnings []error)
	// Warn is told the warnings of NodeKeys, one at a time. nil: nobody is.
	Warn func(error)
}

// Open returns a reader of the plain bytes of the layer that p is about, whose
// ciphertext is sealed. The payload's keys are tried first, in their order, then
// the node's, then what needs no naming, see [keys.Fallbacks]; keys in the payload that cannot be used are told only if no other
// opens the layer. A layer that no key opens is an error that wraps
// [keys.ErrNoKey], one without a proper MAC wraps [layer.ErrTampered].
//
// The descriptor's media type plays no part: containerd's configuration has
// decided by it that the layer comes here, and what authenticates the layer is
// its MAC. A descriptor on which nothing is wrapped is one that no key opens.
func (d *Decoder) Open(ctx context.Context, p *Payload, sealed io.Reader) (*layer.Opener, error) {
	opener, err := d.open(ctx, p, sealed)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", name(p), err)
	}
	return opener, nil
}

// name is what errors call the payload's layer. The digest comes from the client
// and has not been checked.
func name(p *Payload) string {
	if p.Descriptor.Digest.Validate() != nil {
		return "without a digest"
	}
	return p.Descriptor.Digest.String()
}

func (d *Decoder) open(ctx context.Context, p *Payload, sealed io.Reader) (*layer.Opener, error) {
	secret, err := d.secret(ctx, p)
	if err != nil {
		return nil, err
	}
	public, err := layer.ParsePublic(p.Descriptor.Annotations)
	if err != nil {
		return nil, err
	}
	return layer.NewOpener(sealed, secret, public, p.Descriptor.Size)
}

// secret unwraps the layer's secret.
func (d *Decoder) secret(ctx context.Context, p *Payload) (layer.Secret, error) {
	annotations := p.Descriptor.Annotations
	sent, sentErr := keys.FromParameters(d.Schemes, p.DecryptConfig.Parameters)
	if sentErr != nil {
		sentErr = fmt.Errorf("keys in the payload: %w", sentErr)
	}
	var refused *keys.NoKeyError
	if len(sent) > 0 {
		secret, err := keys.Open(ctx, sent, annotations)
		// Only where it was the keys' fault can others do better.
		if !errors.As(err, &refused) {
			return secret, err
		}
	}
	own := d.nodeKeys()
	own = append(own, keys.Fallbacks(d.Schemes, slices.Concat(sent, own))...)
	secret, err := keys.Open(ctx, own, annotations)
	if err == nil {
		return secret, nil
	}
	var last *keys.NoKeyError
	if refused != nil && errors.As(err, &last) {
		err = &keys.NoKeyError{
			Attempts: append(refused.Attempts, last.Attempts...),
			Schemes:  last.Schemes,
			Damage:   last.Damage,
		}
	}
	return layer.Secret{}, errors.Join(sentErr, err)
}

func (d *Decoder) nodeKeys() []keys.Identity {
	if d.NodeKeys == nil {
		return nil
	}
	ids, warnings := d.NodeKeys()
	if d.Warn != nil {
		for _, w := range warnings {
			d.Warn(w)
		}
	}
	return ids
}
