package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"imgcrypt"
)

// Limits on what the listing of an archive may cost its reader.
const (
	maxFiles = 100_000
	// maxFileName is in bytes; files of longer names are not looked at.
	maxFileName = 512
	// maxLinks bounds how many links are followed to a file.
	maxLinks = 8
)

// tarball is a tar file whose files can be read in any order. It is safe for concurrent
// use, and open as long as somebody uses it.
type tarball struct {
	f    *os.File
	info fs.FileInfo
	// packed is how the whole tar is compressed.
	packed compression

	mu      sync.Mutex
	users   int
	entries map[string]entry
	idle    *cursor // where packed is read next, if that helps
}

// entry is a file in a tar.
type entry struct {
	offset, size int64
	// link is the name of the file that it is a link to.
	link string
	// sparse says that it is stored without its holes.
	sparse bool
	// twice says that there are several of the name; the last one counts.
	twice bool
}

// openTarball lists the tar in a file and takes the file over, with one user.
func openTarball(ctx context.Context, f *os.File) (*tarball, error) {
	t := &tarball{f: f, users: 1, entries: make(map[string]entry)}
	err := t.list(ctx)
	if err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

func (t *tarball) list(ctx context.Context) (err error) {
	if t.info, err = t.f.Stat(); err != nil {
		return err
	}
	if !t.info.Mode().IsRegular() {
		return fmt.Errorf("%w: it is not a file", ErrNotArchive)
	}
	if t.packed, err = detect(io.NewSectionReader(t.f, 0, t.info.Size())); err != nil {
		return err
	}
	if t.packed == plain {
		return t.scan(ctx, t.f, func() int64 {
			// A tar reader does not read ahead.
			at, _ := t.f.Seek(0, io.SeekCurrent)
			return at
		})
	}
	c, err := t.begin()
	if err != nil {
		return err
	}
	defer c.close()
	return t.scan(ctx, c, func() int64 { return c.at })
}

// scan lists the tar that r reads; position says where r is.
func (t *tarball) scan(ctx context.Context, r io.Reader, position func() int64) error {
	for tr, n := tar.NewReader(r), 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		header, err := tr.Next()
		switch {
		case err == io.EOF && n == 0:
			return fmt.Errorf("%w: it is empty", ErrNotArchive)
		case err == io.EOF:
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("%w: it is cut short: %w", ErrNotArchive, err)
		case err != nil:
			return fmt.Errorf("%w: %w", ErrNotArchive, err)
		case n == maxFiles:
			return fmt.Errorf("%w: it has more than %d files", imgcrypt.ErrManifest, maxFiles)
		}
		e, ok := newEntry(header)
		if e.offset = position(); !ok {
			continue
		}
		name := cleanName(header.Name)
		_, e.twice = t.entries[name]
		t.entries[name] = e
	}
}

// newEntry is false for what is no file that could be read.
func newEntry(h *tar.Header) (e entry, ok bool) {
	if len(h.Name) > maxFileName || len(h.Linkname) > maxFileName {
		return e, false
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return entry{size: h.Size, sparse: true}, true
		}
	}
	switch h.Typeflag {
	case tar.TypeGNUSparse:
		return entry{size: h.Size, sparse: true}, true
	case tar.TypeReg:
		return entry{size: h.Size}, true
	case tar.TypeLink:
		return entry{link: cleanName(h.Linkname)}, true
	case tar.TypeSymlink:
		return entry{link: cleanName(path.Join(path.Dir(cleanName(h.Name)), h.Linkname))}, !path.IsAbs(h.Linkname)
	}
	return e, false
}

// cleanName is the one form of a file's name: relative to where the tar is unpacked.
func cleanName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// find returns the file called name, where links lead to it too.
func (t *tarball) find(name string) (entry, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	name = cleanName(name)
	for range maxLinks {
		e, ok := t.entries[name]
		if !ok || e.link == "" {
			return e, ok
		}
		name = e.link
	}
	return entry{}, false
}

// add notes a file that was written.
func (t *tarball) add(name string, e entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries[name] = e
}

// use keeps t open until the result is called, once.
func (t *tarball) use() (release func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.users++
	return sync.OnceFunc(t.release)
}

// release ends one use.
func (t *tarball) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.users--; t.users > 0 {
		return
	}
	t.f.Close()
	if t.idle != nil {
		t.idle.close()
	}
}

// open returns the content of a file. The tarball stays open until it is closed.
func (t *tarball) open(ctx context.Context, e entry) (io.ReadCloser, error) {
	if e.sparse {
		return nil, fmt.Errorf("it is stored as a sparse file, which is not read here: %w", errors.ErrUnsupported)
	}
	release := t.use()
	if t.packed == plain {
		return &content{Reader: io.NewSectionReader(t.f, e.offset, e.size), close: release}, nil
	}
	c, err := t.seek(ctx, e.offset)
	if err != nil {
		release()
		return nil, err
	}
	return &content{Reader: io.LimitReader(c, e.size), close: sync.OnceFunc(func() { t.rest(c); release() })}, nil
}

type content struct {
	io.Reader
	close func()
}

func (c *content) Close() error {
	c.close()
	return nil
}

// read returns the content of a small file.
func (t *tarball) read(ctx context.Context, name string, limit int64) ([]byte, error) {
	e, ok := t.find(name)
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	if e.twice {
		// Who unpacks it sees the last one, and who streams it perhaps the first.
		return nil, fmt.Errorf("%w: it has more than one %s", imgcrypt.ErrManifest, name)
	}
	if e.size > limit {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", imgcrypt.ErrManifest, name, limit)
	}
	r, err := t.open(ctx, e)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var text bytes.Buffer
	if n, err := io.Copy(&text, r); err != nil || n != e.size {
		return nil, fmt.Errorf("%s: %w", name, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return text.Bytes(), nil
}
