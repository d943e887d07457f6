package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/store/internal/blobio"
	"imgcrypt/store/internal/imageindex"
)

// OCI is the tar of an OCI image layout. It is an [imgcrypt.Store] and its
// [imgcrypt.Tags], and safe for concurrent use. Blobs are written one at a time.
type OCI struct {
	file *file
	// pending are the files of blobs that were put, and that no name has led to yet. Who
	// has the turn to write may use it.
	pending map[string]bool
}

var (
	_ imgcrypt.Store = (*OCI)(nil)
	_ imgcrypt.Tags  = (*OCI)(nil)
)

// Open opens the archive in a file. An error wraps [fs.ErrNotExist] where there is none,
// and [ErrNotArchive] where it is something else.
func Open(path string) (*OCI, error) { return openOCI(path, false) }

// Create opens the archive in a file, or one that is to be there, or in the place of an
// empty file. It is made with the first name. A file that is something else is an error
// that wraps [ErrNotArchive].
func Create(path string) (*OCI, error) { return openOCI(path, true) }

func openOCI(path string, create bool) (*OCI, error) {
	f, err := openFile(path, create, checkOCI)
	if err != nil {
		return nil, err
	}
	return &OCI{file: f, pending: make(map[string]bool)}, nil
}

func checkOCI(ctx context.Context, t *tarball) error {
	text, err := t.read(ctx, ocispec.ImageLayoutFile, imageindex.MaxLayoutFile)
	if !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = imageindex.CheckLayoutFile(text)
		}
		return err
	}
	if _, ok := t.find(dockerManifestFile); ok {
		return fmt.Errorf("%w: it is a docker-archive, not an oci-archive", ErrNotArchive)
	}
	return fmt.Errorf("%w: it has no file %s", ErrNotArchive, ocispec.ImageLayoutFile)
}

// blobName is the name of a blob's file. The digest has been checked.
func blobName(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// Open implements [imgcrypt.Store]. The reader reports an error that wraps
// [imgcrypt.ErrMismatch] instead of the end if the file does not have the digest or the
// size that desc says.
func (a *OCI) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := errors.Join(ctx.Err(), blobio.CheckDigest(desc.Digest)); err != nil {
		return nil, err
	}
	r, err := a.file.open(ctx, blobName(desc.Digest))
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, imgcrypt.ErrNotFound)
	}
	return blobio.Verify(ctx, r, desc), nil
}

// Has says whether there is a blob of that digest and size; its bytes are not read. One
// of another size is not there.
func (a *OCI) Has(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	if err := errors.Join(ctx.Err(), blobio.CheckDigest(desc.Digest)); err != nil {
		return false, err
	}
	e, ok, err := a.file.find(blobName(desc.Digest))
	return ok && e.size == desc.Size, err
}

// Put implements [imgcrypt.Store]. The blob is in the archive once an image has a name
// that it was put for. An archive that is compressed cannot be written to, which is an
// error that wraps [errors.ErrUnsupported].
func (a *OCI) Put(ctx context.Context, want ocispec.Descriptor, r io.Reader, _ ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	nameSize := len(blobName(digest.FromBytes(nil)))
	if want.Digest != "" {
		if err := blobio.CheckDigest(want.Digest); err != nil {
			return ocispec.Descriptor{}, err
		}
		nameSize = len(blobName(want.Digest))
	}
	var got ocispec.Descriptor
	err := a.file.stream(ctx, want, r, func(w *writer, r io.Reader) error {
		err := w.add(nameSize, func(out io.Writer) (name string, err error) {
			if got, err = blobio.Copy(ctx, out, r, want); err != nil {
				return "", err
			}
			return blobName(got.Digest), nil
		})
		if err == nil {
			a.pending[blobName(got.Digest)] = true
		}
		return err
	})
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write blob: %w", err)
	}
	return got, nil
}

// Resolve implements [imgcrypt.Tags]. An image is named by its annotation
// org.opencontainers.image.ref.name in the archive's index.json; or else
// io.containerd.image.name, which containerd and Docker write; or "@0" for the first one
// there, or "@sha256:…", its digest. "" is the only image that there is. A name that does
// not name one image is a [*NameError]. The result is the whole entry, with platform and
// annotations.
func (a *OCI) Resolve(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	x, i, err := a.resolve(ctx, ref)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return x.Entries[i], nil
}

// Name returns the name by which [OCI.Tag] replaces the image that ref stands for, and no
// other: what to give to it after an image was changed in place. Errors are those of
// Resolve.
func (a *OCI) Name(ctx context.Context, ref string) (string, error) {
	x, i, err := a.resolve(ctx, ref)
	if err != nil {
		return "", err
	}
	return x.Name(i), nil
}

func (a *OCI) resolve(ctx context.Context, ref string) (*imageindex.Index, int, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	t, release, err := a.file.present()
	if err != nil {
		return nil, 0, err
	}
	defer release()
	x, err := readIndex(ctx, t)
	if err != nil {
		return nil, 0, a.file.error(err)
	}
	i, err := x.Find(ref)
	if err != nil {
		return nil, 0, a.file.error(err)
	}
	return x, i, nil
}

// readIndex reads the index.json of an archive; nil has none.
func readIndex(ctx context.Context, t *tarball) (*imageindex.Index, error) {
	if t == nil {
		return imageindex.New(), nil
	}
	text, err := t.read(ctx, ocispec.ImageIndexFile, imageindex.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: it has no file %s", imgcrypt.ErrManifest, ocispec.ImageIndexFile)
	}
	if err != nil {
		return nil, err
	}
	return imageindex.Parse(text)
}

// Tag implements [imgcrypt.Tags], and makes what was put the archive. It replaces the
// image that ref names as [OCI.Resolve] finds it, and else gives desc a new name, which
// has the grammar of the specification. With "" it replaces the only image if that has no
// name, or is the first; it is an error that wraps [ErrAmbiguous] if there are others or
// it has one. desc has to be there, or have been put.
//
// The new archive has what its images need, and blobs that were put for images that have
// no name yet. So what only the replaced image needed is no longer in it, and neither are
// files that do not belong to a layout. Other images and their annotations stay as they
// are.
func (a *OCI) Tag(ctx context.Context, ref string, desc ocispec.Descriptor) error {
	if has, err := a.Has(ctx, desc); err != nil {
		return err
	} else if !has {
		return a.file.error(&imgcrypt.MissingError{Desc: desc})
	}
	var k keeper
	return a.file.replace(ctx, func(now *tarball, w *writer) error {
		x, err := readIndex(ctx, now)
		if err != nil {
			return err
		}
		if err := x.Set(ref, desc); err != nil {
			return err
		}
		k = keeper{now: now, old: a.file.old, w: w, kept: make(map[string]bool)}
		if err := k.keepAll(ctx, x.Entries, a.pending); err != nil {
			return err
		}
		if _, ok := w.tar.find(blobName(desc.Digest)); !ok {
			// Somebody else gave away its last name meanwhile.
			return &imgcrypt.MissingError{Desc: desc}
		}
		if err := w.addBytes(ocispec.ImageIndexFile, x.Bytes()); err != nil {
			return err
		}
		return w.addBytes(ocispec.ImageLayoutFile, []byte(imageindex.LayoutFile))
	}, func() {
		maps.DeleteFunc(a.pending, func(name string, _ bool) bool { return k.kept[name] })
	})
}

// Close ends the use of the archive. What was put without a name is discarded. Readers
// that are open can be read to their end.
func (a *OCI) Close() error { return a.file.close() }
