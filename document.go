package imgcrypt

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/internal/rawjson"
)

// Docker's media types of what is not a layer, and BuildKit's annotations of
// attestation manifests in an index.
const (
	dockerManifest       = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList           = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig         = "application/vnd.docker.container.image.v1+json"
	dockerSchema1        = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSchema1Signed  = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	referenceType        = "vnd.docker.reference.type"
	referenceDigest      = "vnd.docker.reference.digest"
	attestationReference = "attestation-manifest"
)

// ociTypes are the OCI media types that Docker's become in an encrypted image.
var ociTypes = map[string]string{
	dockerManifest: ocispec.MediaTypeImageManifest,
	dockerList:     ocispec.MediaTypeImageIndex,
	dockerConfig:   ocispec.MediaTypeImageConfig,
}

func isManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == dockerManifest
}

func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == dockerList
}

// document is a manifest or an index: what it says, and its text.
type document struct {
	desc ocispec.Descriptor
	text []byte
	root *rawjson.Value
	// children are the descriptors of an index's manifests or a manifest's
	// layers, and nodes their texts.
	children []ocispec.Descriptor
	nodes    []*rawjson.Value
	// config is a manifest's; its media type is empty in an index.
	config     ocispec.Descriptor
	configNode *rawjson.Value
}

// index says whether d is an index.
func (d *document) index() bool { return isIndex(d.desc.MediaType) }

// Limits on what an image may make its reader do. They are far above what any image
// needs; without them a few nested indexes that name the same one over and over are
// endless work.
const (
	// maxChildren bounds the layers of a manifest, and the entries of an index.
	maxChildren = 10000
	// maxDocuments bounds how many manifests, indexes and configs are read, each
	// counted as often as it is named.
	maxDocuments = 2000
	// maxDocumentBytes bounds how many bytes these have.
	maxDocumentBytes = 32 << 20
)

// imageReader reads the manifests, indexes and configs of one image, within limits.
type imageReader struct {
	store     Store
	documents int
	bytes     int
}

func (r *imageReader) read(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if r.documents++; r.documents > maxDocuments || r.bytes > maxDocumentBytes {
		return nil, fmt.Errorf("%w: the image has more than %d manifests, indexes and configs, or they have more than %d bytes", ErrManifest, maxDocuments, maxDocumentBytes)
	}
	text, err := readBlob(ctx, r.store, desc)
	r.bytes += len(text)
	return text, err
}

// document reads and parses the manifest or index of desc.
func (r *imageReader) document(ctx context.Context, desc ocispec.Descriptor) (*document, error) {
	switch {
	case desc.MediaType == dockerSchema1 || desc.MediaType == dockerSchema1Signed:
		return nil, fmt.Errorf("%w: %s is a Docker schema 1 manifest, which cannot carry encrypted layers", ErrManifest, desc.Digest)
	case !isManifest(desc.MediaType) && !isIndex(desc.MediaType):
		return nil, fmt.Errorf("%w: %s has media type %.100q, which is neither a manifest's nor an index's", ErrManifest, desc.Digest, desc.MediaType)
	}
	text, err := r.read(ctx, desc)
	if err != nil {
		return nil, err
	}
	d, err := parseDocument(desc, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", desc.Digest, err)
	}
	return d, nil
}

// parseDocument parses a manifest or an index; desc.MediaType says which. A text
// that readers could understand in different ways is refused: one that is both, or
// one that has a member of structure more than once.
func parseDocument(desc ocispec.Descriptor, text []byte) (*document, error) {
	root, err := rawjson.Parse(text)
	if err != nil || !root.IsObject() {
		return nil, fmt.Errorf("%w: not a JSON object", ErrManifest)
	}
	d := &document{desc: desc, text: text, root: root}
	list, other := "layers", "manifests"
	if d.index() {
		list, other = other, list
	}
	if root.Get(other) != nil {
		return nil, fmt.Errorf("%w: it has both layers and manifests, or those of another media type", ErrManifest)
	}
	for _, name := range []string{list, "config", "annotations"} {
		if root.Count(name) > 1 {
			return nil, fmt.Errorf("%w: it has the member %q more than once", ErrManifest, name)
		}
	}
	if err := d.checkMediaType(); err != nil {
		return nil, err
	}
	d.children, d.nodes, err = descriptors(root.Get(list), list)
	if err != nil {
		return nil, err
	}
	if node := root.Get("config"); node != nil && !d.index() {
		d.configNode = node
		if d.config, err = descriptor(node, "config"); err != nil {
			return nil, err
		}
	}
	return d, checkAnnotations(root, "annotations")
}

