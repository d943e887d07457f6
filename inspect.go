package imgcrypt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/internal/oneline"
	"imgcrypt/keys"
	"imgcrypt/layer"
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
	// Annotations are those of the layer's descriptor.
	Annotations map[string]string
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

// Inspect reads the manifests of the image root in s, and the configs of those whose
// platform no index names; never a layer. A manifest of an index that is not in the
// store is listed as missing; root itself has to be there.
func Inspect(ctx context.Context, s Store, root ocispec.Descriptor, o InspectOptions) (Image, error) {
	img := Image{Desc: root}
	err := inspect(ctx, &imageReader{store: s}, root, 0, &img, o)
	return img, err
}

func inspect(ctx context.Context, r *imageReader, desc ocispec.Descriptor, depth int, img *Image, o InspectOptions) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: indexes nested more than %d deep", ErrManifest, maxDepth)
	}
	m := Manifest{Desc: desc, Platform: desc.Platform, Attestation: isAttestation(desc)}
	d, err := r.document(ctx, desc)
	if depth > 0 && errors.Is(err, ErrNotFound) {
		if o.Platform == nil || o.Platform(desc.Platform) {
			m.Missing = true
			img.Manifests = append(img.Manifests, m)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if d.index() {
		for _, entry := range d.children {
			if !isManifest(entry.MediaType) && !isIndex(entry.MediaType) {
				continue
			}
			if err := inspect(ctx, r, entry, depth+1, img, o); err != nil {
				return err
			}
		}
		return nil
	}
	// A platform that cannot be found out is unknown, no failure.
	if m.Platform, err = r.platformOf(ctx, d); err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrManifest) {
		return err
	}
	if o.Platform != nil && !o.Platform(m.Platform) {
		return nil
	}
	for i, l := range d.children {
		m.Layers = append(m.Layers, inspectLayer(i, l, o.Schemes))
	}
	img.Manifests = append(img.Manifests, m)
	return nil
}

func inspectLayer(i int, desc ocispec.Descriptor, schemes []keys.Scheme) LayerInfo {
	info := LayerInfo{
		Index: i, Digest: desc.Digest, MediaType: desc.MediaType, Size: desc.Size,
		Annotations: desc.Annotations, Encrypted: layer.IsEncrypted(desc.MediaType),
	}
	if !info.Encrypted {
		return info
	}
	// Damaged packets name nobody; those beside them still do.
	packets, _ := layer.Packets(desc.Annotations)
	for name := range desc.Annotations {
		if scheme, ok := strings.CutPrefix(name, layer.KeysAnnotationPrefix); ok && scheme != "" {
			info.Schemes = append(info.Schemes, oneline.Word(scheme))
		}
	}
	slices.Sort(info.Schemes)
	for _, p := range packets {
		for _, name := range describe(p, schemes) {
			info.Recipients = append(info.Recipients, Recipient{Scheme: p.Scheme, Name: name})
		}
	}
	slices.SortFunc(info.Recipients, func(a, b Recipient) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Scheme, b.Scheme))
	})
	return info
}

// describe names the recipients of a packet.
func describe(p layer.Packet, schemes []keys.Scheme) []string {
	for _, scheme := range schemes {
		if scheme.Owns(p.Scheme) {
			return scheme.Describe(p)
		}
	}
	return []string{"[" + oneline.Word(p.Scheme) + "]"}
}
