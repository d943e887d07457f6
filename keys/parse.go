package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// Parser reads what users write about keys. It is safe for concurrent use if Files
// is set.
type Parser struct {
	// Schemes are those that a recipient can name, and that a key file is offered
	// to, in this order. Nil means that everything is unknown.
	Schemes []Scheme
	// Files reads the files. Nil means one of its own, made on first use.
	Files *Files
	// Warn is told what has to be said about recipients that can be used all the
	// same: that a certificate has expired, say. Nil: nobody is.
	Warn func(error)
}

func (p *Parser) files() *Files {
	if p.Files == nil {
		p.Files = new(Files)
	}
	return p.Files
}

// Recipient reads "SCHEME:WHAT", for example "jwe:pub.pem". If no scheme is named,
// or none that is known, the error wraps [ErrUnknownScheme] and lists those that are.
func (p *Parser) Recipient(ctx context.Context, s string) (Recipient, error) {
	// Only what is before the colon is ever repeated in an error: who takes a
	// recipient for a key writes a password after it.
	name, arg, ok := strings.Cut(s, ":")
	if pasted(name) {
		return nil, fmt.Errorf("recipient: %w", errPasted)
	}
	if !ok {
		return nil, fmt.Errorf("recipient %.60q names no scheme, as in %s:…: %w (known: %s)",
			s, p.example(), ErrUnknownScheme, p.known())
	}
	for _, scheme := range p.Schemes {
		if scheme.Name != name {
			continue
		}
		if arg == "" {
			return nil, fmt.Errorf("recipient %q names nothing after the scheme", s)
		}
		if scheme.Named == nil && pasted(arg) {
			// Not every scheme takes its argument for a file's name at first.
			return nil, fmt.Errorf("recipient %s: %w", name, errPasted)
		}
		r, err := scheme.Recipient(ctx, arg, p.files())
		if scheme.Named == nil && errors.Is(err, fs.ErrNotExist) {
			if err := noPassword(arg); err != nil {
				return nil, fmt.Errorf("recipient %s: %w", name, err)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("recipient %s: %w", name, err)
		}
		if c, ok := r.(Cautioned); ok && p.Warn != nil {
			if err := c.Caution(); err != nil {
				p.Warn(fmt.Errorf("recipient %s: %w", name, err))
			}
		}
		return r, nil
	}
	return nil, fmt.Errorf("recipient of %w %.60q (known: %s)", ErrUnknownScheme, name, p.known())
}

// noPassword returns the error about a file that is not there because a password, which
// the error must not repeat, was written after its name.
func noPassword(arg string) error {
	path, _, given := splitKey(arg)
	switch {
	case !given:
		return nil
	case exists(path):
		return fmt.Errorf("%s: a recipient takes no password", path)
	}
	return fmt.Errorf("%s: %w (nor is there a file of the name with what follows the colon; a recipient takes no password)", path, fs.ErrNotExist)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (p *Parser) known() string { return joinNames(p.Schemes) }

func (p *Parser) example() string {
	if len(p.Schemes) == 0 {
		return "SCHEME"
	}
	return p.Schemes[0].Name
}

func joinNames(schemes []Scheme) string {
	names := make([]string, len(schemes))
	for i, s := range schemes {
		names[i] = s.Name
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// Key reads a key file and its password: "key.pem", "key.pem:PASSWORD",
// "key.pem:pass=PASSWORD", "key.pem:file=PATH" and "key.pem:fd=N". The password may
// contain colons, the path of the key may not (but "C:\key.pem" is understood). From
// PATH and N all is read and one line end at its end dropped. Without a colon
// there is no password.
func (p *Parser) Key(s string) (Key, error) {
	path, pw, given := splitKey(s)
	if path == "" {
		return Key{}, errors.New("key: no file is named")
	}
	data, err := p.files().Read(path)
	if err != nil {
		return Key{}, fmt.Errorf("key %w", err)
	}
	k := Key{Label: path, Data: data}
	if !given {
		return k, nil
	}
	k.Password, err = p.password(pw)
	if err != nil {
		return Key{}, fmt.Errorf("%w of key %s: %w", ErrPassword, path, err)
	}
	return k, nil
}

// splitKey splits at the first colon that is not part of a drive's name.
func splitKey(s string) (path, password string, given bool) {
	drive := 0
	if len(s) > 2 && s[1] == ':' && isLetter(s[0]) && (s[2] == '\\' || s[2] == '/' && runtime.GOOS == "windows") {
		drive = 2
	}
	path, password, given = strings.Cut(s[drive:], ":")
	return s[:drive] + path, password, given
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

// password returns what s stands for, never nil without an error.
func (p *Parser) password(s string) ([]byte, error) {
	form, rest, ok := strings.Cut(s, "=")
	if !ok {
		return []byte(s), nil
	}
	switch form {
	case "pass":
		return []byte(rest), nil
	case "file":
		data, err := p.files().Read(rest)
		return dropLineEnd(data), err
	case "fd":
		fd, err := strconv.ParseUint(rest, 10, 31)
		if err != nil {
			// What follows may be a password that happens to begin with "fd=".
			return nil, errors.New("fd= takes the number of a file descriptor (write pass=… for a password that begins with fd=)")
		}
		data, err := p.files().ReadFD(int(fd))
		return dropLineEnd(data), err
	}
	return []byte(s), nil
}

func dropLineEnd(data []byte) []byte {
	data = bytes.TrimSuffix(data, []byte("\n"))
	data = bytes.TrimSuffix(data, []byte("\r"))
	if data == nil {
		return []byte{}
	}
	return data
}
