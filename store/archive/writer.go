package archive

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"

	"imgcrypt/store/internal/tempfile"
)

const (
	block = 512
	// Names of up to so many bytes, and all else that is needed, fit into one block.
	shortName = 100
)

// writer writes a tar into a file beside the one that it will be. A file's size, digest
// and name may be known only after it was written: its header is written last.
type writer struct {
	temp *tempfile.File
	// tar is what was written so far, for reading.
	tar *tarball
	end int64 // where the next header goes
}

func newWriter(root *os.Root, perm fs.FileMode) (*writer, error) {
	temp, err := tempfile.Create(root, perm)
	if err != nil {
		return nil, err
	}
	f, err := temp.Reader()
	if err != nil {
		temp.Discard()
		return nil, err
	}
	return &writer{temp: temp, tar: &tarball{f: f, users: 1, entries: make(map[string]entry)}}, nil
}

// discard removes all that was written.
func (w *writer) discard() {
	w.temp.Discard()
	w.tar.release()
}

// headerSize is how long the header of a file is by the length of its name.
func headerSize(name int) int64 {
	if name <= shortName {
		return block
	}
	// One more header for the long name, and the name.
	return 2*block + padded(int64(name)+1)
}

func padded(size int64) int64 { return (size + block - 1) / block * block }

// header returns the header of a file.
func header(name string, size int64) ([]byte, error) {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, Format: tar.FormatUSTAR}
	if len(name) > shortName || size >= 1<<33 {
		// The older format has no room for these, and the newer one needs more blocks for
		// large sizes, which come as a surprise.
		h.Format = tar.FormatGNU
	}
	var buf bytes.Buffer
	if err := tar.NewWriter(&buf).WriteHeader(h); err != nil {
		return nil, err
	}
	if want := headerSize(len(name)); int64(buf.Len()) != want {
		return nil, fmt.Errorf("the header of %s has %d bytes, want %d", name, buf.Len(), want)
	}
	return buf.Bytes(), nil
}

// add writes a file: fill writes its content and returns its name, which has nameSize
// bytes. If the file is there already, or fill fails or panics, nothing was written.
func (w *writer) add(nameSize int, fill func(io.Writer) (string, error)) error {
	start := w.end + headerSize(nameSize)
	out := io.NewOffsetWriter(w.temp, start)
	done := false
	defer func() {
		if !done {
			// Otherwise it is overwritten, or cut off in the end.
			_ = w.temp.Truncate(w.end)
		}
	}()
	name, err := fill(out)
	if err != nil {
		return err
	}
	if _, ok := w.tar.find(name); ok {
		return nil
	}
	size, err := out.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	head, err := header(name, size)
	if err != nil {
		return err
	}
	if _, err := w.temp.WriteAt(head, w.end); err != nil {
		return err
	}
	end := start + padded(size)
	if _, err := w.temp.WriteAt(make([]byte, end-start-size), start+size); err != nil {
		return err
	}
	w.tar.add(name, entry{offset: start, size: size})
	w.end, done = end, true
	return nil
}

// addBytes writes a small file.
func (w *writer) addBytes(name string, content []byte) error {
	return w.add(len(name), func(out io.Writer) (string, error) {
		_, err := out.Write(content)
		return name, err
	})
}

// mark returns a function that removes what is added from now on.
func (w *writer) mark() (undo func()) {
	end, before := w.end, make(map[string]bool)
	w.tar.mu.Lock()
	defer w.tar.mu.Unlock()
	for name := range w.tar.entries {
		before[name] = true
	}
	return func() {
		w.tar.mu.Lock()
		defer w.tar.mu.Unlock()
		for name := range w.tar.entries {
			if !before[name] {
				delete(w.tar.entries, name)
			}
		}
		w.end = end
		_ = w.temp.Truncate(end)
	}
}

// finish writes what ends a tar.
func (w *writer) finish() error {
	if err := w.temp.Truncate(w.end); err != nil {
		return err
	}
	_, err := w.temp.WriteAt(make([]byte, 2*block), w.end)
	return err
}
