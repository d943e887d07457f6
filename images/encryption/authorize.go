package encryption

import (
	"context"
	"fmt"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	encconfig "github.com/containers/ocicrypt/config"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/keys"
)

// CheckAuthorization is [CheckAuthorizationFor] for the keys in dc and the platform of
// this process.
func CheckAuthorization(ctx context.Context, cs content.Store, desc ocispec.Descriptor, dc *encconfig.DecryptConfig) error {
	return check(ctx, cs, desc, func() ([]keys.Identity, error) { return Identities(dc) }, platforms.Default())
}

// CheckAuthorizationFor returns nil if ids open every encrypted layer of the manifest
// that will run: the one which containerd picks, in its images.Manifest, of the image
// desc for platform. An image without encrypted layers needs no key. Layers are not
// read, only their secrets are unwrapped.
//
// Otherwise the error says "you are not authorized to use this image: " and why, also
// if the manifest is missing or cannot be read.
func CheckAuthorizationFor(ctx context.Context, provider content.Provider, desc ocispec.Descriptor, ids []keys.Identity, platform platforms.MatchComparer) error {
	return check(ctx, provider, desc, func() ([]keys.Identity, error) { return ids, nil }, platform)
}

func check(ctx context.Context, provider content.Provider, desc ocispec.Descriptor, ids func() ([]keys.Identity, error), platform platforms.MatchComparer) error {
	if err := authorize(ctx, provider, desc, ids, platform); err != nil {
		return fmt.Errorf("you are not authorized to use this image: %w", err)
	}
	return nil
}

func authorize(ctx context.Context, provider content.Provider, desc ocispec.Descriptor, ids func() ([]keys.Identity, error), platform platforms.MatchComparer) error {
	manifest, err := images.Manifest(ctx, manifests{provider}, desc, platform)
	if err != nil {
		return notFound(err)
	}
	if !HasEncryptedLayer(ctx, manifest.Layers) {
		// Nor do keys have to be readable that nothing needs.
		return nil
	}
	all, err := ids()
	if err != nil {
		return err
	}
	return imgcrypt.AuthorizeLayers(ctx, manifest.Layers, all)
}

// manifests refuses to read what is too large for a manifest: containerd would read
// it into memory as a whole.
type manifests struct {
	content.Provider
}

// ReaderAt implements [content.Provider].
func (m manifests) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := m.Provider.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	if size := ra.Size(); size > imgcrypt.MaxManifestSize {
		ra.Close()
		return nil, fmt.Errorf("%s: %w: %d bytes, at most %d are read", desc.Digest, imgcrypt.ErrManifest, size, imgcrypt.MaxManifestSize)
	}
	return ra, nil
}

// WithAuthorizationCheck makes the creation of a container fail as
// [CheckAuthorizationFor] does for the container's image and the client's platform.
// Options take effect in their order: it belongs after the one that sets the image
// and before those that create something, like a snapshot. A container that names no
// image, as one on a prepared root filesystem, is not checked; one that names an image
// which does not exist is refused.
func WithAuthorizationCheck(dc *encconfig.DecryptConfig) containerd.NewContainerOpts {
	return func(ctx context.Context, client *containerd.Client, c *containers.Container) error {
		if c.Image == "" {
			return nil
		}
		img, err := client.GetImage(ctx, c.Image)
		if err != nil {
			return fmt.Errorf("you are not authorized to use this image: %w", notFound(err))
		}
		return check(ctx, client.ContentStore(), img.Target(), func() ([]keys.Identity, error) { return Identities(dc) }, img.Platform())
	}
}
