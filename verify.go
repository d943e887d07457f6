package imgcrypt

import (
	"context"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

// VerifyLayers reads every encrypted layer among layers, which are those of one
// manifest, and checks its digest, its length and its MAC. Nothing is stored. The
// first that fails is the error, a [*LayerError] that wraps layer.ErrTampered,
// keys.ErrNoKey or what else kept it from being checked.
func VerifyLayers(ctx context.Context, s Store, layers []ocispec.Descriptor, ids []keys.Identity) error {
	for i, desc := range layers {
		if !layer.IsEncrypted(desc.MediaType) {
			continue
		}
		if err := verifyLayer(ctx, s, desc, ids); err != nil {
			return &LayerError{Index: i, Digest: desc.Digest, Platform: desc.Platform, Err: err}
		}
	}
	return nil
}

func verifyLayer(ctx context.Context, s Store, desc ocispec.Descriptor, ids []keys.Identity) error {
	secret, err := keys.Open(ctx, ids, desc.Annotations)
	if err != nil {
		return err
	}
	r, plain, err := openSealed(ctx, s, desc, desc.Platform, secret)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = plain.WriteTo(io.Discard)
	return err
}

// openSealed opens a layer's blob, for the caller to close, and a reader of its
// plain bytes that ends with an error unless digest, length and MAC are right.
func openSealed(ctx context.Context, s Store, desc ocispec.Descriptor, p *ocispec.Platform, secret layer.Secret) (io.Closer, *layer.Opener, error) {
	public, err := layer.ParsePublic(desc.Annotations)
	if err != nil {
		return nil, nil, err
	}
	r, err := openBlob(ctx, s, desc, p)
	if err != nil {
		return nil, nil, err
	}
	sealed := newVerifier(r, desc)
	sealed.also = layer.ErrTampered
	plain, err := layer.NewOpener(sealed, secret, public, desc.Size)
	if err != nil {
		r.Close()
		return nil, nil, err
	}
	return r, plain, nil
}
