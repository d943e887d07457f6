package layout

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/store/internal/imageindex"
	"imgcrypt/store/internal/tempfile"
)

// Resolve implements [imgcrypt.Tags]. An image is named by its annotation
// org.opencontainers.image.ref.name in the layout's index.json; or else
// io.containerd.image.name, which containerd and Docker write; or "@0" for the first one
// there, or "@sha256:…", its digest. "" is the only image that there is. A name that does
// not name one image is a [*NameError]. The result is the whole entry, with platform and
// annotations.
func (s *Store) Resolve(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	x, i, err := s.find(ctx, ref)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return x.Entries[i], nil
}

// Name returns the name by which [Store.Tag] replaces the image that ref stands for, and
// no other: what to give to it after an image was changed in place. Errors are those of
// Resolve.
func (s *Store) Name(ctx context.Context, ref string) (string, error) {
	x, i, err := s.find(ctx, ref)
	if err != nil {
		return "", err
	}
	return x.Name(i), nil
}

func (s *Store) find(ctx context.Context, ref string) (*imageindex.Index, int, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	root, err := s.reading()
	if err != nil {
		return nil, 0, err
	}
	x := imageindex.New()
	if root != nil {
		if x, err = readIndex(root); err != nil {
			return nil, 0, s.error(err)
		}
	}
	i, err := x.Find(ref)
	if err != nil {
		return nil, 0, s.error(err)
	}
	return x, i, nil
}

// readIndex reads index.json, which every layout has; only in a directory that is still
// empty it may be missing.
func readIndex(root *os.Root) (*imageindex.Index, error) {
	text, err := readFile(root, ocispec.ImageIndexFile, imageindex.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := root.Lstat(ocispec.ImageLayoutFile); errors.Is(err, fs.ErrNotExist) {
			return imageindex.New(), nil
		}
		return nil, fmt.Errorf("%w: it has no file %s", imgcrypt.ErrManifest, ocispec.ImageIndexFile)
	}
	if err != nil {
		return nil, err
	}
	return imageindex.Parse(text)
}

// Tag implements [imgcrypt.Tags]. It replaces the image that ref names as [Store.Resolve]
// finds it, and else gives desc a new name, which has the grammar of the specification.
// With "" it replaces the only image if that has no name, or is the first; it is an error
// that wraps [ErrAmbiguous] if there are others or it has one. What is not about desc,
// other images and annotations, stays as it is. desc has to be there.
func (s *Store) Tag(ctx context.Context, ref string, desc ocispec.Descriptor) error {
	if has, err := s.Has(ctx, desc); err != nil {
		return err
	} else if !has {
		return s.error(&imgcrypt.MissingError{Desc: desc})
	}
	root, err := s.writing(ctx)
	if err != nil {
		return err
	}
	if err := s.sync(root); err != nil {
		return s.error(err)
	}
	unlock, err := tempfile.Lock(ctx, root, ".")
	if err != nil {
		return s.error(err)
	}
	defer unlock()
	if err := rename(root, ref, desc); err != nil {
		return s.error(err)
	}
	return nil
}

// sync makes the blobs durable that were written: a name must not survive them.
func (s *Store) sync(root *os.Root) error {
	s.mu.Lock()
	written := slices.Collect(maps.Keys(s.written))
	s.mu.Unlock()
	if len(written) == 0 {
		return nil
	}
	for _, algorithm := range written {
		if err := tempfile.SyncDir(root, path.Join(ocispec.ImageBlobsDir, algorithm.String())); err != nil {
			return err
		}
	}
	return tempfile.SyncDir(root, ocispec.ImageBlobsDir)
}

// rename changes index.json, while it is locked.
func rename(root *os.Root, ref string, desc ocispec.Descriptor) error {
	x, err := readIndex(root)
	if err != nil {
		return err
	}
	if err := x.Set(ref, desc); err != nil {
		return err
	}
	var perm fs.FileMode
	if info, err := root.Stat(ocispec.ImageIndexFile); err == nil {
		perm = info.Mode().Perm()
	}
	if err := tempfile.Write(root, ocispec.ImageIndexFile, x.Bytes(), perm); err != nil {
		return err
	}
	return tempfile.SyncDir(root, ".")
}
