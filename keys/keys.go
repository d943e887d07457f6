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
	"crypto/x509"
	"errors"
	"strings"

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

// Marked is what a Recipient implements whose packets do not tell for whom they
// are, such as those of a key provider.
type Marked interface {
	// Mark is a text that tells the recipient from others of its scheme, and the
	// name of that scheme, as packets have it. It may be secret.
	Mark() (scheme, text string)
}

// Cautioned is what a Recipient implements that can be used, but about which
// something has to be said.
type Cautioned interface {
	// Caution returns what has to be said, or nil.
	Caution() error
}

// Portable is what a Recipient or an Identity implements that ocicrypt can use, too.
type Portable interface {
	// Parameters returns it as ocicrypt's configurations carry it, secrets in the
	// clear. The caller may change the result.
	Parameters() (Parameters, error)
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
	// ErrUnreachable means that whoever holds the key could not be asked, or gave no
	// proper answer: a key provider, a token, gpg.
	ErrUnreachable = errors.New("cannot be asked")
	// ErrNotKey means that a file holds no key of any kind that is known, or the
	// wrong half of a pair.
	ErrNotKey = errors.New("not a usable key")
)

// Scheme is one way of wrapping a layer's secret. Fields that are nil are things that
// it has not; Name, Recipient, Recipients and Describe must be set.
type Scheme struct {
	// Name is the scheme's name in recipients ("jwe:…") and annotations. The
	// packets of key providers are called by it, a dot and the provider's name.
	Name string
	// Recipient makes a recipient of what the user wrote after "NAME:". files is
	// how it reads files. Its errors name the file, not the scheme.
	Recipient func(ctx context.Context, arg string, files *Files) (Recipient, error)
	// Recipients makes recipients of what ocicrypt calls EncryptConfig.Parameters.
	// params holds the kinds that are this scheme's, see [Parameters]; at least one
	// has a value. Errors begin with the kind and the value's place, as in "pubkeys[1]".
	Recipients func(ctx context.Context, params Parameters) ([]Recipient, error)
	// Identity makes an identity of a key file's content, or returns an error
	// that wraps ErrNoMatch if the content is no key of this scheme. Several
	// schemes may take the same key. Other errors begin with key.Label.
	Identity func(key Key) (Identity, error)
	// Named makes an identity of what the user wrote after "NAME:" as a key, for
	// schemes whose keys are no files.
	Named func(arg string) (Identity, error)
	// Identities makes identities of what ocicrypt calls DecryptConfig.Parameters,
	// of the kinds that are this scheme's alone; the keys in "privkeys" are offered
	// to Identity. A key that cannot be used is an error in its place in the list,
	// see [Unusable].
	Identities func(params Parameters) []Identity
	// Fallback returns the identity that is tried after given, which are all that
	// the user named: one that needs no naming, such as a key provider that the
	// packet itself names. nil means that there is none.
	Fallback func(given []Identity) Identity
	// Describe names a packet's recipients for people: a key id, an address. A
	// packet that names none yields "[NAME]"; one that cannot be parsed too.
	Describe func(p layer.Packet) []string
}

// Owns says whether packets of this name are the scheme's.
func (s Scheme) Owns(packetScheme string) bool {
	return packetScheme == s.Name || strings.HasPrefix(packetScheme, s.Name+".")
}

// Key is the content of one key file, and the password that came with it.
type Key struct {
	// Label is what errors call it: the file's path. Never secret.
	Label string
	// Data is the file's content.
	Data []byte
	// Password decrypts Data; nil means that none was given.
	Password []byte
	// Certificates are all that were given beside the keys. Which of them are this
	// key's own is for the scheme to find out.
	Certificates []*x509.Certificate
}

// String returns the label, so that printing a key shows no secret.
func (k Key) String() string { return k.Label }

// GoString returns the label, as String does.
func (k Key) GoString() string { return k.Label }
