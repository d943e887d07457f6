// Package pgp wraps layer secrets as OpenPGP messages (RFC 4880, RFC 9580).
//
// A packet is one OpenPGP message, not armoured: for one recipient when it is written
// here, for any number when others wrote it. What is written here is what ocicrypt and
// every GnuPG open: the session key encrypted for the recipient's newest encryption
// subkey, AES-256 with a modification detection code, no compression, no signature.
// What is opened here is that, and what else is authenticated: compressed, signed, or
// in the AEAD modes of GnuPG 2.3 and of RFC 9580.
//
// Keys are files, for which no GnuPG is needed, or in the user's keyring, which is only
// reached by running gpg: it alone knows its formats, its agent and its smart cards.
package pgp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"imgcrypt/keys"
)

// Name is the scheme's name.
const Name = "pgp"

// Config says where the user's keyring is. The zero value is the default keyring of the
// gpg on PATH.
type Config struct {
	// Homedir is gpg's directory; empty means its own default.
	Homedir string
	// Version is "v1" or "v2"; empty means whichever is installed, the newer first.
	Version string
	// UseKeyring makes the keyring's secret keys open packets where no key is given.
	UseKeyring bool
	// ShowAddresses makes Describe look up the addresses of keys in the keyring.
	ShowAddresses bool
	// Program is the path of gpg; empty means the one on PATH: gpg2, gpg or gpg1, as
	// Version asks for.
	Program string
	// TTY is the terminal at which gpg may have the user asked for a passphrase, as in
	// "/dev/pts/1"; empty means what GPG_TTY in the environment says.
	TTY string
	// Timeout bounds one run of gpg; zero means 30 seconds. Where the user may have to
	// be asked for a passphrase it is four times as long.
	Timeout time.Duration
}

// ErrNotFound means that no key in the keyring is called as a recipient is.
var ErrNotFound = errors.New("not in the keyring")

// Scheme returns the scheme. gpg is run only where the keyring is needed.
func Scheme(config Config) keys.Scheme {
	g := &gpg{config: config}
	names := &names{gpg: g}
	return keys.Scheme{
		Name: Name,
		Recipient: func(ctx context.Context, arg string, files *keys.Files) (keys.Recipient, error) {
			return recipient(ctx, g, arg, files)
		},
		Recipients: recipients,
		Identity:   identity,
		Identities: identities,
		Fallback: func(given []keys.Identity) keys.Identity {
			if !config.UseKeyring || len(given) > 0 {
				return nil
			}
			return newKeyring(g)
		},
		Describe: names.describe,
	}
}

// recipient reads what a user writes: the path of a public key, or the name of one in
// the keyring. A word without a slash is a name first: a file that somebody puts where
// the user works must not take the place of a key that the user knows.
func recipient(ctx context.Context, g *gpg, arg string, files *keys.Files) (keys.Recipient, error) {
	isPath := strings.ContainsAny(arg, "/"+string(filepath.Separator))
	if name, ok := withPassword(arg); ok && !(isPath && exists(arg)) {
		return nil, fmt.Errorf("%.60q: a recipient takes no password, and there is one after its colon", name)
	}
	if isPath {
		data, err := files.Read(arg)
		if err != nil {
			return nil, err
		}
		return recipientFile(arg, data)
	}
	if file, _, ok := strings.Cut(arg, ":"); ok && !exists(arg) && exists(file) {
		// What follows the colon is likely to be a password, which must be neither
		// in the arguments of gpg nor in an error.
		return nil, fmt.Errorf("%s with a colon after it: %w", file, fs.ErrNotExist)
	}
	entity, err := g.lookup(ctx, arg)
	if errors.Is(err, ErrNotFound) || errors.Is(err, keys.ErrUnreachable) {
		if info, missing := os.Stat(arg); missing == nil && info.Mode().IsRegular() {
			data, unread := files.Read(arg)
			if unread == nil && isOpenPGP(data) {
				return recipientFile(arg, data)
			}
			if unread != nil {
				return nil, fmt.Errorf("%w (and a file of this name cannot be read: %w)", err, unread)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	r, err := newRecipient(entity, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", title(entity), err)
	}
	return r, nil
}

// withPassword says whether what a user writes has the form of a key with its password,
// and returns what is before that: the password must be neither in an error nor in the
// arguments of gpg, which everybody on the machine can see.
func withPassword(arg string) (name string, ok bool) {
	for _, form := range []string{":pass=", ":file=", ":fd="} {
		if strings.Contains(arg, form) {
			name, _, _ = strings.Cut(arg, ":")
			return name, true
		}
	}
	return "", false
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func recipientFile(label string, data []byte) (*Recipient, error) {
	entity, err := publicKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", label, err)
	}
	r, err := newRecipient(entity, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", label, err)
	}
	return r, nil
}

// recipients reads ocicrypt's parameters. A name that several keys of the ring have
// stands for all of them that can be encrypted for, as it does for ocicrypt; one that
// none has, or only such that cannot be used, is an error.
func recipients(_ context.Context, params keys.Parameters) ([]keys.Recipient, error) {
	var all []keys.Recipient
	if len(params[keys.ParamPGPRing]) == 0 {
		return nil, fmt.Errorf("%s: there is no %s in which to look for it", keys.ParamPGPRecipients, keys.ParamPGPRing)
	}
	var ring keyring
	for i, data := range params[keys.ParamPGPRing] {
		more, err := readKeys(data)
		if err == nil && len(more.entities) == 0 {
			err = more.problem()
		}
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", keys.ParamPGPRing, i, err)
		}
		ring.entities = append(ring.entities, more.entities...)
	}
	seen := make(map[string]bool)
	for i, name := range params[keys.ParamPGPRecipients] {
		found, err := ring.recipients(string(name))
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", keys.ParamPGPRecipients, i, err)
		}
		for _, r := range found {
			if !seen[r.Fingerprint()] {
				seen[r.Fingerprint()] = true
				all = append(all, r)
			}
		}
	}
	return all, nil
}

// identity reads a secret keyring.
func identity(key keys.Key) (keys.Identity, error) {
	if !isOpenPGP(key.Data) {
		return nil, keys.ErrNoMatch
	}
	id, err := newIdentity(key.Label, key.Data, key.Password)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key.Label, err)
	}
	return id, nil
}

// identities reads ocicrypt's parameters.
func identities(params keys.Parameters) []keys.Identity {
	var ids []keys.Identity
	for _, k := range params.Keys(keys.ParamPGPKeys, keys.ParamPGPPasswords) {
		// Where it came from is not known here, so it has no name.
		id, err := newIdentity("", k.Data, k.Password)
		if err != nil {
			ids = append(ids, keys.Unusable(k.Label, err))
			continue
		}
		ids = append(ids, id)
	}
	return ids
}

func notKey(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{keys.ErrNotKey}, args...)...)
}
