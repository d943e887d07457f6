package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/store/internal/blobio"
	"imgcrypt/store/internal/tempfile"
)

// file is an archive that is read, and replaced as a whole by one that is written beside
// it.
type file struct {
	path string // as it was given
	root *os.Root
	base string // its name in root
	// check refuses what is no archive of the right kind.
	check func(context.Context, *tarball) error
	// turn is held by the one who writes.
	turn chan struct{}

	mu     sync.RWMutex
	old    *tarball // what the file is; nil if it is not there
	new    *writer  // what it is to be; nil if nothing was written yet
	closed bool
}

// openFile opens an archive; with create it need not be there, or may be empty.
func openFile(path string, create bool, check func(context.Context, *tarball) error) (*file, error) {
	// A link to an archive stays one.
	target, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) && create {
		target, err = path, nil
	}
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(filepath.Dir(target))
	if err != nil {
		return nil, err
	}
	f := &file{path: path, root: root, base: filepath.Base(target), check: check, turn: make(chan struct{}, 1)}
	f.old, err = f.load(context.Background())
	if errors.Is(err, fs.ErrNotExist) && create {
		err = nil
	}
	if f.old == nil && err == nil && !create {
		err = fmt.Errorf("%w: it is empty", ErrNotArchive)
	}
	if err != nil {
		root.Close()
		return nil, f.error(err)
	}
	return f, nil
}

func (f *file) error(err error) error { return fmt.Errorf("%s: %w", f.path, err) }

// load lists what the file is now; nil if it is empty.
func (f *file) load(ctx context.Context) (*tarball, error) {
	info, err := f.root.Stat(f.base)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: it is not a file", ErrNotArchive)
	}
	if info.Size() == 0 {
		return nil, nil
	}
	r, err := f.root.Open(f.base)
	if err != nil {
		return nil, err
	}
	t, err := openTarball(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := f.check(ctx, t); err != nil {
		t.release()
		return nil, err
	}
	return t, nil
}

// lookup returns a file of the archive: what was written, else what was there. f.mu is
// held.
func (f *file) lookup(name string) (*tarball, entry, bool) {
	if f.new != nil {
		if e, ok := f.new.tar.find(name); ok {
			return f.new.tar, e, true
		}
	}
	if f.old != nil {
		if e, ok := f.old.find(name); ok {
			return f.old, e, true
		}
	}
	return nil, entry{}, false
}

// find returns where the file called name is.
func (f *file) find(name string) (entry, bool, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return entry{}, false, f.error(fs.ErrClosed)
	}
	_, e, ok := f.lookup(name)
	return e, ok, nil
}

// open returns the content of the file called name, and nil if there is none.
func (f *file) open(ctx context.Context, name string) (io.ReadCloser, error) {
	f.mu.RLock()
	if f.closed {
		f.mu.RUnlock()
		return nil, f.error(fs.ErrClosed)
	}
	t, e, ok := f.lookup(name)
	if !ok {
		f.mu.RUnlock()
		return nil, nil
	}
	release := t.use()
	f.mu.RUnlock()
	defer release()
	return t.open(ctx, e)
}

// present returns what the file was when it was last looked at, nil if it was not there,
// and what ends its use.
func (f *file) present() (t *tarball, release func(), err error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return nil, nil, f.error(fs.ErrClosed)
	}
	if f.old == nil {
		return nil, func() {}, nil
	}
	return f.old, f.old.use(), nil
}

// take waits for the turn to write; the result ends it.
func (f *file) take(ctx context.Context) (release func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case f.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return func() { <-f.turn }, nil
}

// writer returns what is being written, begun if need be, for who has the turn.
func (f *file) writer() (*writer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return nil, f.error(fs.ErrClosed)
	case f.new != nil:
		return f.new, nil
	case f.old != nil && f.old.packed != plain:
		return nil, f.error(fmt.Errorf("it is compressed with %s: it can be read, but not changed: %w", f.old.packed, errors.ErrUnsupported))
	}
	tempfile.Clean(f.root)
	// Who may not read the archive must not be able to read the new one either, from the
	// beginning.
	var perm fs.FileMode
	if info, err := f.root.Stat(f.base); err == nil {
		perm = info.Mode().Perm()
	}
	w, err := newWriter(f.root, perm)
	if err != nil {
		return nil, f.error(err)
	}
	f.new = w
	return w, nil
}

