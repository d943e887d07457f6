package imgcrypt

import (
	"context"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

// AuthorizeLayers unwraps the secret of every encrypted layer among layers, which
// are those of one manifest. The first that does not open is the error, a
// [*LayerError]; layers without any encrypted one need no identity.
func AuthorizeLayers(ctx context.Context, layers []ocispec.Descriptor, ids []keys.Identity) error {
	for i, desc := range layers {
		if !layer.IsEncrypted(desc.MediaType) {
			continue
		}
		if _, err := keys.Open(ctx, ids, desc.Annotations); err != nil {
			return &LayerError{Index: i, Digest: desc.Digest, Platform: desc.Platform, Err: err}
		}
	}
	return nil
}
