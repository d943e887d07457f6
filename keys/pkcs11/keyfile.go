package pkcs11

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	pkcs11uri "github.com/stefanberger/go-pkcs11uri"
	"go.yaml.in/yaml/v3"

	"imgcrypt/internal/tokenproto"
	"imgcrypt/keys"
)

// keyFile is ocicrypt's YAML that names a key on a token.
type keyFile struct {
	data []byte
	text string // the URI
	uri  *pkcs11uri.Pkcs11URI
	env  map[string]string
	// token and key are what the URI says of them.
	token tokenproto.Token
	key   tokenproto.Key
}

// keyFileYAML is its form.
type keyFileYAML struct {
	PKCS11 struct {
		URI string `yaml:"uri"`
	} `yaml:"pkcs11"`
	Module struct {
		Env map[string]string `yaml:"env,omitempty"`
	} `yaml:"module,omitempty"`
}

// parseKeyFile returns an error that wraps [keys.ErrNoMatch] if data is no such file. If it is meant to be one but
// cannot be used, the error wraps [keys.ErrNotKey]. No error repeats any of data, in which is a PIN.
func parseKeyFile(data []byte) (*keyFile, error) {
	// Almost anything is YAML of some kind, and this rules out most of it.
	if !bytes.Contains(data, []byte(Name)) {
		return nil, keys.ErrNoMatch
	}
	var form keyFileYAML
	if err := yaml.Unmarshal(data, &form); err != nil {
		if form.PKCS11.URI == "" && !meant(data) {
			return nil, keys.ErrNoMatch
		}
		return nil, notKey("damaged YAML, or not of the form that a PKCS #11 key file has")
	}
	if form.PKCS11.URI == "" {
		return nil, keys.ErrNoMatch
	}
	f := &keyFile{data: data, text: form.PKCS11.URI, uri: pkcs11uri.New(), env: form.Module.Env}
	if err := checkURI(f.text); err != nil {
		return nil, err
	}
	if err := f.uri.Parse(f.text); err != nil {
		return nil, notKey("pkcs11.uri is no PKCS #11 URI (RFC 7512)")
	}
	for name, value := range f.env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return nil, notKey("module.env has a name or value that no environment variable can have")
		}
	}
	return f, f.read()
}

// meant tells a key file that is broken YAML from what is none.
func meant(data []byte) bool {
	return bytes.HasPrefix(data, []byte("pkcs11:")) || bytes.Contains(data, []byte("\npkcs11:"))
}

func notKey(text string) error { return fmt.Errorf("%w: %s", keys.ErrNotKey, text) }

// checkURI finds what is wrong with a URI in the cases that happen, since the library's errors quote it.
func checkURI(text string) error {
	rest, ok := strings.CutPrefix(text, "pkcs11:")
	if !ok {
		return notKey("pkcs11.uri does not begin with pkcs11:")
	}
	path, query, hasQuery := strings.Cut(rest, "?")
	for _, part := range []struct {
		text, separator, where string
		empty                  bool
	}{{path, ";", "before the question mark", path == ""}, {query, "&", "after the question mark", !hasQuery}} {
		if part.empty {
			continue
		}
		seen := make(map[string]bool)
		for attribute := range strings.SplitSeq(part.text, part.separator) {
			name, value, ok := strings.Cut(attribute, "=")
			switch {
			case !ok:
				return notKey("pkcs11.uri has something that is no NAME=VALUE " + part.where)
			case seen[name]:
				return notKey("pkcs11.uri has an attribute twice " + part.where)
			}
			if _, err := url.PathUnescape(value); err != nil {
				return notKey("pkcs11.uri has a percent sign that is not followed by two hexadecimal digits " + part.where)
			}
			seen[name] = true
		}
	}
	return nil
}

// read takes the URI apart.
func (f *keyFile) read() error {
	path := func(name string) []byte {
		value, _ := f.uri.GetPathAttribute(name, false)
		return []byte(value)
	}
	f.token = tokenproto.Token{Label: path("token"), Serial: path("serial"), Model: path("model"), Manufacturer: path("manufacturer")}
	f.key = tokenproto.Key{Label: path("object"), ID: path("id")}
	if text, ok := f.uri.GetPathAttribute("slot-id", false); ok {
		slot, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return notKey("the slot-id of pkcs11.uri is out of range")
		}
		n := uint(slot)
		f.token.Slot = &n
	}
	if len(f.key.Label) == 0 && len(f.key.ID) == 0 {
		return notKey("pkcs11.uri names no key (object=LABEL or id=%01)")
	}
	module, _ := f.uri.GetQueryAttribute("module-path", false)
	name, _ := f.uri.GetQueryAttribute("module-name", false)
	if module == "" && name == "" {
		return notKey("pkcs11.uri names no module (module-path=/… or module-name=NAME)")
	}
	if strings.ContainsRune(module+name, 0) {
		return notKey("pkcs11.uri names a module with a zero byte")
	}
	return nil
}

// errNoPIN means that a key file has no PIN.
var errNoPIN = errors.New("no PIN")

// pin returns the PIN that the URI has, or names a file of.
func (f *keyFile) pin() ([]byte, error) {
	if pin, ok := f.uri.GetQueryAttribute("pin-value", false); ok {
		return []byte(pin), nil
	}
	source, ok := f.uri.GetQueryAttribute("pin-source", false)
	if !ok {
		return nil, errNoPIN
	}
	u, err := url.ParseRequestURI(source)
	if err != nil || u.Scheme != "" && u.Scheme != "file" || !filepath.IsAbs(u.Path) {
		return nil, &TokenError{Reason: PINMissing, Detail: "pin-source names no file by an absolute path, as in file:/path"}
	}
	pin, err := readFile(u.Path)
	if err != nil {
		return nil, &TokenError{Reason: PINMissing, Detail: "pin-source " + u.Path, err: err}
	}
	// Editors end a line.
	pin = bytes.TrimSuffix(pin, []byte("\n"))
	return bytes.TrimSuffix(pin, []byte("\r")), nil
}

// withPIN returns the file with this PIN in its URI instead of what is there.
func (f *keyFile) withPIN(pin []byte) ([]byte, error) {
	path, query, _ := strings.Cut(f.text, "?")
	var attributes []string
	for attribute := range strings.SplitSeq(query, "&") {
		if name, _, _ := strings.Cut(attribute, "="); attribute != "" && name != "pin-value" && name != "pin-source" {
			attributes = append(attributes, attribute)
		}
	}
	var escaped strings.Builder
	for _, c := range pin {
		fmt.Fprintf(&escaped, "%%%02X", c)
	}
	var form keyFileYAML
	form.PKCS11.URI = path + "?" + strings.Join(append(attributes, "pin-value="+escaped.String()), "&")
	form.Module.Env = maps.Clone(f.env)
	return yaml.Marshal(form)
}
