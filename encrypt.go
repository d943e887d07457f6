package imgcrypt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

// Encrypt encrypts the selected layers of the image root in s, and adds the
// recipients to those that are encrypted already. The new image stands beside the
// old one: naming it is up to the caller, see [Tags].
//
// Attestation manifests, image configs and layers that are not in the image but
// elsewhere (with urls) stay as they are. An error names the layer, as a
// [*LayerError], or the missing blob, as a [*MissingError]; it is
// [ErrNothingSelected] where the selection fits no layer.
func Encrypt(ctx context.Context, s Store, root ocispec.Descriptor, o EncryptOptions) (Result, error) {
	if len(o.Recipients) == 0 {
		return Result{}, errors.New("no recipient to encrypt for")
	}
	if o.Notify == nil {
		o.Notify = func(Notice) {}
	}
	o.Recipients = distinct(o.Recipients)
	c := &encryption{store: s, o: o, done: make(map[digest.Digest]bool)}
	c.editor = &editor{store: s, sel: o.Select, notify: o.Notify, crypt: c}
	first := &ahead{plan: c.plan}
	if err := first.run(ctx, s, root, o.Select, o.Jobs); err != nil {
		return Result{}, err
	}
	desc, err := c.edit(ctx, root)
	return c.result(desc, len(c.done), err)
}

// encryption is one run of Encrypt.
type encryption struct {
	*editor
	store Store
	o     EncryptOptions
	// sealed and rekeyed are what became of plain and of encrypted layers.
	sealed, rekeyed results[sealing]
	done            map[digest.Digest]bool
}

// sealing is what became of one plain layer, in whichever manifests it is.
type sealing struct {
	after, before change
}

func (c *encryption) manifest(ctx context.Context, d *document, chosen []Layer) (outcome, error) {
	after, before := make(map[int]change), make(map[int]change)
	refs := append([]ocispec.Descriptor{d.config}, d.children...)
	readable := make(map[int]string)
	for i, desc := range d.children {
		if !layer.IsEncrypted(desc.MediaType) {
			readable[i] = "it is not selected"
		}
	}
	extended := false
	for _, l := range chosen {
		if len(l.Desc.URLs) > 0 && !layer.IsEncrypted(l.Desc.MediaType) {
			readable[l.Index] = "its content is elsewhere, at its urls"
			continue
		}
		s, err := c.layer(ctx, l)
		if err != nil {
			return outcome{}, &LayerError{Index: l.Index, Digest: l.Desc.Digest, Platform: l.Platform, Err: err}
		}
		delete(readable, l.Index)
		if s.after.annotations == nil {
			continue // Every recipient is there already.
		}
		c.done[l.Desc.Digest] = true
		after[l.Index], before[l.Index] = s.after, s.before
		extended = extended || layer.IsEncrypted(l.Desc.MediaType)
		refs[l.Index+1] = s.after.desc
	}
	for i, desc := range d.children {
		if why := readable[i]; why != "" {
			c.o.Notify(Notice{Kind: NoticeReadable, Desc: desc, Text: fmt.Sprintf("layer %d (%s) of manifest %s stays readable: %s", i, desc.Digest, d.desc.Digest, why)})
		}
	}
	had := hasEncrypted(d.children)
	if len(after) == 0 {
		return outcome{desc: d.desc, before: d.text, encrypted: had, had: had}, nil
	}
	if d.config.Digest != "" {
		c.o.Notify(Notice{Kind: NoticeReadable, Desc: d.config, Text: fmt.Sprintf("config %s of manifest %s stays readable: environment, labels, history", d.config.Digest, d.desc.Digest)})
	}
	if extended {
		before = nil
	}
	text, err := c.rewrite(d, after, before, nil)
	if err != nil {
		return outcome{}, err
	}
	return c.put(ctx, d, text, refs, had)
}

func (c *encryption) index(d *document, after, before map[int]change, moved map[digest.Digest]digest.Digest) (rewritten, error) {
	return c.rewrite(d, after, before, moved)
}

