package imgcrypt

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

var (
	// ErrLastRecipient means that nobody could open a layer any more.
	ErrLastRecipient = errors.New("it would have no recipient left")
	// ErrSharedPacket means that a recipient cannot be removed alone, because
	// another tool wrapped the layer's secret for several in one packet.
	ErrSharedPacket = errors.New("in one packet with others")
)

// RemoveOptions are the options of [RemoveRecipients].
type RemoveOptions struct {
	// Schemes name the recipients, as for [Inspect].
	Schemes []keys.Scheme
	// Remove chooses whom to remove.
	Remove func(Recipient) bool
	// Select chooses from which layers. Zero: from every layer.
	Select Selection
	// KeepMissing leaves an index entry as it is whose manifest is not in the
	// store. Zero: that is a [*MissingError].
	KeepMissing bool
	// Notify is told what the user has to know. nil: nobody is.
	Notify func(Notice)
}

// RemoveRecipients removes the packets of recipients from the encrypted layers of the
// image root in s. No layer is read and no key needed. It says nothing about whoever
// has the old image or a layer's secret: they can open the layer for ever, unless it
// is encrypted anew.
//
// An error names the layer, as a [*LayerError]: one that wraps [ErrLastRecipient] or
// [ErrSharedPacket]. A result without layers means that nobody fitted.
func RemoveRecipients(ctx context.Context, s Store, root ocispec.Descriptor, o RemoveOptions) (Result, error) {
	if o.Notify == nil {
		o.Notify = func(Notice) {}
	}
	c := &removal{o: o, done: make(map[digest.Digest]bool)}
	c.editor = &editor{store: s, sel: o.Select, notify: o.Notify, crypt: c}
	desc, err := c.edit(ctx, root)
	return c.result(desc, len(c.done), err)
}

// removal is one run of RemoveRecipients.
type removal struct {
	*editor
	o    RemoveOptions
	done map[digest.Digest]bool
}

func (c *removal) manifest(ctx context.Context, d *document, chosen []Layer) (outcome, error) {
	after := make(map[int]change)
	for _, l := range chosen {
		if !layer.IsEncrypted(l.Desc.MediaType) {
			continue
		}
		annotations, err := c.without(l.Desc.Annotations)
		if err != nil {
			return outcome{}, &LayerError{Index: l.Index, Digest: l.Desc.Digest, Platform: l.Platform, Err: err}
		}
		if annotations != nil {
			after[l.Index] = change{desc: l.Desc, annotations: annotations, only: true}
			c.done[l.Desc.Digest] = true
		}
	}
	had := hasEncrypted(d.children)
	if len(after) == 0 {
		return outcome{desc: d.desc, before: d.text, encrypted: had, had: had}, nil
	}
	text, err := seal(d, after, nil, nil)
	if err != nil {
		return outcome{}, err
	}
	return c.put(ctx, d, text, append([]ocispec.Descriptor{d.config}, d.children...), had)
}

func (c *removal) index(d *document, after, before map[int]change, moved map[digest.Digest]digest.Digest) (rewritten, error) {
	return seal(d, after, before, moved)
}

func (c *removal) unchosen(ocispec.Descriptor, string) {}

func (c *removal) tolerates(missing *MissingError, entry ocispec.Descriptor) bool {
	return c.o.KeepMissing && missing.Desc.Digest == entry.Digest
}

// without returns the encryption's annotations of a layer without the packets that are
// to be removed; nil if there are none. Damaged packets of others stay as they are.
func (c *removal) without(annotations map[string]string) (map[string]string, error) {
	after := make(map[string]string)
	left, removed := 0, false
	for name, value := range annotations {
		scheme, ok := strings.CutPrefix(name, layer.KeysAnnotationPrefix)
		if !layer.IsAnnotation(name) {
			continue
		}
		if !ok || scheme == "" {
			after[name] = value
			continue
		}
		var stay []string
		for text := range strings.SplitSeq(value, ",") {
			remove, err := c.removes(scheme, text)
			if err != nil {
				return nil, err
			}
			if removed = removed || remove; !remove {
				stay = append(stay, text)
			}
		}
		if len(stay) > 0 {
			after[name] = strings.Join(stay, ",")
			left += len(stay)
		}
	}
	switch {
	case !removed:
		return nil, nil
	case left == 0:
		return nil, ErrLastRecipient
	}
	return after, nil
}

// removes says whether a packet, in base64, is to be removed.
func (c *removal) removes(scheme, text string) (bool, error) {
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(data) > layer.MaxPacketSize {
		return false, nil
	}
	names := describe(layer.Packet{Scheme: scheme, Data: data}, c.o.Schemes)
	stays := slices.IndexFunc(names, func(name string) bool { return !c.o.Remove(Recipient{Scheme: scheme, Name: name}) })
	switch {
	case stays < 0:
		return true, nil
	case slices.ContainsFunc(names, func(name string) bool { return c.o.Remove(Recipient{Scheme: scheme, Name: name}) }):
		return false, fmt.Errorf("%w: %s stays", ErrSharedPacket, names[stays])
	}
	return false, nil
}
