package imgcrypt

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/internal/rawjson"
	"imgcrypt/layer"
)

// change is what becomes of one child of a document: a layer or an index entry.
type change struct {
	// desc is what the child's descriptor becomes: media type, digest and size.
	desc ocispec.Descriptor
	// annotations are set on the child's descriptor.
	annotations map[string]string
	// only says that of the encryption's annotations no others remain.
	only bool
	// data is the content of the child, if its descriptor may carry it.
	data []byte
	// encrypted says, of an index entry, that layers in it are still encrypted.
	encrypted bool
}

// rewritten is a document's new text.
type rewritten struct {
	text []byte
	// mediaType is the new one of the document.
	mediaType string
	// exact is false where this rewriting cannot be undone, or did not restore
	// the original.
	exact bool
	// encrypted says that something in it is encrypted.
	encrypted bool
}

// seal rewrites d for children that were encrypted or got recipients. plain are
// the same children as they were, to prove that [open] restores d; nil: there is
// nothing to prove.
func seal(d *document, changes, plain map[int]change, moved map[digest.Digest]digest.Digest) (rewritten, error) {
	rec, had := readRecord(d)
	// Somebody else encrypted a part of it, and remembered nothing.
	foreign := !had && slices.ContainsFunc(d.children, func(c ocispec.Descriptor) bool { return layer.IsEncrypted(c.MediaType) })
	for _, i := range slices.Sorted(maps.Keys(changes)) {
		sealChild(d.nodes[i], d.children[i], changes[i], rec.child(i))
		if c := rec.child(i); !d.index() && c.empty() {
			rec.drop(i)
		}
	}
	follow(d, moved)
	toOCI(d, rec)
	if !foreign {
		rec.write(d.root)
	}
	out := rewritten{text: d.root.Bytes(), mediaType: oci(d.desc.MediaType), exact: true, encrypted: true}
	if foreign || rec.Inexact || plain == nil {
		return out, nil
	}
	back, err := parseDocument(ocispec.Descriptor{MediaType: out.mediaType}, out.text)
	if err != nil {
		return rewritten{}, fmt.Errorf("rewritten manifest: %w", err)
	}
	restored, err := open(back, plain, inverse(moved))
	if err == nil && restored.exact && bytes.Equal(restored.text, d.text) {
		return out, nil
	}
	rec.Inexact = true
	rec.write(d.root)
	out.text, out.exact = d.root.Bytes(), false
	return out, nil
}

// sealChild rewrites one descriptor.
func sealChild(node *rawjson.Value, was ocispec.Descriptor, c change, rec *childRecord) {
	removeData(node, rec)
	if c.desc.MediaType != was.MediaType {
		before := node.Get("mediaType").Text()
		set(node, "mediaType", quoted(c.desc.MediaType))
		// What cannot be derived from the new media type is remembered, unless
		// an earlier rewriting already remembers the original.
		if plain := layer.PlainMediaType(c.desc.MediaType); before != quoted(plain) && rec.MediaType == "" {
			rec.MediaType = before
		}
	}
	if c.desc.Digest != was.Digest {
		set(node, "digest", quoted(c.desc.Digest.String()))
		set(node, "size", strconv.FormatInt(c.desc.Size, 10))
	}
	if len(c.annotations) == 0 {
		return
	}
	a, state := makeAnnotations(node)
	if state != "" {
		rec.Annotations = state
	}
	for _, name := range slices.Sorted(maps.Keys(c.annotations)) {
		if old := a.GetExact(name); old != nil {
			old.SetString(c.annotations[name])
		} else {
			a.Append(name, rawjson.String(c.annotations[name]))
		}
	}
	if !c.only {
		return
	}
	for i := a.Len() - 1; i >= 0; i-- {
		if _, stays := c.annotations[a.Name(i)]; !stays && layer.IsAnnotation(a.Name(i)) {
			a.RemoveAppended(i)
		}
	}
}

// open rewrites d for children that were decrypted, which changes has as they are
// now.
func open(d *document, changes map[int]change, moved map[digest.Digest]digest.Digest) (rewritten, error) {
	rec, had := readRecord(d)
	out := rewritten{exact: had && !rec.Inexact}
	for i, c := range changes {
		if !openChild(d, i, c, rec) {
			out.exact = false
		}
	}
	follow(d, moved)
	out.encrypted = stillEncrypted(d, changes, rec)
	out.mediaType = d.desc.MediaType
	switch {
	case out.encrypted && had:
		rec.write(d.root)
	case !out.encrypted && had:
		if !fromOCI(d, rec) {
			out.exact = false
		}
		rec.remove(d.root)
		if original := unquote(rec.MediaType); oci(original) == d.desc.MediaType {
			out.mediaType = original
		}
	}
	out.text = d.root.Bytes()
	if !json.Valid(out.text) {
		return rewritten{}, fmt.Errorf("%w: its record does not fit it", ErrManifest)
	}
	return out, nil
}

