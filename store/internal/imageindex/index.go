// Package imageindex reads and edits the index.json of an OCI image layout, which names
// its images. It is edited as text: what an edit is not about stays as it is.
package imageindex

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/rawjson"
)

// ContainerdName is the annotation by which containerd and Docker know an image's full
// name; the one of the specification then is the tag alone.
const ContainerdName = "io.containerd.image.name"

// MaxSize is how many bytes an index.json may have.
const MaxSize = imgcrypt.MaxManifestSize

// maxEntries bounds how many images it may name.
const maxEntries = 10000

// LayoutFile is the content of the file oci-layout.
const LayoutFile = `{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`

// MaxLayoutFile is how many bytes that may have.
const MaxLayoutFile = 4096

// CheckLayoutFile refuses the content of a file oci-layout that is not of the one
// version there is. The error wraps [imgcrypt.ErrManifest].
func CheckLayoutFile(text []byte) error {
	var layout ocispec.ImageLayout
	if err := json.Unmarshal(text, &layout); err != nil {
		return fmt.Errorf("%w: %s is not JSON: %w", imgcrypt.ErrManifest, ocispec.ImageLayoutFile, err)
	}
	if layout.Version != ocispec.ImageLayoutVersion {
		return fmt.Errorf("%w: version %.40q of the image layout, only %s is known", imgcrypt.ErrManifest, layout.Version, ocispec.ImageLayoutVersion)
	}
	return nil
}

// Index is a parsed index.json.
type Index struct {
	// Entries are the images.
	Entries []ocispec.Descriptor
	root    *rawjson.Value
	list    *rawjson.Value
}

const empty = `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[]}`

// New returns the index of a layout without images.
func New() *Index {
	x, err := Parse([]byte(empty))
	if err != nil {
		panic(err)
	}
	return x
}

// Parse parses an index.json. Errors wrap [imgcrypt.ErrManifest].
func Parse(text []byte) (*Index, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", imgcrypt.ErrManifest, ocispec.ImageIndexFile, MaxSize)
	}
	root, err := rawjson.Parse(text)
	if err != nil || !root.IsObject() {
		return nil, malformed("is not a JSON object")
	}
	if v := root.Get("schemaVersion"); v != nil && v.Text() != "2" {
		return nil, malformed("schemaVersion is %.20s, not 2", v.Bytes())
	}
	if root.Count("manifests") > 1 {
		return nil, malformed("there is more than one list of manifests")
	}
	x := &Index{root: root, list: root.Get("manifests")}
	switch {
	case x.list == nil || x.list.Text() == "null":
		if i := root.Index("manifests"); i >= 0 {
			root.Remove(i)
		}
		if x.list, err = rawjson.Parse([]byte("[]")); err != nil {
			return nil, err
		}
		root.Append("manifests", x.list)
	case !x.list.IsArray():
		return nil, malformed("manifests is not an array")
	case x.list.Len() > maxEntries:
		return nil, malformed("there are %d manifests, at most %d are read", x.list.Len(), maxEntries)
	}
	for i := range x.list.Len() {
		desc, err := parseEntry(x.list.Element(i))
		if err != nil {
			return nil, malformed("manifests[%d]: %w", i, err)
		}
		x.Entries = append(x.Entries, desc)
	}
	return x, nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s: %w", imgcrypt.ErrManifest, ocispec.ImageIndexFile, fmt.Errorf(format, args...))
}

// parseEntry parses one descriptor. Readers must not be able to understand it in
// different ways.
func parseEntry(node *rawjson.Value) (desc ocispec.Descriptor, err error) {
	if !node.IsObject() {
		return desc, fmt.Errorf("it is not an object")
	}
	for _, name := range []string{"mediaType", "digest", "size", "platform", "annotations"} {
		if node.Count(name) > 1 {
			return desc, fmt.Errorf("it has the member %q more than once", name)
		}
	}
	if err := json.Unmarshal(node.Bytes(), &desc); err != nil {
		return desc, err
	}
	if desc.Size < 0 {
		return desc, fmt.Errorf("its size is %d", desc.Size)
	}
	return desc, nil
}

