package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxDirFiles bounds the files and directories that [Parser.Dir] looks at.
const maxDirFiles = 10000

// Dir makes identities of all files below dir, in lexical order. Symbolic links are
// followed, to files and to directories; each file and each directory is taken once
// however many names it has, so that loops end and a mounted Kubernetes Secret, where
// every name is a link into a hidden directory, yields each key once. Names that
// begin with ".." are looked at last, which is why the keys of such a Secret are
// called by their own names.
//
// What holds no usable key (a note, an encrypted key, a named pipe, which is never
// read) is skipped and gets one warning that names it; certificates, which lie beside
// keys and help with nothing, are skipped without one. A dir that does not exist is
// an empty one. dir may also be one file.
func (p *Parser) Dir(dir string) (ids []Identity, warnings []error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	w := &dirWalk{parser: p}
	w.walk(dir)
	return w.ids, w.warnings
}

type dirWalk struct {
	parser   *Parser
	seen     []fs.FileInfo
	full     bool
	ids      []Identity
	warnings []error
}

func (w *dirWalk) warn(path string, err error) {
	w.warnings = append(w.warnings, fmt.Errorf("%s: %w", path, bare(err)))
}

func (w *dirWalk) walk(path string) {
	info, err := os.Stat(path)
	if err != nil {
		w.warn(path, err)
		return
	}
	if slices.ContainsFunc(w.seen, func(i fs.FileInfo) bool { return os.SameFile(i, info) }) {
		return
	}
	if len(w.seen) == maxDirFiles {
		if !w.full {
			w.warn(path, fmt.Errorf("skipped, with all that follows: more than %d files", maxDirFiles))
		}
		w.full = true
		return
	}
	w.seen = append(w.seen, info)
	switch {
	case info.IsDir():
		w.dir(path)
	case info.Mode().IsRegular():
		w.file(path)
	default:
		w.warn(path, errors.New("skipped: not a regular file"))
	}
}

func (w *dirWalk) dir(path string) {
	entries, err := os.ReadDir(path)
	if err != nil {
		w.warn(path, err)
	}
	hidden := func(e fs.DirEntry) bool { return strings.HasPrefix(e.Name(), "..") }
	for _, last := range []bool{false, true} {
		for _, e := range entries {
			if hidden(e) == last && !w.full {
				w.walk(filepath.Join(path, e.Name()))
			}
		}
	}
}

// file does not go through Files: what is no key need not be kept.
func (w *dirWalk) file(path string) {
	data, err := readPath(path)
	if err != nil {
		w.warnings = append(w.warnings, err)
		return
	}
	id, err := w.parser.IdentityOf(Key{Label: path, Data: data})
	switch {
	case err != nil && len(onlyCertificates(data)) > 0:
	case errors.Is(err, ErrPassword):
		// The usual advice does not fit, as a directory has no place for a password.
		w.warn(path, fmt.Errorf("skipped: encrypted, and nothing gives its %w", ErrPassword))
	case err != nil:
		w.warnings = append(w.warnings, err)
	default:
		w.ids = append(w.ids, id)
	}
}
