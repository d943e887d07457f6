// Package store moves images between the places where they live. The places are its
// sub-packages: each is an imgcrypt.Store.
package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"imgcrypt"
)

// Prober is what a store implements that can tell cheaply whether it has a blob.
type Prober interface {
	// Has says whether the store has the blob of desc.
	Has(ctx context.Context, desc ocispec.Descriptor) (bool, error)
}

// Mounter is what a store implements that may take a blob from another one without its
// bytes going through here.
type Mounter interface {
	// MountFrom takes the blob of desc from src. It is false where that cannot be
	// done, for whatever reason.
	MountFrom(ctx context.Context, desc ocispec.Descriptor, src imgcrypt.Store) (bool, error)
}

// TransferOptions are the options of [NewTransfer].
type TransferOptions struct {
	// Jobs is how many blobs are copied at the same time. Zero: one.
	Jobs int
	// Skip says which blobs are not copied although something points to them, and
	// they may be missing in the source. nil: layers that have urls.
	Skip func(desc ocispec.Descriptor) bool
	// Watch, if set, returns the reader through which a blob is read from the
	// source: to count bytes, say.
	Watch func(desc ocispec.Descriptor, r io.Reader) io.Reader
}

// Transfer is an imgcrypt.Store that reads from one store and writes to another. With a
// manifest it writes, it copies what the manifest points to and what was not written
// before. So an image that is encrypted in a Transfer arrives whole, with everything
// that is not encrypted. It is safe for concurrent use.
type Transfer struct {
	src, dst imgcrypt.Store
	o        TransferOptions
	slots    chan struct{}

	mu        sync.Mutex
	blobs     map[digest.Digest]*arrival
	manifests int
}

// maxManifests bounds the manifests and indexes that are copied, far above what any
// image has: a few nested indexes could name as many as they like.
const maxManifests = 2000

// arrival is a blob that is in the destination, or on its way there.
type arrival struct {
	done chan struct{}
	err  error
}

// NewTransfer returns a Transfer from src to dst.
func NewTransfer(src, dst imgcrypt.Store, o TransferOptions) *Transfer {
	if o.Skip == nil {
		o.Skip = func(desc ocispec.Descriptor) bool { return len(desc.URLs) > 0 }
	}
	if o.Watch == nil {
		o.Watch = func(_ ocispec.Descriptor, r io.Reader) io.Reader { return r }
	}
	return &Transfer{src: src, dst: dst, o: o, slots: make(chan struct{}, max(1, o.Jobs)), blobs: make(map[digest.Digest]*arrival)}
}

// Open implements imgcrypt.Store: from the destination if it was written there by this
// Transfer, else from the source.
func (t *Transfer) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if t.arrived(desc.Digest) {
		return t.dst.Open(ctx, desc)
	}
	r, err := t.src.Open(ctx, desc)
	if err != nil {
		return nil, err
	}
	return watched{t.o.Watch(desc, r), r}, nil
}

type watched struct {
	io.Reader
	io.Closer
}

// Put implements imgcrypt.Store. What refs name and is not there yet is copied first.
func (t *Transfer) Put(ctx context.Context, want ocispec.Descriptor, r io.Reader, refs ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	if err := t.copyAll(ctx, refs); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := t.dst.Put(ctx, want, r, refs...)
	if err == nil {
		t.mu.Lock()
		t.blobs[desc.Digest] = arrivedNow()
		t.mu.Unlock()
	}
	return desc, err
}

func arrivedNow() *arrival {
	a := &arrival{done: make(chan struct{})}
	close(a.done)
	return a
}

func (t *Transfer) arrived(d digest.Digest) bool {
	t.mu.Lock()
	a := t.blobs[d]
	t.mu.Unlock()
	if a == nil {
		return false
	}
	select {
	case <-a.done:
		return a.err == nil
	default:
		return false
	}
}

// Copy copies the blob of desc and all that it points to, unless they are there.
func (t *Transfer) Copy(ctx context.Context, desc ocispec.Descriptor) error {
	t.mu.Lock()
	a := t.blobs[desc.Digest]
	if a != nil {
		t.mu.Unlock()
		select {
		case <-a.done:
			return a.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	a = &arrival{done: make(chan struct{})}
	t.blobs[desc.Digest] = a
	t.mu.Unlock()
	a.err = t.copy(ctx, desc)
	if a.err != nil {
		// Whoever comes later may try again.
		t.mu.Lock()
		delete(t.blobs, desc.Digest)
		t.mu.Unlock()
	}
	close(a.done)
	return a.err
}

func (t *Transfer) copyAll(ctx context.Context, refs []ocispec.Descriptor) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(cap(t.slots))
	for _, desc := range refs {
		if !t.o.Skip(desc) {
			group.Go(func() error { return t.Copy(ctx, desc) })
		}
	}
	return group.Wait()
}

func (t *Transfer) copy(ctx context.Context, desc ocispec.Descriptor) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("%w: digest %.100q: %w", imgcrypt.ErrManifest, desc.Digest, err)
	}
	if imgcrypt.IsManifest(desc) {
		return t.copyManifest(ctx, desc)
	}
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if p, ok := t.dst.(Prober); ok {
		if has, err := p.Has(ctx, desc); has || err != nil {
			return err
		}
	}
	if m, ok := t.dst.(Mounter); ok {
		if done, err := m.MountFrom(ctx, desc, t.src); done || err != nil {
			return err
		}
	}
	for try := 1; ; try++ {
		err := t.stream(ctx, desc)
		if !errors.Is(err, imgcrypt.ErrInterrupted) || try == maxTries {
			return err
		}
	}
}

// maxTries bounds how often a blob is sent from its beginning.
const maxTries = 4

func (t *Transfer) stream(ctx context.Context, desc ocispec.Descriptor) error {
	r, err := t.src.Open(ctx, desc)
	if errors.Is(err, imgcrypt.ErrNotFound) {
		return &imgcrypt.MissingError{Desc: desc, Platform: desc.Platform}
	}
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = t.dst.Put(ctx, desc, t.o.Watch(desc, r))
	return err
}

// copyManifest copies a manifest or an index after what it points to.
func (t *Transfer) copyManifest(ctx context.Context, desc ocispec.Descriptor) error {
	if desc.Size > imgcrypt.MaxManifestSize {
		return fmt.Errorf("%w: %s has %d bytes, more than the %d that are read", imgcrypt.ErrManifest, desc.Digest, desc.Size, imgcrypt.MaxManifestSize)
	}
	t.mu.Lock()
	t.manifests++
	many := t.manifests > maxManifests
	t.mu.Unlock()
	if many {
		return fmt.Errorf("%w: the image has more than %d manifests and indexes", imgcrypt.ErrManifest, maxManifests)
	}
	r, err := t.src.Open(ctx, desc)
	if errors.Is(err, imgcrypt.ErrNotFound) {
		return &imgcrypt.MissingError{Desc: desc, Platform: desc.Platform}
	}
	if err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(r, imgcrypt.MaxManifestSize+1))
	r.Close()
	if err != nil {
		return err
	}
	if desc.Digest.Algorithm().FromBytes(text) != desc.Digest {
		return fmt.Errorf("%s: %w", desc.Digest, imgcrypt.ErrMismatch)
	}
	refs, err := imgcrypt.References(desc, text)
	if err != nil {
		return fmt.Errorf("%s: %w", desc.Digest, err)
	}
	if err := t.copyAll(ctx, refs); err != nil {
		return err
	}
	_, err = t.dst.Put(ctx, ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}, bytes.NewReader(text), refs...)
	return err
}