// checkMediaType refuses a document whose own media type is not the one under
// which it was found.
func (d *document) checkMediaType() error {
	node := d.root.Get("mediaType")
	if node == nil {
		return nil
	}
	var own string
	if err := json.Unmarshal(node.Bytes(), &own); err != nil {
		return fmt.Errorf("%w: mediaType is not a string", ErrManifest)
	}
	if own != "" && own != d.desc.MediaType {
		return fmt.Errorf("%w: its media type is %.100q, its descriptor says %q", ErrManifest, own, d.desc.MediaType)
	}
	return nil
}

// descriptors parses an array of descriptors. null is an empty one.
func descriptors(list *rawjson.Value, name string) ([]ocispec.Descriptor, []*rawjson.Value, error) {
	if list == nil || list.Text() == "null" {
		return nil, nil, nil
	}
	if !list.IsArray() {
		return nil, nil, fmt.Errorf("%w: %s is not an array", ErrManifest, name)
	}
	if n := list.Len(); n > maxChildren {
		return nil, nil, fmt.Errorf("%w: %d %s, at most %d are read", ErrManifest, n, name, maxChildren)
	}
	var descs []ocispec.Descriptor
	var nodes []*rawjson.Value
	for i := range list.Len() {
		node := list.Element(i)
		desc, err := descriptor(node, fmt.Sprintf("%s[%d]", name, i))
		if err != nil {
			return nil, nil, err
		}
		descs, nodes = append(descs, desc), append(nodes, node)
	}
	return descs, nodes, nil
}

// descriptor parses one descriptor; where says what errors call it.
func descriptor(node *rawjson.Value, where string) (ocispec.Descriptor, error) {
	var desc ocispec.Descriptor
	if !node.IsObject() {
		return desc, fmt.Errorf("%w: %s is not an object", ErrManifest, where)
	}
	for _, name := range []string{"annotations", "platform"} {
		if node.Count(name) > 1 {
			return desc, fmt.Errorf("%w: %s has the member %q more than once", ErrManifest, where, name)
		}
	}
	if err := json.Unmarshal(node.Bytes(), &desc); err != nil {
		return desc, fmt.Errorf("%w: %s: %w", ErrManifest, where, err)
	}
	// Whether it can be looked up is for later; here it is only made sure that it
	// can be shown. Anyone may have written it.
	if text := desc.Digest.String(); text != "" && (len(text) > 256 || !digest.DigestRegexpAnchored.MatchString(text)) {
		return desc, fmt.Errorf("%w: %s has the digest %.100q", ErrManifest, where, text)
	}
	return desc, checkAnnotations(node, where+".annotations")
}

// checkAnnotations refuses annotations that are neither an object of strings, nor
// null, nor absent.
func checkAnnotations(node *rawjson.Value, where string) error {
	a := node.Get("annotations")
	if a == nil || a.Text() == "null" {
		return nil
	}
	var m map[string]string
	if err := json.Unmarshal(a.Bytes(), &m); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrManifest, where, err)
	}
	return nil
}

// isAttestation says whether an index entry is a manifest with attestations about
// another one, as BuildKit writes them.
func isAttestation(entry ocispec.Descriptor) bool {
	if entry.Annotations[referenceType] == attestationReference {
		return true
	}
	p := entry.Platform
	return p != nil && p.OS == "unknown" && p.Architecture == "unknown"
}

// platformOf returns the platform of a manifest: that of its index entry, else the
// one that its image config names, else nil.
func (r *imageReader) platformOf(ctx context.Context, d *document) (*ocispec.Platform, error) {
	if d.desc.Platform != nil {
		return d.desc.Platform, nil
	}
	if t := d.config.MediaType; t != ocispec.MediaTypeImageConfig && t != dockerConfig {
		return nil, nil
	}
	text, err := r.read(ctx, d.config)
	if err != nil {
		return nil, err
	}
	var p ocispec.Platform
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, fmt.Errorf("%w: config %s: %w", ErrManifest, d.config.Digest, err)
	}
	if p.OS == "" && p.Architecture == "" {
		return nil, nil
	}
	return &p, nil
}
