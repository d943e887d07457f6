package layout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/store/internal/blobio"
	"imgcrypt/store/internal/tempfile"
)

// Delete removes an image, for which there must be no name any more: its manifest and
// whatever else only it needs. It is for images that nobody adds at the same time
// something of to the layout. If another image in it cannot be read, nothing is removed.
func (s *Store) Delete(ctx context.Context, desc ocispec.Descriptor) error {
	root, err := s.writing(ctx)
	if err != nil {
		return err
	}
	unlock, err := tempfile.Lock(ctx, root, ".")
	if err != nil {
		return s.error(err)
	}
	defer unlock()
	if err := s.delete(ctx, root, desc); err != nil {
		return s.error(fmt.Errorf("delete %.100s: %w", desc.Digest, err))
	}
	return nil
}

// delete does it while the layout is locked.
func (s *Store) delete(ctx context.Context, root *os.Root, desc ocispec.Descriptor) error {
	x, err := readIndex(root)
	if err != nil {
		return err
	}
	needed := make(blobSet)
	for i, entry := range x.Entries {
		if err := s.needs(ctx, entry, needed, 0); err != nil {
			return fmt.Errorf("the image %.100q is needed to tell what can go: %w", x.Name(i), err)
		}
	}
	if needed[desc.Digest] != nil {
		return errors.New("it has a name, or belongs to an image that has one")
	}
	doomed := make(blobSet)
	if err := s.needs(ctx, desc, doomed, 0); err != nil {
		return err
	}
	for d := range doomed {
		if needed[d] != nil {
			continue
		}
		if err := root.Remove(blobPath(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// maxDepth bounds how deep indexes may be nested.
const maxDepth = 8

// blobSet are blobs, with the media types under which they are known: the same bytes may be
// an index for one and something else for another.
type blobSet map[digest.Digest]map[string]bool

// needs notes all blobs that desc leads to, those that are not there too.
func (s *Store) needs(ctx context.Context, desc ocispec.Descriptor, all blobSet, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: indexes nested more than %d deep", imgcrypt.ErrManifest, maxDepth)
	}
	if blobio.CheckDigest(desc.Digest) != nil {
		return nil // No file has such a name.
	}
	known := all[desc.Digest][desc.MediaType]
	if all[desc.Digest] == nil {
		all[desc.Digest] = make(map[string]bool)
	}
	all[desc.Digest][desc.MediaType] = true
	if known || !imgcrypt.IsManifest(desc) {
		return nil
	}
	text, err := s.readDoc(ctx, desc)
	if errors.Is(err, imgcrypt.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	refs, err := imgcrypt.References(desc, text)
	if err != nil {
		return fmt.Errorf("%s: %w", desc.Digest, err)
	}
	for _, ref := range refs {
		if err := s.needs(ctx, ref, all, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// readDoc reads a manifest or an index.
func (s *Store) readDoc(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > imgcrypt.MaxManifestSize {
		return nil, fmt.Errorf("%w: %s has %d bytes, more than the %d that are read", imgcrypt.ErrManifest, desc.Digest, desc.Size, imgcrypt.MaxManifestSize)
	}
	r, err := s.Open(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
