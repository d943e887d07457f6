package testimage

import (
	"fmt"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// maxInline is the size up to which InlineData puts a blob into its descriptor.
const maxInline = 64 << 10

// builder writes one image.
type builder struct {
	Spec
	layout layout
}

// entry is a descriptor on its way into a manifest or an index.
type entry struct {
	ocispec.Descriptor
	body []byte // for InlineData
}

// image builds everything and returns the descriptor of the manifest or index.
func (b builder) image() (ocispec.Descriptor, error) {
	if !b.Index {
		e, err := b.manifest(b.Platforms[0], b.Salt, nil)
		e.Platform = nil
		return e.Descriptor, err
	}
	var entries []entry
	for _, p := range b.Platforms {
		var extra []File
		if len(b.Platforms) > 1 {
			extra = []File{{Name: "etc/platform", Body: []byte(p + "\n")}}
		}
		e, err := b.manifest(p, b.Salt, extra)
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("platform %s: %w", p, err)
		}
		if b.OmitPlatform {
			e.Platform = nil
		}
		entries = append(entries, e)
	}
	if b.Attestations {
		for _, image := range entries[:len(b.Platforms):len(b.Platforms)] {
			e, err := b.attestation(image.Digest)
			if err != nil {
				return ocispec.Descriptor{}, err
			}
			entries = append(entries, e)
		}
	}
	if b.PlatformlessEntry {
		e, err := b.manifest("linux/s390x", b.Salt+" without platform", nil)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		e.Platform = nil
		entries = append(entries, e)
	}
	return b.index(entries)
}

// manifest builds the image for one platform; extra files are in its last layer.
func (b builder) manifest(platform, salt string, extra []File) (entry, error) {
	p, err := platforms.Parse(platform)
	if err != nil {
		return entry{}, err
	}
	var layers []any
	var diffIDs []digest.Digest
	for i, l := range b.Layers {
		var files []File
		if i == len(b.Layers)-1 {
			files = extra
		}
		data, diffID, err := l.blob(fmt.Sprintf("%s layer %d", salt, i), files...)
		if err != nil {
			return entry{}, fmt.Errorf("layer %d: %w", i, err)
		}
		e, err := b.put(l.mediaType(b.Docker), data)
		if err != nil {
			return entry{}, err
		}
		e.Annotations = l.Annotations
		if l.NonDistributable {
			e.URLs = []string{"https://layers.example.test/" + e.Digest.String()}
		}
		layers, diffIDs = append(layers, b.descriptor(e)), append(diffIDs, diffID)
	}
	config, err := b.put(b.configType(), mustMarshal(b.config(p, diffIDs)))
	if err != nil {
		return entry{}, err
	}
	subject := b.Subject
	if b.Index {
		subject = nil
	}
	body := render(b.document(b.manifestType(), subject, member{"config", b.descriptor(config)}, member{"layers", layers}), b.Format)
	if b.EditManifest != nil {
		body = b.EditManifest(body)
	}
	e, err := b.put(b.manifestType(), body)
	e.Platform = &p
	return e, err
}

func (b builder) config(p ocispec.Platform, diffIDs []digest.Digest) ocispec.Image {
	at := created
	return ocispec.Image{
		Created:  &at,
		Platform: p,
		Config:   ocispec.ImageConfig{Entrypoint: b.Entrypoint, Cmd: b.Cmd, Env: b.Env},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	}
}

