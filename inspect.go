package imgcrypt

import (
	"context"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/keys"
)

// InspectOptions are the options of [Inspect].
type InspectOptions struct {
	// Schemes name the recipients of packets. Packets of other schemes are
	// listed by their scheme alone.
	Schemes []keys.Scheme
	// Platform chooses manifests; nil chooses all.
	Platform func(*ocispec.Platform) bool
}

// Image is what [Inspect] found. It says nothing that needs a key.
type Image struct {
	Desc      ocispec.Descriptor
	Manifests []Manifest
}

// Manifest is one manifest of an image.
type Manifest struct {
	Desc     ocispec.Descriptor
	Platform *ocispec.Platform
	// Attestation says that the manifest holds attestations about another one.
	Attestation bool
	// Missing says that the manifest is not in the store; it then has no layers.
	Missing bool
	Layers  []LayerInfo
}

// LayerInfo is one layer of a manifest.
type LayerInfo struct {
	Index     int
	Digest    digest.Digest
	MediaType string
	// Size is that of the blob in bytes.
	Size int64
	// Encrypted says that the layer's media type is that of an encrypted one.
	Encrypted bool
	// Schemes are those of the layer's packets, sorted, each once.
	Schemes []string
	// Recipients are the names of those who can open it, as far as the packets
	// tell, sorted.
	Recipients []Recipient
}

// Recipient is one who can open a layer.
type Recipient struct {
	Scheme, Name string
}

// Inspect reads the manifests of the image root in s, and nothing else.
func Inspect(ctx context.Context, s Store, root ocispec.Descriptor, o InspectOptions) (Image, error) {
	panic("being built")
}
