package keys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
)

// MaxFileSize bounds a key or password file, in bytes. No key comes near it.
const MaxFileSize = 1 << 20

var errTooLarge = errors.New("larger than 1 MiB, so neither a key nor a password")

// Files reads each file once and keeps its content, so that a pipe, such as the
// one that --key <(…) makes, works for every layer and platform. The zero value is
// ready; one Files is meant to live as long as one command. It is safe for
// concurrent use.
type Files struct {
	mu      sync.Mutex
	entries map[string]*fileEntry
}

// errPasted is for who gives a key, or a URI with a PIN, where the name of a file belongs.
// That has to be told without repeating it.
var errPasted = errors.New("…: a key or a PIN itself is given where the name of a file is needed")

func pasted(s string) bool {
	for _, part := range []string{"-----BEGIN", `"kty"`, "pin-value="} {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}

type fileEntry struct {
	once sync.Once
	data []byte
	err  error
}

// Read returns the content of the file at path, which was read when it was first
// asked for; so was its error, if there was one. A file over [MaxFileSize] is an
// error. Every error names path, unless that is no path but what should be in the file.
func (f *Files) Read(path string) ([]byte, error) {
	if pasted(path) {
		return nil, errPasted
	}
	return f.get("path:"+path, func() ([]byte, error) { return readPath(path) })
}

// ReadFD returns all that can be read from the file descriptor fd (on Windows: the
// handle) up to its end, at most [MaxFileSize] bytes, read when it was first asked
// for. fd itself stays open. Every error names fd.
func (f *Files) ReadFD(fd int) ([]byte, error) {
	return f.get("fd:"+strconv.Itoa(fd), func() ([]byte, error) {
		data, err := readFD(fd)
		if err != nil {
			return nil, fmt.Errorf("file descriptor %d: %w", fd, bare(err))
		}
		return data, nil
	})
}

// get returns a copy, because the caller may change what it gets.
func (f *Files) get(name string, read func() ([]byte, error)) ([]byte, error) {
	f.mu.Lock()
	e := f.entries[name]
	if e == nil {
		e = new(fileEntry)
		if f.entries == nil {
			f.entries = make(map[string]*fileEntry)
		}
		f.entries[name] = e
	}
	f.mu.Unlock()
	e.once.Do(func() { e.data, e.err = read() })
	return bytes.Clone(e.data), e.err
}

func readPath(path string) ([]byte, error) {
	if path == "" {
		return nil, errors.New("no file is named")
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, bare(err))
	}
	defer file.Close()
	data, err := readAll(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, bare(err))
	}
	return data, nil
}

func readFD(fd int) ([]byte, error) {
	// A copy is closed afterwards and not fd, which may be standard input or, if the
	// number is wrong, something that the rest of the process needs.
	file, err := dup(fd)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readAll(file)
}

func readAll(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxFileSize {
		return nil, errTooLarge
	}
	return data, nil
}

// bare strips what an *fs.PathError adds to an error, since the caller names the
// file in its own words.
func bare(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