// openChild rewrites the descriptor of child i. It is false where the original
// text could not be restored.
func openChild(d *document, i int, c change, rec *record) bool {
	node, was, known := d.nodes[i], d.children[i], rec.known(i)
	if c.desc.MediaType != was.MediaType {
		text := quoted(c.desc.MediaType)
		if d.index() && unquote(known.MediaType) == c.desc.MediaType {
			text = known.MediaType
		}
		set(node, "mediaType", text)
	}
	set(node, "digest", quoted(c.desc.Digest.String()))
	set(node, "size", strconv.FormatInt(c.desc.Size, 10))
	if !d.index() {
		removeAnnotations(node, known.Annotations, layer.IsAnnotation)
		known.Annotations = ""
	}
	if c.encrypted {
		return true
	}
	exact := true
	if r := known.Data; r != nil {
		if exact = c.data != nil; exact {
			node.Insert(r.Index, &rawjson.Item{
				Key: r.Key, Lead: r.Lead, Mid: r.Mid, Trail: r.Trail,
				Value: rawjson.Raw(quoted(base64.StdEncoding.EncodeToString(c.data))),
			})
		}
		known.Data = nil
	}
	if d.index() || known.empty() {
		rec.drop(i)
	}
	return exact
}

// stillEncrypted says whether d has encrypted layers after the changes.
func stillEncrypted(d *document, changes map[int]change, rec *record) bool {
	if d.index() {
		return len(rec.Children) > 0 || slices.ContainsFunc(slices.Collect(maps.Values(changes)), func(c change) bool { return c.encrypted })
	}
	for i, desc := range d.children {
		if c, ok := changes[i]; ok {
			desc = c.desc
		}
		if layer.IsEncrypted(desc.MediaType) {
			return true
		}
	}
	return false
}

// toOCI turns a Docker manifest or list into an OCI one and remembers the texts of
// the media types that it replaces.
func toOCI(d *document, rec *record) {
	if t := d.desc.MediaType; oci(t) != t {
		if node := d.root.Get("mediaType"); node != nil {
			if rec.MediaType == "" {
				rec.MediaType = node.Text()
			}
			set(d.root, "mediaType", quoted(oci(t)))
		}
	}
	if t := d.config.MediaType; oci(t) != t {
		if rec.Config == "" {
			rec.Config = d.configNode.Get("mediaType").Text()
		}
		set(d.configNode, "mediaType", quoted(oci(t)))
	}
	if d.index() {
		return
	}
	for i, node := range d.nodes {
		t := unquote(node.Get("mediaType").Text())
		if layer.OCIMediaType(t) == t {
			continue
		}
		if c := rec.child(i); c.MediaType == "" {
			c.MediaType = node.Get("mediaType").Text()
		}
		set(node, "mediaType", quoted(layer.OCIMediaType(t)))
	}
}

// fromOCI is the inverse of toOCI. It is false where the record does not fit.
func fromOCI(d *document, rec *record) bool {
	fits := true
	restore := func(node *rawjson.Value, text string, oci func(string) string) {
		if text == "" {
			return
		}
		if now := node.Get("mediaType"); now == nil || oci(unquote(text)) != unquote(now.Text()) {
			fits = false
			return
		}
		set(node, "mediaType", text)
	}
	restore(d.root, rec.MediaType, oci)
	if rec.Config != "" && d.configNode != nil {
		restore(d.configNode, rec.Config, oci)
	}
	if !d.index() {
		for _, c := range rec.Children {
			restore(d.nodes[c.Index], c.MediaType, layer.OCIMediaType)
		}
	}
	return fits
}

// oci returns the OCI media type for one of Docker's manifests, lists and configs,
// and any other as it is.
func oci(mediaType string) string {
	if t, ok := ociTypes[mediaType]; ok {
		return t
	}
	return mediaType
}

// follow makes the annotations of attestation manifests name the new digests of
// the manifests that they are about.
func follow(d *document, moved map[digest.Digest]digest.Digest) {
	if !d.index() {
		return
	}
	for i, entry := range d.children {
		about, ok := entry.Annotations[referenceDigest]
		if to, moved := moved[digest.Digest(about)]; ok && moved {
			d.nodes[i].Get("annotations").GetExact(referenceDigest).SetString(to.String())
		}
	}
}

func inverse(moved map[digest.Digest]digest.Digest) map[digest.Digest]digest.Digest {
	back := make(map[digest.Digest]digest.Digest, len(moved))
	for from, to := range moved {
		back[to] = from
	}
	return back
}

// removeData removes a descriptor's data, which would carry what the encryption
// hides or, in an index, a manifest that is no longer the one it describes.
func removeData(node *rawjson.Value, rec *childRecord) {
	for i := node.Index("data"); i >= 0; i = node.Index("data") {
		it := node.Remove(i)
		rec.Data = &dataRecord{Index: i, Key: it.Key, Lead: it.Lead, Mid: it.Mid, Trail: it.Trail}
	}
}

// set gives the member called name the given text, adds it where it is missing,
// and removes members of that name that it shadows.
func set(node *rawjson.Value, name, text string) {
	at := node.Index(name)
	if at < 0 {
		node.Append(name, rawjson.Raw(text))
		return
	}
	node.Element(at).SetText(text)
	for node.Count(name) > 1 {
		for i := range node.Len() {
			if strings.EqualFold(node.Name(i), name) {
				node.Remove(i)
				break
			}
		}
	}
}

// quoted returns the JSON text of a string.
func quoted(s string) string { return string(rawjson.String(s).Bytes()) }