// headSize is how much of a blob is read before there is a turn to write it: small
// blobs do not keep each other waiting for their sources.
const headSize = 256 << 10

// stream calls write with what r yields and the writer, for a blob that want describes.
func (f *file) stream(ctx context.Context, want ocispec.Descriptor, r io.Reader, write func(*writer, io.Reader) error) error {
	size := int64(headSize)
	if want.Digest != "" {
		size = min(size, max(want.Size, 0)+1)
	}
	head := make([]byte, size)
	n, err := blobio.ReadPiece(&endingReader{ctx, r}, head)
	if err != nil && err != io.EOF {
		return err
	}
	rest := r
	if err == io.EOF {
		rest = bytes.NewReader(nil)
	}
	release, err := f.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	w, err := f.writer()
	if err != nil {
		return err
	}
	return write(w, io.MultiReader(bytes.NewReader(head[:n]), rest))
}

// endingReader ends with a context.
type endingReader struct {
	ctx context.Context
	r   io.Reader
}

func (e *endingReader) Read(p []byte) (int, error) {
	if err := e.ctx.Err(); err != nil {
		return 0, err
	}
	return e.r.Read(p)
}

// replace makes the file what was written so far and what complete adds to it, which is
// told what the file is at that moment: nil if there is none. Meanwhile nobody else
// replaces it. If anything fails, all is as before; otherwise done is called.
func (f *file) replace(ctx context.Context, complete func(now *tarball, w *writer) error, done func()) error {
	release, err := f.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	for {
		if err := f.replaceOnce(ctx, complete, done); !errors.Is(err, errAppeared) || ctx.Err() != nil {
			return err
		}
	}
}

// errAppeared means that there was no file when its replacing began, and now there is.
var errAppeared = errors.New("the file appeared meanwhile")

func (f *file) replaceOnce(ctx context.Context, complete func(now *tarball, w *writer) error, done func()) error {
	w, err := f.writer()
	if err != nil {
		return err
	}
	unlock, err := tempfile.Lock(ctx, f.root, f.base)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return f.error(err)
	}
	if !missing {
		defer unlock()
	}
	now, release, err := f.current(ctx)
	if err != nil {
		return f.error(err)
	}
	defer release()
	undo := w.mark()
	err = complete(now, w)
	if err == nil {
		err = f.commit(w, missing)
	}
	if err != nil {
		undo()
		return f.error(err)
	}
	done()
	if err := tempfile.SyncDir(f.root, "."); err != nil {
		return f.error(err)
	}
	return nil
}

// current returns what the file is now, and what ends its use.
func (f *file) current(ctx context.Context) (now *tarball, release func(), err error) {
	info, err := f.root.Stat(f.base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, func() {}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	f.mu.RLock()
	old := f.old
	f.mu.RUnlock()
	if old != nil && os.SameFile(info, old.info) && info.Size() == old.info.Size() && info.ModTime().Equal(old.info.ModTime()) {
		return old, func() {}, nil
	}
	now, err = f.load(ctx)
	if err != nil || now == nil {
		return nil, func() {}, err
	}
	return now, now.release, nil
}

// commit gives the file its name, and goes on with it as the one that is there.
func (f *file) commit(w *writer, missing bool) error {
	if err := w.finish(); err != nil {
		return err
	}
	if info, err := f.root.Stat(f.base); err == nil {
		if err := w.temp.Chmod(info.Mode().Perm()); err != nil {
			return err
		}
	}
	info, err := w.temp.Stat()
	if err != nil {
		return err
	}
	if missing {
		err = w.temp.CommitNew(f.base)
	} else {
		err = w.temp.Commit(f.base)
	}
	if missing && errors.Is(err, fs.ErrExist) {
		return errAppeared
	}
	if err != nil {
		return err
	}
	w.tar.info = info
	f.mu.Lock()
	old := f.old
	f.old, f.new = w.tar, nil
	f.mu.Unlock()
	if old != nil {
		old.release()
	}
	return nil
}

// close discards what was not made the file.
func (f *file) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	if f.new != nil {
		f.new.discard()
	}
	if f.old != nil {
		f.old.release()
	}
	return f.root.Close()
}
