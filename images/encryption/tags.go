package encryption

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

// NewTags returns containerd's image store as [imgcrypt.Tags]. Its Tag keeps the
// labels of an image that exists; a new one gets none.
func NewTags(is images.Store) imgcrypt.Tags { return &tags{is: is} }

type tags struct {
	is images.Store
}

// Resolve implements [imgcrypt.Tags].
func (t *tags) Resolve(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	img, err := t.is.Get(ctx, ref)
	if err != nil {
		return ocispec.Descriptor{}, notFound(err)
	}
	return img.Target, nil
}

// tagAttempts bounds how often Tag starts anew because somebody else creates or
// removes the name at the same time.
const tagAttempts = 10

// Tag implements [imgcrypt.Tags]. The name is never deleted, so it names the old
// image or the new one at every moment.
func (t *tags) Tag(ctx context.Context, ref string, desc ocispec.Descriptor) error {
	img := images.Image{Name: ref, Target: desc}
	var err error
	for range tagAttempts {
		if _, err = t.is.Update(ctx, img, "target"); !errdefs.IsNotFound(err) {
			break
		}
		if _, err = t.is.Create(ctx, img); !errdefs.IsAlreadyExists(err) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("tag %s: %w", ref, err)
	}
	return nil
}
