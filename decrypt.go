package imgcrypt

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

// Decrypt decrypts the selected layers of the image root in s, and gives the
// manifests above them their original bytes back. The new image stands beside the
// old one: naming it is up to the caller, see [Tags]. Layers that are not encrypted
// are not read; where none of the selected ones is, the result has no layers and
// the root as it was.
//
// An error names the layer, as a [*LayerError] that wraps keys.ErrNoKey or
// layer.ErrTampered, or the missing blob, as a [*MissingError]; it is
// [ErrNothingSelected] where the selection fits no layer.
func Decrypt(ctx context.Context, s Store, root ocispec.Descriptor, o DecryptOptions) (Result, error) {
	if o.Notify == nil {
		o.Notify = func(Notice) {}
	}
	c := &decryption{store: s, o: o}
	c.editor = &editor{store: s, sel: o.Select, notify: o.Notify, crypt: c}
	first := &ahead{plan: c.plan}
	if err := first.run(ctx, s, root, o.Select, o.Jobs); err != nil {
		return Result{}, err
	}
	desc, err := c.edit(ctx, root)
	if err == nil && c.chosen == 0 && c.missing == nil && o.Select.Platform == nil && o.Select.Layer == nil {
		return Result{Desc: root}, nil // An image without layers.
	}
	return c.result(desc, c.opened.len(), err)
}

// decryption is one run of Decrypt.
type decryption struct {
	*editor
	store  Store
	o      DecryptOptions
	opened results[opening]
}

// opening is what became of one encrypted layer, and the annotations it had.
type opening struct {
	change
	had map[string]string
}

// plan is that of [ahead]: encrypted layers are opened.
func (c *decryption) plan(d *document) func(Layer) func(context.Context) error {
	rec, _ := readRecord(d)
	return func(l Layer) func(context.Context) error {
		if !layer.IsEncrypted(l.Desc.MediaType) {
			return nil
		}
		keep := rec.known(l.Index).Data != nil
		return func(ctx context.Context) error {
			_, err := c.layer(ctx, l, keep)
			return err
		}
	}
}

func (c *decryption) manifest(ctx context.Context, d *document, chosen []Layer) (outcome, error) {
	rec, _ := readRecord(d)
	changes := make(map[int]change)
	refs := append([]ocispec.Descriptor{d.config}, d.children...)
	for _, l := range chosen {
		if !layer.IsEncrypted(l.Desc.MediaType) {
			continue
		}
		ch, err := c.layer(ctx, l, rec.known(l.Index).Data != nil)
		if err != nil {
			return outcome{}, &LayerError{Index: l.Index, Digest: l.Desc.Digest, Platform: l.Platform, Err: err}
		}
		changes[l.Index] = ch
		refs[l.Index+1] = ch.desc
	}
	had := hasEncrypted(d.children)
	if len(changes) == 0 {
		return outcome{desc: d.desc, before: d.text, encrypted: had, had: had}, nil
	}
	text, err := open(d, changes, nil)
	if err != nil {
		return outcome{}, err
	}
	c.inexact(d, text)
	return c.put(ctx, d, text, refs, had)
}

func (c *decryption) index(d *document, after, _ map[int]change, moved map[digest.Digest]digest.Digest) (rewritten, error) {
	text, err := open(d, after, moved)
	if err == nil {
		c.inexact(d, text)
	}
	return text, err
}

// inexact tells the user where a decrypted document may differ from the original.
func (c *decryption) inexact(d *document, text rewritten) {
	if text.exact || text.encrypted {
		return
	}
	c.o.Notify(Notice{Kind: NoticeInexact, Desc: d.desc, Text: fmt.Sprintf("manifest %s was encrypted or rewritten by another tool: once decrypted, it may differ from the original in form and digest", d.desc.Digest)})
}

func (c *decryption) unchosen(ocispec.Descriptor, string) {}

// tolerates lets an image be decrypted that was pulled for one platform only.
func (c *decryption) tolerates(*MissingError, ocispec.Descriptor) bool { return c.o.KeepMissing }

// layer decrypts one layer. keep asks for its plain bytes, for the descriptor.
func (c *decryption) layer(ctx context.Context, l Layer, keep bool) (change, error) {
	o, ok := c.opened.get(l.Desc.Digest)
	if !ok || !maps.Equal(o.had, l.Desc.Annotations) || keep && o.data == nil {
		var err error
		if o.change, err = c.unseal(ctx, l, keep); err != nil {
			return change{}, err
		}
		o.had = l.Desc.Annotations
		c.opened.set(l.Desc.Digest, o)
	}
	ch := o.change
	ch.desc.MediaType = layer.PlainMediaType(l.Desc.MediaType)
	return ch, nil
}

// unseal opens one layer's secret and streams its plain bytes into the store.
func (c *decryption) unseal(ctx context.Context, l Layer, keep bool) (change, error) {
	secret, err := keys.Open(ctx, c.o.Identities, l.Desc.Annotations)
	if err != nil {
		return change{}, err
	}
	want := ocispec.Descriptor{MediaType: layer.PlainMediaType(l.Desc.MediaType)}
	// Only where the original digest is no SHA-256 does the store need to be told;
	// and the secret's is a hint that other tools give otherwise.
	if hint := secret.Digest; hint.Validate() == nil && hint.Algorithm() != digest.SHA256 {
		want.Digest, want.Size = hint, l.Desc.Size
	}
	ch, err := again(ctx, func() (change, error) { return c.stream(ctx, l, secret, want, keep) })
	if want.Digest != "" && errors.Is(err, ErrMismatch) && !errors.Is(err, layer.ErrTampered) {
		want.Digest, want.Size = "", 0
		return again(ctx, func() (change, error) { return c.stream(ctx, l, secret, want, keep) })
	}
	return ch, err
}

func (c *decryption) stream(ctx context.Context, l Layer, secret layer.Secret, want ocispec.Descriptor, keep bool) (change, error) {
	r, opener, err := openSealed(ctx, c.store, l.Desc, l.Platform, secret)
	if err != nil {
		return change{}, err
	}
	defer r.Close()
	plain := capture(opener, l.Desc, keep)
	desc, err := c.store.Put(ctx, want, plain)
	if err != nil {
		return change{}, err
	}
	return change{desc: desc, data: plain.bytes()}, nil
}
