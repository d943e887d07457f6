package archive

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/store/internal/blobio"
)

// maxDepth bounds how deep indexes may be nested.
const maxDepth = 8

// keeper copies what images need from the archive as it is into the new one.
type keeper struct {
	// now is what the archive is; old what it was when it was opened, or nil.
	now, old *tarball
	w        *writer
	// kept are the names of the files that images need, and manifests also with their
	// media types.
	kept map[string]bool
}

// keepAll copies what images need, and files that were put for others.
func (k *keeper) keepAll(ctx context.Context, images []ocispec.Descriptor, pending map[string]bool) error {
	for _, desc := range images {
		if err := k.keep(ctx, desc, 0); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(pending)) {
		if err := k.copy(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// keep copies the blob of desc and all that it points to. What is not there was not
// there before either: an image may have been fetched for one platform only.
func (k *keeper) keep(ctx context.Context, desc ocispec.Descriptor, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: indexes nested more than %d deep", imgcrypt.ErrManifest, maxDepth)
	}
	if blobio.CheckDigest(desc.Digest) != nil {
		return nil // No file has such a name.
	}
	name := blobName(desc.Digest)
	// The same bytes may be an index for one and something else for another.
	key := name + " " + desc.MediaType
	if k.kept[key] {
		return nil
	}
	k.kept[name], k.kept[key] = true, true
	if err := k.copy(ctx, name); err != nil {
		return err
	}
	if !imgcrypt.IsManifest(desc) {
		return nil
	}
	text, err := k.read(ctx, desc)
	if text == nil || err != nil {
		return err
	}
	refs, err := imgcrypt.References(desc, text)
	if err != nil {
		return fmt.Errorf("%s: %w", desc.Digest, err)
	}
	for _, ref := range refs {
		if err := k.keep(ctx, ref, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// read returns a manifest, nil if it is not there.
func (k *keeper) read(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	e, ok := k.w.tar.find(blobName(desc.Digest))
	if !ok {
		return nil, nil
	}
	if e.size > imgcrypt.MaxManifestSize {
		return nil, fmt.Errorf("%w: %s has %d bytes, more than the %d that are read", imgcrypt.ErrManifest, desc.Digest, e.size, imgcrypt.MaxManifestSize)
	}
	r, err := k.w.tar.open(ctx, e)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(blobio.Verify(ctx, r, desc))
}

// copy copies a file, unless it was written already.
func (k *keeper) copy(ctx context.Context, name string) error {
	if _, ok := k.w.tar.find(name); ok {
		return nil
	}
	for _, from := range []*tarball{k.now, k.old} {
		if from == nil {
			continue
		}
		if e, ok := from.find(name); ok {
			if err := copyFile(ctx, k.w, from, name, e); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		}
	}
	return nil
}

// copyFile copies a file as it is.
func copyFile(ctx context.Context, w *writer, from *tarball, name string, e entry) error {
	r, err := from.open(ctx, e)
	if err != nil {
		return err
	}
	defer r.Close()
	return w.add(len(name), func(out io.Writer) (string, error) {
		got, err := blobio.Copy(ctx, out, r, ocispec.Descriptor{})
		if err == nil && got.Size != e.size {
			err = fmt.Errorf("it ends after %d of %d bytes: %w", got.Size, e.size, io.ErrUnexpectedEOF)
		}
		return name, err
	})
}
