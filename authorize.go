package imgcrypt

import (
	"context"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

// Authorize unwraps the secret of every encrypted layer of every manifest that the
// options choose in the image root. It is nil only if all of them open: a layer
// that does not is a [*LayerError] that wraps keys.ErrNoKey, a manifest that is not
// in the store a [*MissingError], and an image in which no manifest fits
// [ErrNothingSelected]. Layers' bytes are not read.
func Authorize(ctx context.Context, s Store, root ocispec.Descriptor, o AuthorizeOptions) error {
	seen := 0
	r := &imageReader{store: s}
	err := visit(ctx, r, root, 0, func(entry ocispec.Descriptor) bool {
		return !isAttestation(entry) && (entry.Platform == nil || o.Platform == nil || o.Platform(entry.Platform))
	}, func(d *document) error {
		platform := d.desc.Platform
		if o.Platform != nil {
			var err error
			if platform, err = r.platformOf(ctx, d); err != nil {
				return err
			}
			if !o.Platform(platform) {
				return nil
			}
		}
		seen++
		return authorize(ctx, d.children, platform, o.Identities)
	})
	if err == nil && seen == 0 {
		return fmt.Errorf("%w: the image has no manifest for this platform", ErrNothingSelected)
	}
	return err
}

// AuthorizeLayers unwraps the secret of every encrypted layer among layers, which
// are those of one manifest. The first that does not open is the error, a
// [*LayerError]; layers without any encrypted one need no identity.
func AuthorizeLayers(ctx context.Context, layers []ocispec.Descriptor, ids []keys.Identity) error {
	return authorize(ctx, layers, nil, ids)
}

func authorize(ctx context.Context, layers []ocispec.Descriptor, p *ocispec.Platform, ids []keys.Identity) error {
	for i, desc := range layers {
		if !layer.IsEncrypted(desc.MediaType) {
			continue
		}
		if _, err := keys.Open(ctx, ids, desc.Annotations); err != nil {
			return &LayerError{Index: i, Digest: desc.Digest, Platform: p, Err: err}
		}
	}
	return nil
}

// visit calls manifest for every manifest of an image whose index entries enter
// lets through.
func visit(ctx context.Context, r *imageReader, desc ocispec.Descriptor, depth int, enter func(ocispec.Descriptor) bool, manifest func(*document) error) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: indexes nested more than %d deep", ErrManifest, maxDepth)
	}
	d, err := r.document(ctx, desc)
	if err != nil {
		return err
	}
	if !d.index() {
		return manifest(d)
	}
	for _, entry := range d.children {
		if !isManifest(entry.MediaType) && !isIndex(entry.MediaType) || !enter(entry) {
			continue
		}
		if err := visit(ctx, r, entry, depth+1, enter, manifest); err != nil {
			return err
		}
	}
	return nil
}