func (c *encryption) rewrite(d *document, after, before map[int]change, moved map[digest.Digest]digest.Digest) (rewritten, error) {
	text, err := seal(d, after, before, moved)
	if err == nil && !text.exact {
		c.o.Notify(Notice{Kind: NoticeInexact, Desc: d.desc, Text: fmt.Sprintf("manifest %s is written so that decrypting cannot restore it to the byte: its digest will be another", d.desc.Digest)})
	}
	return text, err
}

func (c *encryption) unchosen(entry ocispec.Descriptor, why string) {
	c.o.Notify(Notice{Kind: NoticeReadable, Desc: entry, Text: fmt.Sprintf("manifest %s%s stays as it is: %s", entry.Digest, forPlatform(entry.Platform), why)})
}

func (c *encryption) tolerates(missing *MissingError, entry ocispec.Descriptor) bool {
	return c.o.KeepMissing && missing.Desc.Digest == entry.Digest
}

// layer encrypts one layer, or adds the recipients to it.
func (c *encryption) layer(ctx context.Context, l Layer) (sealing, error) {
	if layer.IsEncrypted(l.Desc.MediaType) {
		switch {
		case c.o.Rekey:
			return c.rekeyOnce(ctx, l)
		case c.o.Replace:
			return c.replace(ctx, l.Desc)
		}
		return c.extend(ctx, l.Desc)
	}
	if err := checkPlain(l.Desc); err != nil {
		return sealing{}, err
	}
	s, err := c.sealOnce(ctx, l)
	if err != nil {
		return sealing{}, err
	}
	s.after.desc.MediaType = layer.EncryptedMediaType(l.Desc.MediaType)
	s.before.desc.MediaType = layer.OCIMediaType(l.Desc.MediaType)
	return s, nil
}

// checkPlain returns an error for a layer of which nobody knows what it is.
func checkPlain(desc ocispec.Descriptor) error {
	for name := range desc.Annotations {
		if layer.IsAnnotation(name) {
			return fmt.Errorf("%w: it has the annotation %.100q of an encrypted layer, and the media type %q", ErrManifest, name, desc.MediaType)
		}
	}
	if desc.MediaType == "" {
		return fmt.Errorf("%w: it has no media type", ErrManifest)
	}
	return nil
}

// plan is that of [ahead]: layers that are going to be sealed are.
func (c *encryption) plan(*document) func(Layer) func(context.Context) error {
	return func(l Layer) func(context.Context) error {
		switch {
		case layer.IsEncrypted(l.Desc.MediaType) && c.o.Rekey:
			return func(ctx context.Context) error {
				_, err := c.rekeyOnce(ctx, l)
				return err
			}
		case layer.IsEncrypted(l.Desc.MediaType) || len(l.Desc.URLs) > 0 || checkPlain(l.Desc) != nil:
			return nil
		}
		return func(ctx context.Context) error {
			_, err := c.sealOnce(ctx, l)
			return err
		}
	}
}

// sealOnce seals a plain layer, unless that was done before.
func (c *encryption) sealOnce(ctx context.Context, l Layer) (sealing, error) {
	if s, ok := c.sealed.get(l.Desc.Digest); ok {
		return s, nil
	}
	s, err := again(ctx, func() (sealing, error) { return c.seal(ctx, l) })
	if err == nil {
		c.sealed.set(l.Desc.Digest, s)
	}
	return s, err
}

// seal streams one plain layer through the cipher into the store.
func (c *encryption) seal(ctx context.Context, l Layer) (sealing, error) {
	r, err := openBlob(ctx, c.store, l.Desc, l.Platform)
	if err != nil {
		return sealing{}, err
	}
	defer r.Close()
	plain := capture(r, l.Desc, l.Desc.Data != nil)
	after, err := c.stream(ctx, plain, l.Desc, layer.EncryptedMediaType(l.Desc.MediaType))
	if err != nil {
		return sealing{}, err
	}
	return sealing{
		after:  after,
		before: change{desc: ocispec.Descriptor{Digest: l.Desc.Digest, Size: l.Desc.Size}, data: plain.bytes()},
	}, nil
}

