// Package pkcs11 wraps layer secrets for RSA keys on tokens (PKCS #11): smart cards, HSMs, SoftHSM.
//
// A secret is encrypted with RSA-OAEP. A packet is JSON as ocicrypt writes it,
//
//	{"version":0,"recipients":[{"version":0,"blob":"<base64>","hash":"sha256","kid":"<key id>"}]}
//
// for one recipient when it is written here, for any number when others wrote it. "kid" is not known to ocicrypt,
// which passes over it: the RFC 7638 SHA-256 thumbprint of the public key, base64url without padding, as package jwe has it.
// It only decides what is tried first, never what is not tried.
//
// A recipient is a public key, or a YAML file that names a key on a token; an identity is such a file:
//
//	pkcs11:
//	  uri: pkcs11:token=NAME;object=NAME;id=%01?module-name=NAME&pin-value=PIN   (RFC 7512)
//	module:
//	  env: {NAME: VALUE}
//
// Nothing here loads a vendor's library. Whatever a token has to do is done by the program imgcrypt-pkcs11, which is
// started for each operation and told on its standard input what to do, PIN included. One operation serves all packets of a
// layer, with one login. docs/adr/0010-tokens-by-a-helper.md has the reasons.
package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"time"

	"imgcrypt/keys"
)

// Name is the scheme's name.
const Name = "pkcs11"

// Config says how tokens are reached. The zero value has no configuration of modules, encrypts with what fits the
// key, and finds the helper by itself.
type Config struct {
	// File is the configuration of modules, or "internal" for ocicrypt's default one,
	// as in ocicrypt's OCICRYPT_CONFIG; empty means the first of Dirs that has one.
	// It is read when a token is needed.
	File string
	// Dirs are, separated as in PATH, directories that may hold an ocicrypt.conf.
	Dirs string
	// OAEPHash is "sha1" or "sha256"; empty means the latter, except for keys that are too small for a layer's
	// secret with it, as those of 2048 bits are. Source: ocicrypt's OCICRYPT_OAEP_HASHALG.
	OAEPHash string
	// Helper is the path of imgcrypt-pkcs11; empty means the one beside the running
	// program, else the one on PATH.
	Helper string
	// Timeout bounds one operation on a token; zero means 30 seconds.
	Timeout time.Duration
}

// Scheme returns the scheme.
func Scheme(c Config) keys.Scheme {
	return keys.Scheme{
		Name:       Name,
		Recipient:  c.recipient,
		Recipients: c.recipients,
		Identity:   c.identity,
		Identities: c.identities,
		Describe:   Describe,
	}
}

// recipient reads a public key or a key file.
func (c Config) recipient(_ context.Context, path string, files *keys.Files) (keys.Recipient, error) {
	data, err := files.Read(path)
	if err != nil {
		return nil, err
	}
	return c.parseRecipient(keys.Key{Label: path, Data: data}, c.modules)
}

// recipients reads ocicrypt's parameters.
func (c Config) recipients(_ context.Context, params keys.Parameters) ([]keys.Recipient, error) {
	var all []keys.Recipient
	for _, kind := range []string{keys.ParamPKCS11Public, keys.ParamPKCS11Keys} {
		for _, k := range params.Keys(kind, "") {
			r, err := c.parseRecipient(k, c.modulesOf(params))
			if err != nil {
				return nil, err
			}
			all = append(all, r)
		}
	}
	return all, nil
}

func (c Config) parseRecipient(k keys.Key, modules func() (*modules, error)) (keys.Recipient, error) {
	hash, err := hashName(c.OAEPHash)
	if err != nil {
		return nil, err
	}
	c.OAEPHash = hash
	file, err := parseKeyFile(k.Data)
	switch {
	case err == nil:
		return &TokenRecipient{token: newToken(c, k, file, modules)}, nil
	case !errors.Is(err, keys.ErrNoMatch):
		return nil, fmt.Errorf("%s: %w", k.Label, err)
	}
	key, err := keys.ParsePublicKey(k.Data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", k.Label, err)
	}
	r, err := NewRecipient(key, c.OAEPHash)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", k.Label, err)
	}
	return r, nil
}

// identity reads a key file. The password that comes with it is the PIN, and goes before one that the file
// has: it was given now.
func (c Config) identity(key keys.Key) (keys.Identity, error) {
	return c.parseIdentity(key, c.modules)
}

func (c Config) parseIdentity(key keys.Key, modules func() (*modules, error)) (keys.Identity, error) {
	file, err := parseKeyFile(key.Data)
	if errors.Is(err, keys.ErrNoMatch) {
		return nil, keys.ErrNoMatch
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key.Label, err)
	}
	return &Identity{token: newToken(c, key, file, modules)}, nil
}

// identities reads ocicrypt's parameters.
func (c Config) identities(params keys.Parameters) []keys.Identity {
	var all []keys.Identity
	for _, k := range params.Keys(keys.ParamPKCS11Keys, "") {
		id, err := c.parseIdentity(k, c.modulesOf(params))
		if errors.Is(err, keys.ErrNoMatch) {
			err = fmt.Errorf("%s: %w: no YAML with pkcs11.uri", k.Label, keys.ErrNotKey)
		}
		if err != nil {
			id = keys.Unusable(k.Label, err)
		}
		all = append(all, id)
	}
	return all
}

// modulesOf returns what reads the configuration of modules: the one in params if there is one.
func (c Config) modulesOf(params keys.Parameters) func() (*modules, error) {
	if given := params[keys.ParamPKCS11Config]; len(given) > 0 {
		return func() (*modules, error) { return parseModules(keys.ParamPKCS11Config, given[0]) }
	}
	return c.modules
}
