package encryption

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/keys"
	"imgcrypt/layer"
)

// ExplainUnpack returns failed, the error of unpacking the image desc for platform,
// with the reason that containerd may not have passed on. A decoder that finds a
// layer tampered ends its stream early; where that breaks containerd's own reader
// first, containerd says "unexpected EOF" and never asks the decoder. So this reads
// the encrypted layers and checks them with ids: a tampered one is named in
// the error, which then wraps layer.ErrTampered too. Without a key that opens the
// layers nothing is known beyond failed; a nil failed stays nil and nothing is read.
func ExplainUnpack(ctx context.Context, cs content.Store, desc ocispec.Descriptor, ids []keys.Identity, platform platforms.MatchComparer, failed error) error {
	if failed == nil || ctx.Err() != nil {
		return failed
	}
	manifest, err := images.Manifest(ctx, manifests{cs}, desc, platform)
	if err != nil {
		return failed
	}
	if err := imgcrypt.VerifyLayers(ctx, NewStore(cs), manifest.Layers, ids); errors.Is(err, layer.ErrTampered) {
		return fmt.Errorf("%w: %w", err, failed)
	}
	return failed
}
