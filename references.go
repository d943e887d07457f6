package imgcrypt

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// References returns the blobs that the manifest or index of desc, whose bytes are text,
// points to, in its order, a manifest's config first. Errors wrap [ErrManifest].
func References(desc ocispec.Descriptor, text []byte) ([]ocispec.Descriptor, error) {
	d, err := parseDocument(desc, text)
	if err != nil {
		return nil, err
	}
	if d.config.Digest == "" {
		return d.children, nil
	}
	return append([]ocispec.Descriptor{d.config}, d.children...), nil
}

// IsManifest says whether desc is that of a manifest or an index, by its media type:
// of one that [References] reads.
func IsManifest(desc ocispec.Descriptor) bool {
	return isManifest(desc.MediaType) || isIndex(desc.MediaType)
}