// stream encrypts what plain yields, of which want is known, into the store, and wraps
// its secret for the recipients.
func (c *encryption) stream(ctx context.Context, plain io.Reader, want ocispec.Descriptor, mediaType string) (change, error) {
	sealer, err := layer.NewSealer(plain, want.Digest, want.Size)
	if err != nil {
		return change{}, err
	}
	put, err := c.store.Put(ctx, ocispec.Descriptor{MediaType: mediaType}, sealer)
	if err != nil {
		return change{}, err
	}
	sealed, err := sealer.Sealed()
	if err != nil {
		return change{}, err
	}
	if put.Digest != sealed.Digest || put.Size != sealed.Size {
		return change{}, fmt.Errorf("%w: the store has %s (%d bytes), not %s (%d bytes)", ErrMismatch, put.Digest, put.Size, sealed.Digest, sealed.Size)
	}
	annotations, err := c.wrap(ctx, sealed.Secret, nil, nil)
	if err != nil {
		return change{}, err
	}
	annotations[layer.PublicAnnotation], err = layer.MarshalPublic(sealed.Public)
	return change{desc: put, annotations: annotations, only: true}, err
}

// rekeyOnce encrypts an encrypted layer anew, unless that was done before.
func (c *encryption) rekeyOnce(ctx context.Context, l Layer) (sealing, error) {
	if s, ok := c.rekeyed.get(l.Desc.Digest); ok {
		return s, nil
	}
	s, err := again(ctx, func() (sealing, error) {
		secret, err := keys.Open(ctx, c.o.Identities, l.Desc.Annotations)
		if err != nil {
			return sealing{}, err
		}
		r, plain, err := openSealed(ctx, c.store, l.Desc, l.Platform, secret)
		if err != nil {
			return sealing{}, err
		}
		defer r.Close()
		after, err := c.stream(ctx, plain, ocispec.Descriptor{Size: l.Desc.Size}, l.Desc.MediaType)
		return sealing{after: after}, err
	})
	if err == nil {
		c.rekeyed.set(l.Desc.Digest, s)
	}
	return s, err
}

// replace makes the recipients the only ones of an encrypted layer. Its packets are made
// anew in any case: what they say of whom they are for proves nothing, as a packet may
// be for others, too.
func (c *encryption) replace(ctx context.Context, desc ocispec.Descriptor) (sealing, error) {
	secret, err := keys.Open(ctx, c.o.Identities, desc.Annotations)
	if err != nil {
		return sealing{}, err
	}
	annotations, err := c.wrap(ctx, secret, nil, nil)
	if err != nil {
		return sealing{}, err
	}
	annotations[layer.PublicAnnotation] = desc.Annotations[layer.PublicAnnotation]
	return sealing{after: change{desc: desc, annotations: annotations, only: true}}, nil
}

// extend adds those recipients to an encrypted layer that cannot open it yet. A
// result without annotations means that all of them can.
func (c *encryption) extend(ctx context.Context, desc ocispec.Descriptor) (sealing, error) {
	// Damaged packets of others are neither opened nor lost.
	packets, _ := layer.Packets(desc.Annotations)
	if !slices.ContainsFunc(c.o.Recipients, func(r keys.Recipient) bool { return !owns(r, packets) }) {
		return sealing{}, nil
	}
	secret, err := keys.Open(ctx, c.o.Identities, desc.Annotations)
	if err != nil {
		return sealing{}, fmt.Errorf("it is encrypted already, and adding a recipient needs a key that opens it: %w", err)
	}
	annotations, err := c.wrap(ctx, secret, packets, desc.Annotations)
	if err != nil || len(annotations) == 0 {
		return sealing{}, err
	}
	return sealing{after: change{desc: desc, annotations: annotations}}, nil
}

