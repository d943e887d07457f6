// Package layout is a directory with images as a store: an OCI image layout, which is
// what skopeo, umoci, buildah and others call oci:DIR.
//
// [Open] is for what is there, [Create] for what may be there, and makes it with the
// first blob. Images have names in the layout's index.json; see [Store.Resolve] for what
// names an image.
//
// Whatever is read is checked against its digest and size while it is read. Whatever is
// written is there as a whole or not at all, on the disk too: a process that is killed
// leaves a hidden file at most, which the next one removes. Processes that write to the
// same layout do not get into each other's way. Symbolic links that lead out of the
// directory are not followed.
package layout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/store/internal/blobio"
	"imgcrypt/store/internal/imageindex"
	"imgcrypt/store/internal/tempfile"
)

var (
	// ErrNotLayout means that a directory is no image layout, and is not empty.
	ErrNotLayout = errors.New("not an OCI image layout")
	// ErrAmbiguous means that a name does not say which of several images is meant; it is
	// wrapped by a [*NameError].
	ErrAmbiguous = imageindex.ErrAmbiguous
)

// NameError says that a name does not name one image, and which names there are. It wraps
// [imgcrypt.ErrNotFound] or [ErrAmbiguous]. Its fields are Ref, the name that was looked
// for, Names, those that there are, and Err, what it wraps.
type NameError = imageindex.NameError

// Store is an image layout. It is an [imgcrypt.Store] and its [imgcrypt.Tags], and safe
// for concurrent use, also by several processes.
type Store struct {
	dir    string
	create bool

	mu      sync.Mutex
	root    *os.Root // nil as long as there is no directory
	ready   bool     // for writing
	written map[digest.Algorithm]bool
	closed  bool
}

var (
	_ imgcrypt.Store = (*Store)(nil)
	_ imgcrypt.Tags  = (*Store)(nil)
)

// Open opens the layout in a directory. An error wraps [fs.ErrNotExist] where there is
// none, and [ErrNotLayout] where it is something else.
func Open(dir string) (*Store, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	if err := check(root); err != nil {
		root.Close()
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return &Store{dir: dir, root: root}, nil
}

// Create opens the layout in a directory, or one that is to be there. With the first
// blob or name it is made, and its parent directories. A directory that is neither
// empty nor a layout is an error that wraps [ErrNotLayout].
func Create(dir string) (*Store, error) {
	s := &Store{dir: dir, create: true}
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	if err := checkOrEmpty(root); err != nil {
		root.Close()
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	s.root = root
	return s, nil
}

// check refuses what is no layout of a known version.
func check(root *os.Root) error {
	text, err := readFile(root, ocispec.ImageLayoutFile, imageindex.MaxLayoutFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: it has no file %s", ErrNotLayout, ocispec.ImageLayoutFile)
	}
	if err != nil {
		return err
	}
	return imageindex.CheckLayoutFile(text)
}

// checkOrEmpty is check, and lets pass what may become a layout: a directory that has
// nothing in it but what is made before the file that says that it is one.
func checkOrEmpty(root *os.Root) error {
	err := check(root)
	if !errors.Is(err, ErrNotLayout) {
		return err
	}
	dir, openErr := root.Open(".")
	if openErr != nil {
		return openErr
	}
	defer dir.Close()
	for {
		names, readErr := dir.Readdirnames(100)
		for _, name := range names {
			switch name {
			case ocispec.ImageIndexFile, ocispec.ImageBlobsDir, "lost+found":
			default:
				if !tempfile.IsName(name) {
					return err
				}
			}
		}
		if readErr == io.EOF {
			return nil
		}
		if readErr != nil {
			return readErr
		}
	}
}

// readFile reads a small regular file. One that is too large is an error that wraps
// [imgcrypt.ErrManifest].
func readFile(root *os.Root, name string, limit int64) ([]byte, error) {
	f, _, err := openFile(root, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%w: %s has more than %d bytes", imgcrypt.ErrManifest, name, limit)
	}
	return text, err
}

// openFile opens a regular file: to open anything else may take forever.
func openFile(root *os.Root, name string) (*os.File, fs.FileInfo, error) {
	info, err := root.Stat(name)
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a file", name)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, nil, err
	}
	if info, err = f.Stat(); err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// reading returns the directory, or nil where there is none yet.
func (s *Store) reading() (*os.Root, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, s.error(fs.ErrClosed)
	}
	if s.root == nil {
		// Another process may have made it.
		root, err := os.OpenRoot(s.dir)
		if err == nil {
			err = checkOrEmpty(root)
		}
		if err != nil {
			if root != nil {
				root.Close()
			}
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			return nil, err
		}
		s.root = root
	}
	return s.root, nil
}

// writing returns the directory and makes it a layout if need be.
func (s *Store) writing(ctx context.Context) (*os.Root, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, s.error(fs.ErrClosed)
	}
	if s.ready {
		return s.root, nil
	}
	if s.root == nil {
		if err := os.MkdirAll(s.dir, 0o777); err != nil {
			return nil, err
		}
		root, err := os.OpenRoot(s.dir)
		if err != nil {
			return nil, err
		}
		s.root = root
	}
	if s.create {
		if err := initialize(ctx, s.root); err != nil {
			return nil, s.error(err)
		}
	}
	tempfile.Clean(s.root)
	s.written, s.ready = make(map[digest.Algorithm]bool), true
	return s.root, nil
}

