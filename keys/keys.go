// Package keys is about who can open a layer: recipients, who receive its
// secret, and identities, who hold the key that opens what a recipient got.
//
// Each way of wrapping a secret is a [Scheme], made by a package of its own below
// this one (keys/jwe, …); the list of all is in keys/schemes. This package knows
// none of them. It reads what users write ("jwe:pub.pem", "key.pem:file=pw"),
// reads key files and hands them to the schemes, and tries identities in the
// order in which they were given.
package keys

import (
	"context"
	"errors"

	"imgcrypt/layer"
)

// Recipient makes a layer's secret openable by its holder.
type Recipient interface {
	// Wrap returns a packet with secret in it. A recipient that cannot be
	// wrapped for is an error, never an empty packet.
	Wrap(ctx context.Context, secret []byte) (layer.Packet, error)
}

// Identity opens what was wrapped for it.
type Identity interface {
	// Unwrap returns the secret of the first packet that it can open. Packets
	// of other schemes are not its concern. [ErrNoMatch] means "not for me, try
	// the next one"; any other error is a reason that the user is told.
	Unwrap(ctx context.Context, packets []layer.Packet) (secret []byte, err error)
}

// Owner is what a Recipient implements that can tell its packets from those of
// others. With it, adding a recipient that is there already changes nothing.
type Owner interface {
	// Owns says whether p was wrapped for this recipient.
	Owns(p layer.Packet) bool
}

// Named is what an Identity implements that has a name for error messages: the
// file it came from, say. A name never contains a secret.
type Named interface {
	Name() string
}

// Sentinels. All errors of this package and of the schemes wrap one of them where
// it fits.
var (
	// ErrNoMatch means that an identity opens none of the packets, or that a
	// key file is not one of a scheme's.
	ErrNoMatch = errors.New("not for this key")
	// ErrNoKey means that none of the identities opened the layer.
	ErrNoKey = errors.New("no key opens it")
	// ErrUnknownScheme means that a recipient names no scheme, or none that is known.
	ErrUnknownScheme = errors.New("unknown scheme")
	// ErrPassword means that a key's password is missing or wrong.
	ErrPassword = errors.New("password")
	// ErrNotKey means that a file holds no key of any kind that is known, or the
	// wrong half of a pair.
	ErrNotKey = errors.New("not a usable key")
)

// Scheme is one way of wrapping a layer's secret. Every field must be set.
type Scheme struct {
	// Name is the scheme's name in recipients ("jwe:…") and annotations.
	Name string
	// Recipient makes a recipient of what the user wrote after "NAME:". files is
	// how it reads files. Its errors name the file, not the scheme.
	Recipient func(arg string, files *Files) (Recipient, error)
	// RecipientData makes a recipient of a public key's bytes, as ocicrypt's
	// configuration carries them. label is what errors begin with.
	RecipientData func(label string, data []byte) (Recipient, error)
	// Identity makes an identity of a key file's content, or returns an error
	// that wraps ErrNoMatch if the content is no key of this scheme. Several
	// schemes may take the same key. Other errors begin with key.Label.
	Identity func(key Key) (Identity, error)
	// Describe names a packet's recipients for people: a key id, an address. A
	// packet that names none yields "[NAME]"; one that cannot be parsed too.
	Describe func(p layer.Packet) []string
}

// Key is the content of one key file, and the password that came with it.
type Key struct {
	// Label is what errors call it: the file's path. Never secret.
	Label string
	// Data is the file's content.
	Data []byte
	// Password decrypts Data; nil means that none was given.
	Password []byte
}

// String returns the label, so that printing a key shows no secret.
func (k Key) String() string { return k.Label }

// GoString returns the label, as String does.
func (k Key) GoString() string { return k.Label }
