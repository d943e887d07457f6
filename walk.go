package imgcrypt

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/layer"
)

// maxDepth bounds how deep indexes may be nested.
const maxDepth = 8

// cryptor does to manifests what an [editor] is for.
type cryptor interface {
	// manifest changes the chosen layers of one manifest.
	manifest(ctx context.Context, d *document, chosen []Layer) (outcome, error)
	// index rewrites an index some of whose entries changed; before are the
	// texts of those as they were, by index.
	index(d *document, after, before map[int]change, moved map[digest.Digest]digest.Digest) (rewritten, error)
	// unchosen is told of an index entry that is left as it is, and why.
	unchosen(entry ocispec.Descriptor, why string)
	// tolerates says whether an entry may be left as it is because of missing,
	// which is the entry's manifest or something in it.
	tolerates(missing *MissingError, entry ocispec.Descriptor) bool
}

// outcome is what became of a manifest or an index.
type outcome struct {
	desc ocispec.Descriptor
	// before and after are the texts; after is nil where nothing changed.
	before, after []byte
	// encrypted says that layers in it are encrypted, had that some were before.
	encrypted, had bool
}

// editor walks over an image, has a cryptor change its manifests, and rewrites the
// indexes above them.
type editor struct {
	store   Store
	sel     Selection
	notify  func(Notice)
	crypt   cryptor
	chosen  int           // layers that the selection chose
	missing *MissingError // the first entry that was left out for it
	reader  imageReader
	done    map[string]outcome
}

// edit walks the image root.
func (e *editor) edit(ctx context.Context, root ocispec.Descriptor) (ocispec.Descriptor, error) {
	e.done, e.reader = make(map[string]outcome), imageReader{store: e.store}
	out, err := e.walk(ctx, root, 0)
	if err != nil || out.after == nil {
		return root, err
	}
	desc := root
	desc.MediaType, desc.Digest, desc.Size, desc.Data = out.desc.MediaType, out.desc.Digest, out.desc.Size, nil
	return desc, nil
}

func (e *editor) walk(ctx context.Context, desc ocispec.Descriptor, depth int) (outcome, error) {
	if depth > maxDepth {
		return outcome{}, fmt.Errorf("%w: indexes nested more than %d deep", ErrManifest, maxDepth)
	}
	d, err := e.reader.document(ctx, desc)
	if err != nil {
		return outcome{}, err
	}
	if d.index() {
		return e.walkIndex(ctx, d, depth)
	}
	return e.walkManifest(ctx, d)
}

// walkManifest changes one manifest, unless the same one was changed already.
func (e *editor) walkManifest(ctx context.Context, d *document) (outcome, error) {
	platform, err := e.reader.platformOf(ctx, d)
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrManifest) {
		return outcome{}, err
	}
	had := hasEncrypted(d.children)
	unchanged := outcome{desc: d.desc, before: d.text, encrypted: had, had: had}
	if e.sel.Platform != nil && !e.sel.Platform(platform) {
		e.crypt.unchosen(d.desc, "its platform is not selected")
		return unchanged, nil
	}
	key := fmt.Sprintf("%s %+v", d.desc.Digest, platform)
	if out, ok := e.done[key]; ok {
		return out, nil
	}
	var chosen []Layer
	for i, desc := range d.children {
		l := Layer{Desc: desc, Index: i, Count: len(d.children), Manifest: d.desc, Platform: platform}
		if e.sel.Layer == nil || e.sel.Layer(l) {
			chosen = append(chosen, l)
		}
	}
	e.chosen += len(chosen)
	out, err := e.crypt.manifest(ctx, d, chosen)
	if err != nil {
		return outcome{}, err
	}
	e.done[key] = out
	return out, nil
}

// walkIndex changes the entries of an index, and the index if any of them changed.
func (e *editor) walkIndex(ctx context.Context, d *document, depth int) (outcome, error) {
	after, before := make(map[int]change), make(map[int]change)
	moved := make(map[digest.Digest]digest.Digest)
	unchanged := outcome{desc: d.desc, before: d.text}
	refs := make([]ocispec.Descriptor, len(d.children))
	for i, entry := range d.children {
		refs[i] = entry
		out, err := e.walkEntry(ctx, entry, depth)
		if err != nil {
			return outcome{}, err
		}
		unchanged.encrypted = unchanged.encrypted || out.encrypted
		unchanged.had = unchanged.had || out.had
		if out.after == nil {
			continue
		}
		refs[i] = out.desc
		moved[entry.Digest] = out.desc.Digest
		before[i] = change{desc: entry, data: out.before, encrypted: out.had}
		after[i] = change{desc: out.desc, data: out.after, encrypted: out.encrypted}
	}
	if len(after) == 0 {
		return unchanged, nil
	}
	text, err := e.crypt.index(d, after, before, moved)
	if err != nil {
		return outcome{}, fmt.Errorf("%s: %w", d.desc.Digest, err)
	}
	return e.put(ctx, d, text, refs, unchanged.had)
}

// walkEntry changes one entry of an index, or leaves it as it is.
func (e *editor) walkEntry(ctx context.Context, entry ocispec.Descriptor, depth int) (outcome, error) {
	switch {
	case !isManifest(entry.MediaType) && !isIndex(entry.MediaType):
		e.crypt.unchosen(entry, "it is no image manifest")
		return outcome{}, nil
	case isAttestation(entry):
		e.crypt.unchosen(entry, "it holds attestations")
		return outcome{}, nil
	case entry.Platform != nil && e.sel.Platform != nil && !e.sel.Platform(entry.Platform):
		e.crypt.unchosen(entry, "its platform is not selected")
		return outcome{}, nil
	}
	out, err := e.walk(ctx, entry, depth+1)
	var missing *MissingError
	if !errors.As(err, &missing) {
		return out, err
	}
	if missing.Platform == nil {
		missing.Platform = entry.Platform
	}
	if !e.crypt.tolerates(missing, entry) {
		return outcome{}, err
	}
	if e.missing == nil {
		e.missing = missing
	}
	e.notify(Notice{
		Kind: NoticeMissing, Desc: missing.Desc,
		Text: fmt.Sprintf("manifest %s%s is left as it is: %v", entry.Digest, forPlatform(entry.Platform), missing),
	})
	return outcome{}, nil
}

// put stores a rewritten document.
func (e *editor) put(ctx context.Context, d *document, text rewritten, refs []ocispec.Descriptor, had bool) (outcome, error) {
	// A manifest without config has none to refer to.
	refs = slices.DeleteFunc(refs, func(r ocispec.Descriptor) bool { return r.Digest == "" })
	desc, err := putBlob(ctx, e.store, text.mediaType, text.text, refs)
	if err != nil {
		return outcome{}, fmt.Errorf("store the manifest that replaces %s: %w", d.desc.Digest, err)
	}
	return outcome{desc: desc, before: d.text, after: text.text, encrypted: text.encrypted, had: had}, nil
}

// result checks what came of a walk.
func (e *editor) result(desc ocispec.Descriptor, layers int, err error) (Result, error) {
	if err != nil {
		return Result{}, err
	}
	if layers == 0 && e.missing != nil {
		return Result{}, e.missing
	}
	if e.chosen == 0 {
		return Result{}, fmt.Errorf("%w: no layer fits the given platforms and layers", ErrNothingSelected)
	}
	return Result{Desc: desc, Layers: layers}, nil
}

func hasEncrypted(layers []ocispec.Descriptor) bool {
	for _, desc := range layers {
		if layer.IsEncrypted(desc.MediaType) {
			return true
		}
	}
	return false
}
