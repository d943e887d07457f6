// Package testimage builds small container images as OCI layouts, without network and the same bytes every time.
//
// A Spec says what is special about an image; its zero value is the plainest OCI image there is. Write puts it into
// a layout, which skopeo reads as oci:DIR:NAME (Docker's manifests only from a registry), and Archive makes of a
// layout the tar that `ctr images import` reads:
//
//	desc, err := testimage.Spec{Index: true, Platforms: []string{"linux/amd64", "linux/arm64"}}.Write(dir, "example.test/app:v1")
//
// An image that is to run has busybox in it: see Runnable. Blobs are named by digest only, so that many images share a
// layout.
package testimage

import (
	"runtime"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compression is how a layer's tar is stored.
type Compression int

// The compressions that container images use.
const (
	Gzip Compression = iota
	Zstd
	None
)

// Format is how manifests and indexes are written: all formats are valid JSON of the same content, except
// for the order of members.
type Format int

const (
	// Compact has no white space.
	Compact Format = iota
	// Indented is what Docker writes: a member per line, three blanks per level.
	Indented
	// Odd has reversed members, white space of all four kinds wherever it is allowed, also before and after the document,
	// and escaped slashes.
	Odd
	// Escaped is Odd with a \u escape in every string, member names too.
	Escaped
)

// created is the time in every file and config.
var created = time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)

// Spec describes an image. With more than one platform, or with a member that only an index can have, the image is an
// index (or a Docker manifest list), otherwise a single manifest.
type Spec struct {
	// Layers from the bottom up; one small gzip layer if empty. All platforms have the same layers, except
	// that of several platforms each has a file etc/platform in its last one.
	Layers []Layer
	// Docker makes Docker schema-2 manifests, media types and lists.
	Docker bool
	// Index makes an index even for a single platform.
	Index bool
	// Platforms are OS/ARCH[/VARIANT] each; this machine's Linux platform if empty.
	Platforms []string
	// OmitPlatform leaves the platform out of every index entry; it is in the configs.
	OmitPlatform bool
	// PlatformlessEntry appends an index entry without platform, an image for linux/s390x by its config.
	PlatformlessEntry bool
	// Attestations appends for each image of the index an attestation manifest as BuildKit does.
	Attestations bool
	// UnknownFields puts members that no specification knows into the manifests, the index and every descriptor in them.
	UnknownFields bool
	// Annotations are those of each manifest, and of the index.
	Annotations map[string]string
	// EmptyAnnotations puts `"annotations":{}` into manifests, index and descriptors that would have none.
	EmptyAnnotations bool
	// Subject is the manifests' subject (the index's, if there is one).
	Subject *ocispec.Descriptor
	// ArtifactType is the artifactType of the manifests, and of the index.
	ArtifactType string
	// InlineData puts blobs of up to 64 KiB into the descriptors' data, too.
	InlineData bool
	// Format is how manifests and index are written.
	Format Format
	// Entrypoint, Cmd and Env are what the config says about running the image.
	Entrypoint, Cmd, Env []string
	// Salt is part of every layer: two images with different salts have no blob and no chain id in common.
	Salt string
	// EditManifest changes the bytes of each image manifest before they are stored; nil leaves them.
	EditManifest func(manifest []byte) []byte
	// EditIndex does so for the index.
	EditIndex func(index []byte) []byte
}

// Layer describes a layer.
type Layer struct {
	// Files are the layer's; one small file if empty.
	Files []File
	// Compression of the tar.
	Compression Compression
	// RandomSize adds a file of so many bytes that do not compress.
	RandomSize int64
	// NonDistributable gives the layer the media type of layers that are not pushed, and the descriptor a URL.
	// The blob is in the layout all the same.
	NonDistributable bool
	// Annotations of the layer's descriptor.
	Annotations map[string]string
	// MediaType replaces the media type that follows from the other fields.
	MediaType string
}

// File is one entry of a layer. Parent directories come by themselves.
type File struct {
	// Name is the path, without a slash in front.
	Name string
	// Body is the content of a regular file.
	Body []byte
	// Mode is the permission; 0644 if zero.
	Mode int64
	// Link makes the file a symbolic link to this target.
	Link string
}

// HostPlatform is the Linux platform of this machine's processor.
func HostPlatform() string { return "linux/" + runtime.GOARCH }

// Layers returns n small layers of one compression that differ from each other.
func Layers(n int, c Compression) []Layer {
	layers := make([]Layer, n)
	for i := range layers {
		layers[i].Compression = c
	}
	return layers
}

func (s Spec) withDefaults() Spec {
	if len(s.Layers) == 0 {
		s.Layers = Layers(1, Gzip)
	}
	if len(s.Platforms) == 0 {
		s.Platforms = []string{HostPlatform()}
	}
	s.Index = s.Index || len(s.Platforms) > 1 || s.OmitPlatform || s.PlatformlessEntry || s.Attestations
	return s
}
