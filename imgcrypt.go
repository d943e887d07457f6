// Package imgcrypt encrypts the layers of container images for chosen recipients,
// and decrypts, authorises and inspects encrypted ones, in the format of ocicrypt.
//
// It works on one image in one [Store], whatever holds the blobs: a containerd, a
// registry, a directory. [Encrypt] and [Decrypt] rewrite manifests as text, so
// that decrypting gives back the original bytes and digests; see docs/adr.
//
// The recipients and identities come from package keys, one layer's bytes and the
// wire format from package layer. For containerd's clients there is
// images/encryption.
package imgcrypt

import (
	"context"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

// Store holds blobs. A Store is safe for concurrent use.
type Store interface {
	// Open returns the blob of desc. A blob that is not there is an error that
	// wraps [ErrNotFound]. The caller closes the reader. What it reads need not
	// have been verified.
	Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
	// Put stores what r yields until io.EOF; after any other error nothing is
	// stored. With an empty want.Digest it computes digest and size, with one
	// set it verifies both; want.MediaType is kept. refs are the blobs that this
	// one points to, in the order of the manifest, config first: a store that
	// collects garbage keeps them as long as this one. The result has media
	// type, digest and size set, and nothing else.
	Put(ctx context.Context, want ocispec.Descriptor, r io.Reader, refs ...ocispec.Descriptor) (ocispec.Descriptor, error)
}

// Tags holds the names of a store's images. Replacing a name is one step: at no
// moment is it gone.
type Tags interface {
	// Resolve returns what ref names, or an error that wraps [ErrNotFound].
	Resolve(ctx context.Context, ref string) (ocispec.Descriptor, error)
	// Tag makes ref name desc, whether or not it named something before.
	Tag(ctx context.Context, ref string, desc ocispec.Descriptor) error
}

// Layer says where in an image a layer is.
type Layer struct {
	// Desc is the layer's descriptor as it is in its manifest.
	Desc ocispec.Descriptor
	// Index counts the manifest's layers from 0; Count is how many there are.
	Index, Count int
	// Manifest is the descriptor of the layer's manifest.
	Manifest ocispec.Descriptor
	// Platform is that of the index entry, or of the image config where the
	// image is a single manifest. It is nil where neither names one.
	Platform *ocispec.Platform
}

// Encrypted says whether the layer's media type is that of an encrypted one.
func (l Layer) Encrypted() bool { return layer.IsEncrypted(l.Desc.MediaType) }

// Selection chooses layers. The zero value chooses all of them.
type Selection struct {
	// Platform chooses manifests; nil chooses all. It is called with nil for a
	// manifest whose platform is unknown. Attestation manifests are never
	// chosen: they are not run and stay readable.
	Platform func(*ocispec.Platform) bool
	// Layer chooses among the layers of the chosen manifests; nil chooses all.
	Layer func(Layer) bool
}

// NoticeKind says what a [Notice] is about.
type NoticeKind string

// The kinds of notices.
const (
	// NoticeReadable: the encryption leaves this blob readable for everybody.
	NoticeReadable NoticeKind = "readable"
	// NoticeMissing: this manifest is not in the store and was left as it is.
	NoticeMissing NoticeKind = "missing"
	// NoticeInexact: decrypting cannot, or could not, give back the original
	// bytes and digest of this manifest.
	NoticeInexact NoticeKind = "inexact"
)

// Notice is something that is no failure, but that the user has to know.
type Notice struct {
	Kind NoticeKind
	// Desc is the blob that it is about.
	Desc ocispec.Descriptor
	// Text is one line for people, naming the blob.
	Text string
}

// EncryptOptions are the options of [Encrypt].
type EncryptOptions struct {
	// Recipients receive the secret of each selected layer; at least one.
	Recipients []keys.Recipient
	// Identities open layers that are encrypted already, to add the recipients
	// to them. Without one that opens it, such a layer is an error.
	Identities []keys.Identity
	// Replace makes the recipients the only ones of layers that are encrypted
	// already: who is not among them is removed. Zero: they are added.
	Replace bool
	// Rekey encrypts layers that are encrypted already anew, with a new key and
	// nonce, for the recipients alone. Who kept the old image can open that one,
	// and not the new one. Zero: the layers stay as they are.
	Rekey bool
	// Select chooses what is encrypted. Zero: every layer.
	Select Selection
	// KeepMissing leaves an index entry as it is whose manifest is not in the
	// store. Zero: that is a [*MissingError].
	KeepMissing bool
	// Jobs is how many layers are encrypted at the same time. Zero: one.
	Jobs int
	// Notify is told what the user has to know. nil: nobody is.
	Notify func(Notice)
}

// DecryptOptions are the options of [Decrypt].
type DecryptOptions struct {
	// Identities open the layers.
	Identities []keys.Identity
	// Select chooses what is decrypted. Zero: every encrypted layer.
	Select Selection
	// KeepMissing leaves an index entry as it is whose manifest, or one of whose
	// encrypted layers, is not in the store, as long as there is another one
	// that can be decrypted. Zero: that is a [*MissingError].
	KeepMissing bool
	// Jobs is how many layers are decrypted at the same time. Zero: one.
	Jobs int
	// Notify is told what the user has to know. nil: nobody is.
	Notify func(Notice)
}

// Result is what [Encrypt] and [Decrypt] made.
type Result struct {
	// Desc is the new image's root: media type, digest and size, and whatever
	// else the given descriptor carried. It equals the given one where nothing
	// was to do.
	Desc ocispec.Descriptor
	// Layers counts the distinct layers that were encrypted or decrypted, or to
	// which recipients were added. 0: nothing was to do.
	Layers int
}

// AuthorizeOptions are the options of [Authorize].
type AuthorizeOptions struct {
	// Identities open the layers. None are needed for an image without
	// encrypted layers.
	Identities []keys.Identity
	// Platform chooses the manifests that will run; nil chooses all.
	Platform func(*ocispec.Platform) bool
}