// Bytes returns the text.
func (x *Index) Bytes() []byte { return x.root.Bytes() }

// Set makes ref name desc. An image that ref names gives way to it, in its place and with
// its annotations. "" names the one image, if that has no name; it is an error that
// wraps [ErrAmbiguous] where it would not. A new name has to be one as the specification
// has them.
func (x *Index) Set(ref string, desc ocispec.Descriptor) error {
	if err := checkTarget(desc); err != nil {
		return err
	}
	found := x.match(ref)
	switch {
	case ref == "" && len(x.Entries) > 0 && (len(x.Entries) > 1 || !unnamed(x.Entries[0])):
		return x.nameError(ref, ErrAmbiguous)
	case len(found) > 1:
		return x.nameError(ref, ErrAmbiguous)
	case len(found) == 1:
		return x.replace(found[0], desc)
	case strings.HasPrefix(ref, "@"):
		return x.nameError(ref, imgcrypt.ErrNotFound)
	}
	if err := checkName(ref); err != nil {
		return err
	}
	node := rawjson.NewObject()
	if err := describe(node, desc); err != nil {
		return err
	}
	if ref != "" {
		annotations := rawjson.NewObject()
		annotations.Append(ocispec.AnnotationRefName, rawjson.String(ref))
		node.Append("annotations", annotations)
	}
	return x.put(x.list.Len(), node)
}

func checkTarget(desc ocispec.Descriptor) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("%w: digest %.100q: %w", imgcrypt.ErrManifest, desc.Digest, err)
	}
	if desc.MediaType == "" || desc.Size < 0 {
		return fmt.Errorf("%w: %s has media type %q and %d bytes", imgcrypt.ErrManifest, desc.Digest, desc.MediaType, desc.Size)
	}
	return nil
}

// replace makes the entry at i one for desc.
func (x *Index) replace(i int, desc ocispec.Descriptor) error {
	// In a copy, so that a failure leaves the index as it was.
	node, err := rawjson.Parse(x.list.Element(i).Bytes())
	if err != nil {
		return err
	}
	if desc.Digest != x.Entries[i].Digest {
		// What belongs to the old image.
		for _, name := range []string{"data", "urls", "platform", "artifactType"} {
			for at := node.Index(name); at >= 0; at = node.Index(name) {
				node.Remove(at)
			}
		}
	}
	if err := describe(node, desc); err != nil {
		return err
	}
	return x.put(i, node)
}

// describe sets the members of a descriptor that are about its target.
func describe(node *rawjson.Value, desc ocispec.Descriptor) error {
	set(node, "mediaType", rawjson.String(desc.MediaType))
	set(node, "digest", rawjson.String(desc.Digest.String()))
	set(node, "size", rawjson.Raw(strconv.FormatInt(desc.Size, 10)))
	if desc.ArtifactType != "" {
		set(node, "artifactType", rawjson.String(desc.ArtifactType))
	}
	if desc.Platform == nil || node.Get("platform") != nil {
		return nil
	}
	text, err := json.Marshal(desc.Platform)
	if err != nil {
		return err
	}
	platform, err := rawjson.Parse(text)
	if err != nil {
		return err
	}
	node.Append("platform", platform)
	return nil
}

// set gives a member a value that is neither object nor array.
func set(node *rawjson.Value, name string, value *rawjson.Value) {
	if at := node.Index(name); at >= 0 {
		node.Element(at).SetText(value.Text())
		return
	}
	node.Append(name, value)
}

// put makes node the entry at i, or the last one.
func (x *Index) put(i int, node *rawjson.Value) error {
	desc, err := parseEntry(node)
	if err != nil {
		return err
	}
	item := &rawjson.Item{}
	if i < x.list.Len() {
		item = x.list.Remove(i)
		x.Entries = slices.Delete(x.Entries, i, i+1)
	}
	item.Value = node
	x.list.Insert(i, item)
	x.Entries = slices.Insert(x.Entries, i, desc)
	if len(x.Bytes()) > MaxSize {
		return malformed("it would have more than %d bytes", MaxSize)
	}
	return nil
}
