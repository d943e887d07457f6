// Package tempfile writes files that are there whole or not at all, and takes locks
// that end with the process that has them.
//
// A file is written beside its destination under a name that nothing else looks at, and
// locked meanwhile. What a killed process leaves of it is not locked any more; the next
// one that writes there removes it.
package tempfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"
	"time"
)

const (
	prefix = ".imgcrypt-"
	suffix = ".tmp"
)

// IsName says whether a file of that name is one of this package's that is not finished,
// or one of its locks.
func IsName(name string) bool {
	return strings.HasPrefix(name, prefix) && (strings.HasSuffix(name, suffix) || strings.HasSuffix(name, lockSuffix))
}

// File is a file that is being written.
type File struct {
	*os.File
	root *os.Root
	name string
	done bool
}

// Create creates a file in root. Nobody can ever read it whom perm does not let; zero is
// what is usual.
func Create(root *os.Root, perm fs.FileMode) (*File, error) {
	if perm == 0 {
		perm = 0o666
	}
	for {
		name := prefix + rand.Text() + suffix
		f, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// Between its creation and its lock somebody who cleans up may have taken it.
		err = tryLock(f)
		if err == nil || errors.Is(err, errors.ErrUnsupported) {
			if isAt(root, name, f) {
				return &File{File: f, root: root, name: name}, nil
			}
		} else if !errors.Is(err, errLocked) {
			return nil, errors.Join(err, f.Close(), root.Remove(name))
		}
		f.Close()
	}
}

// Reader opens the file once more, for reading. It stays what it is when the file gets its
// name.
func (f *File) Reader() (*os.File, error) { return f.root.Open(f.name) }

// isAt says whether name is still the file f.
func isAt(root *os.Root, name string, f *os.File) bool {
	here, err := root.Lstat(name)
	if err != nil {
		return false
	}
	own, err := f.Stat()
	return err == nil && os.SameFile(here, own)
}

// Commit makes the file durable and gives it its name in root, which may have
// directories in it, in place of whatever has that name. Afterwards the file is closed.
func (f *File) Commit(name string) error { return f.commit(name, f.root.Rename) }

// CommitNew is Commit for a name that nothing has yet; otherwise it is an error that
// wraps [fs.ErrExist], and the file stays as it is.
func (f *File) CommitNew(name string) error {
	return f.commit(name, func(from, to string) error {
		err := f.root.Link(from, to)
		if err == nil {
			return f.root.Remove(from)
		}
		if errors.Is(err, fs.ErrExist) {
			return err
		}
		// A file system without links.
		if _, err := f.root.Lstat(to); err == nil {
			return fmt.Errorf("%s: %w", to, fs.ErrExist)
		}
		return f.root.Rename(from, to)
	})
}

func (f *File) commit(name string, move func(from, to string) error) error {
	if err := f.Sync(); err != nil {
		return err
	}
	if runtime.GOOS == "windows" {
		// It does not move what is open.
		if err := f.Close(); err != nil {
			return err
		}
	}
	// Moved before it is closed, which ends the lock.
	if err := move(f.name, name); err != nil {
		return err
	}
	f.done = true
	if runtime.GOOS != "windows" {
		return f.Close()
	}
	return nil
}

// Discard removes the file, unless it was committed.
func (f *File) Discard() {
	if f.done {
		return
	}
	f.done = true
	// Removed first, so that nobody else sees it without its lock.
	err := f.root.Remove(f.name)
	f.Close()
	if err != nil {
		// Where open files cannot be removed.
		_ = f.root.Remove(f.name)
	}
}

// abandoned is how old a file is that nobody writes any more, where no lock can tell.
const abandoned = 24 * time.Hour

// Clean removes the files that processes left in root which are no more. It says nothing
// of what it cannot remove.
func Clean(root *os.Root) {
	dir, err := root.Open(".")
	if err != nil {
		return
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1000)
		for _, name := range names {
			if strings.HasPrefix(name, prefix) && strings.HasSuffix(name, suffix) {
				clean(root, name)
			}
		}
		if err != nil {
			return
		}
	}
}

func clean(root *os.Root, name string) {
	info, err := root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() {
		return
	}
	f, err := root.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	err = tryLock(f)
	if err == nil && isAt(root, name, f) ||
		errors.Is(err, errors.ErrUnsupported) && time.Since(info.ModTime()) > abandoned {
		_ = root.Remove(name)
	}
}

// SyncDir makes what was renamed in a directory of root durable, where that is possible.
func SyncDir(root *os.Root, name string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	dir, err := root.Open(path.Clean(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, os.ErrInvalid) {
		return err
	}
	return nil
}

// Write makes name in root a file with that content, in one step. With a perm of zero its
// permissions are what is usual.
func Write(root *os.Root, name string, content []byte, perm fs.FileMode) error {
	f, err := Create(root, perm)
	if err != nil {
		return err
	}
	defer f.Discard()
	if perm != 0 {
		if err := f.Chmod(perm); err != nil {
			return err
		}
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Commit(name)
}