// wrap returns the key annotations of a layer, with a packet added for every
// recipient that has none among packets, which are those that the layer had before:
// what was made here for one recipient says nothing about another, even if both are
// called the same.
func (c *encryption) wrap(ctx context.Context, secret layer.Secret, packets []layer.Packet, before map[string]string) (map[string]string, error) {
	text, err := layer.MarshalSecret(secret)
	if err != nil {
		return nil, err
	}
	annotations := make(map[string]string)
	marks := layer.ParseMarks(before[layer.MarksAnnotation])
	for _, r := range c.o.Recipients {
		marked, _ := r.(keys.Marked)
		if owns(r, packets) || marked != nil && hasMark(secret, marks, marked, packets) {
			continue
		}
		p, err := r.Wrap(ctx, text)
		if err != nil {
			return nil, fmt.Errorf("wrap its key: %w", err)
		}
		if p.Scheme == "" || len(p.Data) == 0 {
			return nil, errors.New("wrap its key: a recipient made no packet")
		}
		name := layer.KeysAnnotationPrefix + p.Scheme
		value, ok := annotations[name]
		if !ok {
			value = before[name]
		}
		annotations[name] = layer.AddPacket(value, p)
		if !readable(name, annotations[name], p) {
			return nil, fmt.Errorf("wrap its key: nobody could read the packet of the recipient again (scheme %.100q)", p.Scheme)
		}
		if marked != nil {
			_, who := marked.Mark()
			marks = append(marks, secret.Mark(p, who))
			annotations[layer.MarksAnnotation] = marks.String()
		}
	}
	return annotations, nil
}

// readable says whether the annotation holds p for those who read it.
func readable(name, value string, p layer.Packet) bool {
	packets, _ := layer.Packets(map[string]string{name: value})
	return slices.ContainsFunc(packets, func(q layer.Packet) bool { return q.Scheme == p.Scheme && bytes.Equal(q.Data, p.Data) })
}

// distinct drops recipients that were given more than once, in whatever words.
func distinct(recipients []keys.Recipient) []keys.Recipient {
	seen := make(map[string]bool)
	return slices.DeleteFunc(slices.Clone(recipients), func(r keys.Recipient) bool {
		id, ok := identity(r)
		if !ok {
			return false
		}
		defer func() { seen[id] = true }()
		return seen[id]
	})
}

// identity is a text that tells a recipient from all others, where it has one.
func identity(r keys.Recipient) (string, bool) {
	if marked, ok := r.(keys.Marked); ok {
		scheme, text := marked.Mark()
		return scheme + "\x00" + text, true
	}
	portable, ok := r.(keys.Portable)
	if !ok {
		return "", false
	}
	params, err := portable.Parameters()
	if err != nil {
		return "", false
	}
	text, err := json.Marshal(params)
	return string(text), err == nil
}

func owns(r keys.Recipient, packets []layer.Packet) bool {
	owner, ok := r.(keys.Owner)
	return ok && slices.ContainsFunc(packets, owner.Owns)
}

// hasMark says whether one of packets was marked as the recipient's.
func hasMark(secret layer.Secret, marks layer.Marks, r keys.Marked, packets []layer.Packet) bool {
	scheme, who := r.Mark()
	return slices.ContainsFunc(packets, func(p layer.Packet) bool {
		return p.Scheme == scheme && marks.Contains(secret.Mark(p, who))
	})
}

// captured reads a blob, and keeps it where it is small and wanted.
type captured struct {
	io.Reader
	buf *bytes.Buffer
}

// capture returns a reader of r that keeps what it reads if wanted. Only what can
// have been in a descriptor's data is kept.
func capture(r io.Reader, desc ocispec.Descriptor, wanted bool) captured {
	if !wanted || desc.Size > MaxManifestSize {
		return captured{Reader: r}
	}
	buf := new(bytes.Buffer)
	return captured{Reader: io.TeeReader(io.LimitReader(r, MaxManifestSize+1), buf), buf: buf}
}

// bytes returns what was kept, or nil.
func (c captured) bytes() []byte {
	if c.buf == nil {
		return nil
	}
	return append([]byte{}, c.buf.Bytes()...)
}
