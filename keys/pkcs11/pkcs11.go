// Package pkcs11 wraps layer secrets for RSA keys on tokens (PKCS #11).
package pkcs11

import "imgcrypt/keys"

// Name is the scheme's name.
const Name = "pkcs11"

// Config says how tokens are reached. The zero value has no configuration of modules,
// encrypts with SHA-256 and finds the helper by itself.
type Config struct {
	// File is the configuration of modules, or "internal" for ocicrypt's default one,
	// as in ocicrypt's OCICRYPT_CONFIG; empty means the first of Dirs that has one.
	File string
	// Dirs are, separated as in PATH, directories that may hold an ocicrypt.conf.
	Dirs string
	// OAEPHash is "sha1" or "sha256"; empty means the latter. Source: ocicrypt's
	// OCICRYPT_OAEP_HASHALG.
	OAEPHash string
	// Helper is the path of imgcrypt-pkcs11; empty means the one beside the running
	// program, else the one on PATH.
	Helper string
}

// Scheme returns the scheme.
func Scheme(Config) keys.Scheme { return keys.Scheme{Name: Name} }