// initialize makes a directory a layout without images, unless it is one.
func initialize(ctx context.Context, root *os.Root) error {
	unlock, err := tempfile.Lock(ctx, root, ".")
	if err != nil {
		return err
	}
	defer unlock()
	if err := checkOrEmpty(root); err != nil {
		return err
	}
	// The file that makes it a layout comes last.
	for _, file := range []struct{ name, text string }{
		{ocispec.ImageIndexFile, string(imageindex.New().Bytes())},
		{ocispec.ImageLayoutFile, imageindex.LayoutFile},
	} {
		if _, err := root.Lstat(file.name); err == nil {
			continue
		}
		if err := tempfile.Write(root, file.name, []byte(file.text), 0); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) error(err error) error { return fmt.Errorf("%s: %w", s.dir, err) }

// blobPath returns the name of a blob's file. The digest has been checked.
func blobPath(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// Open implements [imgcrypt.Store]. The reader reports an error that wraps
// [imgcrypt.ErrMismatch] instead of the end if the file does not have the digest or the
// size that desc says.
func (s *Store) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := errors.Join(ctx.Err(), blobio.CheckDigest(desc.Digest)); err != nil {
		return nil, err
	}
	root, err := s.reading()
	if err != nil {
		return nil, err
	}
	if root == nil {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, imgcrypt.ErrNotFound)
	}
	f, _, err := openFile(root, blobPath(desc.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, imgcrypt.ErrNotFound)
	}
	if err != nil {
		return nil, s.error(err)
	}
	return blobio.Verify(ctx, f, desc), nil
}

// Has says whether there is a blob of that digest and size; its bytes are not read. One
// of another size is not there.
func (s *Store) Has(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	if err := errors.Join(ctx.Err(), blobio.CheckDigest(desc.Digest)); err != nil {
		return false, err
	}
	root, err := s.reading()
	if err != nil || root == nil {
		return false, err
	}
	info, err := root.Stat(blobPath(desc.Digest))
	return err == nil && info.Mode().IsRegular() && info.Size() == desc.Size, nil
}

// Put implements [imgcrypt.Store]. A blob that is there already is written anew, so that
// one that was damaged is whole afterwards; refs are not kept.
func (s *Store) Put(ctx context.Context, want ocispec.Descriptor, r io.Reader, _ ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	if want.Digest != "" {
		if err := blobio.CheckDigest(want.Digest); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	root, err := s.writing(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	f, err := tempfile.Create(root, 0)
	if err != nil {
		return ocispec.Descriptor{}, s.error(err)
	}
	defer f.Discard()
	got, err := blobio.Copy(ctx, f, r, want)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write blob: %w", err)
	}
	if err := s.commit(root, f, got.Digest); err != nil {
		return ocispec.Descriptor{}, s.error(err)
	}
	return got, nil
}

func (s *Store) commit(root *os.Root, f *tempfile.File, d digest.Digest) error {
	name := blobPath(d)
	if err := root.MkdirAll(path.Dir(name), 0o777); err != nil {
		return err
	}
	if err := f.Commit(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written[d.Algorithm()] = true
	return nil
}

// Close ends the use of the store. Readers that are open can be read to their end.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.root == nil {
		return nil
	}
	return s.root.Close()
}
