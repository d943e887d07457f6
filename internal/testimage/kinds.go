package testimage

import (
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Kind is a Spec with a name for a subtest.
type Kind struct {
	Name string
	Spec Spec
}

// Kinds returns one image for everything that an image may be, for tests that hold for all of them: two
// platforms where it is an index, linux/amd64 and linux/arm64, so that digests do not depend on the machine.
func Kinds() []Kind {
	const amd64 = "linux/amd64"
	subject := &ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("the subject"), Size: 11,
	}
	annotations := map[string]string{"org.example.a": "1 < 2 & \"é\"", "org.example.z": ""}
	mixed := []Layer{{Compression: Gzip}, {Compression: Zstd}, {Compression: None}}

	singles := []Kind{
		{"plain", Spec{}},
		{"gzip, zstd, tar", Spec{Layers: mixed}},
		{"12 layers", Spec{Layers: Layers(12, Gzip)}},
		{"large", Spec{Layers: []Layer{{RandomSize: 4 << 20}, {RandomSize: 2<<20 + 1, Compression: None}}}},
		{"annotations", Spec{Annotations: annotations, Layers: []Layer{{Annotations: annotations}}}},
		{"empty annotations", Spec{EmptyAnnotations: true}},
		{"unknown fields", Spec{UnknownFields: true, Layers: mixed}},
		{"inline data", Spec{InlineData: true, Layers: mixed}},
		{"non-distributable", Spec{Layers: []Layer{{NonDistributable: true}, {Compression: None, NonDistributable: true}, {}}}},
		{"indented", Spec{Format: Indented, Annotations: annotations}},
		{"odd", Spec{Format: Odd, UnknownFields: true, Annotations: annotations, Layers: mixed}},
		{"escaped", Spec{Format: Escaped, Annotations: annotations, Layers: mixed}},
	}
	oci := []Kind{
		{"subject", Spec{Subject: subject}},
		{"artifact type", Spec{ArtifactType: "application/vnd.example.thing+json"}},
		{"other layer type", Spec{Layers: []Layer{{MediaType: "application/vnd.example.thing.v1.tar+gzip"}}}},
		{"everything", Spec{
			Format: Odd, UnknownFields: true, InlineData: true, Annotations: annotations, Subject: subject,
			ArtifactType: "application/vnd.example.thing+json", Layers: mixed,
		}},
	}
	indexes := []Kind{
		{"attestations", Spec{Attestations: true}},
		{"entry without platform", Spec{PlatformlessEntry: true}},
		{"no platforms", Spec{OmitPlatform: true}},
	}

	var kinds []Kind
	add := func(name string, k Kind, docker, index bool) {
		s := k.Spec
		s.Docker, s.Index, s.Platforms, s.Salt = docker, index, []string{amd64}, name+k.Name
		if index {
			s.Platforms = []string{amd64, "linux/arm64"}
		}
		kinds = append(kinds, Kind{name + ", " + k.Name, s})
	}
	for _, k := range append(singles, oci...) {
		add("OCI manifest", k, false, false)
	}
	for _, k := range append(append(singles, oci...), indexes...) {
		add("OCI index", k, false, true)
	}
	for _, k := range singles {
		add("Docker manifest", k, true, false)
	}
	for _, k := range append(singles, indexes...) {
		add("Docker list", k, true, true)
	}
	return kinds
}