// attestation builds what BuildKit puts beside an image: a manifest for no platform, with an in-toto statement for a layer,
// that names the image by annotations of its index entry.
func (b builder) attestation(image digest.Digest) (entry, error) {
	statement := []byte(`{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://slsa.dev/provenance/v0.2",` +
		`"subject":[{"name":"pkg:docker/test","digest":{"sha256":"` + image.Encoded() + `"}}],"predicate":{}}`)
	layer, err := b.put("application/vnd.in-toto+json", statement)
	if err != nil {
		return entry{}, err
	}
	layer.Annotations = map[string]string{"in-toto.io/predicate-type": "https://slsa.dev/provenance/v0.2"}
	none := ocispec.Platform{Architecture: "unknown", OS: "unknown"}
	config, err := b.put(ocispec.MediaTypeImageConfig, mustMarshal(builder{}.config(none, []digest.Digest{layer.Digest})))
	if err != nil {
		return entry{}, err
	}
	plain := builder{Spec: Spec{UnknownFields: b.UnknownFields, InlineData: b.InlineData}}
	doc := plain.document(ocispec.MediaTypeImageManifest, nil,
		member{"config", plain.descriptor(config)}, member{"layers", []any{plain.descriptor(layer)}})
	e, err := b.put(ocispec.MediaTypeImageManifest, render(doc, b.Format))
	e.Platform = &none
	e.Annotations = map[string]string{
		"vnd.docker.reference.digest": image.String(),
		"vnd.docker.reference.type":   "attestation-manifest",
	}
	return e, err
}

func (b builder) index(entries []entry) (ocispec.Descriptor, error) {
	manifests := make([]any, len(entries))
	for i, e := range entries {
		manifests[i] = b.descriptor(e)
	}
	mediaType := ocispec.MediaTypeImageIndex
	if b.Docker {
		mediaType = dockerList
	}
	body := render(b.document(mediaType, b.Subject, member{"manifests", manifests}), b.Format)
	if b.EditIndex != nil {
		body = b.EditIndex(body)
	}
	e, err := b.put(mediaType, body)
	return e.Descriptor, err
}

// document is a manifest or an index around its own members.
func (b builder) document(mediaType string, subject *ocispec.Descriptor, members ...member) object {
	doc := object{{"schemaVersion", 2}, {"mediaType", mediaType}}
	if b.ArtifactType != "" {
		doc.add("artifactType", b.ArtifactType)
	}
	doc = append(doc, members...)
	if subject != nil {
		doc.add("subject", b.descriptor(entry{Descriptor: *subject}))
	}
	return b.finish(doc, b.Annotations)
}

func (b builder) descriptor(e entry) object {
	o := object{{"mediaType", e.MediaType}, {"digest", e.Digest.String()}, {"size", e.Size}}
	if e.Platform != nil {
		p := object{{"architecture", e.Platform.Architecture}, {"os", e.Platform.OS}}
		if e.Platform.Variant != "" {
			p.add("variant", e.Platform.Variant)
		}
		if b.UnknownFields {
			p.add("x-platform", true)
		}
		o.add("platform", p)
	}
	if len(e.URLs) > 0 {
		o.add("urls", []any{e.URLs[0]})
	}
	if b.InlineData && len(e.body) > 0 && len(e.body) <= maxInline {
		// encoding/json writes a byte slice as base64, which is what the specification asks for.
		o.add("data", e.body)
	}
	return b.finish(o, e.Annotations)
}

// finish adds what any object may have: annotations and unknown members. Their numbers would not survive
// being read into a Go float and written again.
func (b builder) finish(o object, annotations map[string]string) object {
	if b.UnknownFields {
		o.add("x-unknown", object{
			{"z", 1}, {"a", []any{true, nil, "é < &", object{}}}, {"big", rawNumber("12345678901234567890")}, {"float", rawNumber("1.50e+2")},
		})
	}
	if len(annotations) > 0 || b.EmptyAnnotations {
		o.add("annotations", stringMap(annotations))
	}
	return o
}

func (b builder) put(mediaType string, body []byte) (entry, error) {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	return entry{Descriptor: desc, body: body}, b.layout.put(desc, body)
}

func (b builder) manifestType() string {
	if b.Docker {
		return dockerManifest
	}
	return ocispec.MediaTypeImageManifest
}

func (b builder) configType() string {
	if b.Docker {
		return dockerConfig
	}
	return ocispec.MediaTypeImageConfig
}

// rawNumber is a number written exactly so.
type rawNumber string

// MarshalJSON returns the number.
func (n rawNumber) MarshalJSON() ([]byte, error) { return []byte(n), nil }
