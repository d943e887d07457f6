// Package pgp wraps layer secrets as OpenPGP messages (RFC 4880, RFC 9580).
package pgp

import "imgcrypt/keys"

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
}

// Scheme returns the scheme.
func Scheme(Config) keys.Scheme { return keys.Scheme{Name: Name} }
