// Package provider wraps layer secrets by key providers: programs and services that
// hold keys, or ask those who do, and speak ocicrypt's key-provider protocol.
//
// # Asking
//
// A provider has a name, which the configuration file maps to a command or to the
// address of a gRPC service, and which packets carry: those of the provider kms are of
// the scheme "provider.kms". The file is read when a provider is needed, and not
// before: it may be absent or broken as long as nobody needs one.
//
// A provider is told what it is to wrap or unwrap, and the parameters that the user
// wrote after its name. It never receives other keys, passwords, recipients or the
// parameters of other providers, as it would from ocicrypt.
//
// A command gets one request on its standard input and writes one answer to its
// standard output. It inherits the environment, but has a session of its own and so no
// terminal, and is killed with all that it started, as far as that stayed in its process
// group, when time is up. A service is called over HTTP/2, with or without TLS, by one
// connection that all layers share; proxies that the environment may name are not used.
//
// # Being asked
//
// A provider in Go implements [KeyProvider]; [Server] makes it a command or a service
// that every client of the protocol can use, ocicrypt included.
package provider

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"imgcrypt/internal/oneline"
	"imgcrypt/keys"
	"imgcrypt/layer"
)

// Name is the scheme's name, and the first part of its packets' names.
const Name = "provider"

// DefaultTimeout is how long a provider may take where [Config] does not say.
const DefaultTimeout = 30 * time.Second

// Config says where providers are found. The zero value knows none.
type Config struct {
	// File is the configuration file, as in ocicrypt's OCICRYPT_KEYPROVIDER_CONFIG.
	// It is read when a provider is needed. Empty means that there is none.
	File string
	// Timeout bounds one call of a provider, from its start or the connection to it
	// to the last byte of the answer; zero means [DefaultTimeout]. A provider that lets
	// it pass is not asked again for as long, and one that refuses packets of a layer
	// for as long is not asked about the others.
	Timeout time.Duration
	// IdleTimeout is how long a connection stays that nobody uses; zero means ten
	// seconds.
	IdleTimeout time.Duration
}

// Scheme returns the scheme. All that is made by it shares one reading of the
// configuration and one connection to each service.
func Scheme(c Config) keys.Scheme {
	d := newDirectory(c)
	return keys.Scheme{
		Name:       Name,
		Recipient:  d.recipient,
		Recipients: d.recipients,
		Named:      d.named,
		Identities: d.identities,
		Fallback:   d.fallback,
		Describe:   Describe,
	}
}

// Describe returns "[provider.NAME]": packets of providers are opaque.
func Describe(p layer.Packet) []string { return []string{"[" + oneline.Word(p.Scheme) + "]"} }

// recipient reads "NAME" or "NAME:PARAMETER".
func (d *directory) recipient(ctx context.Context, arg string, _ *keys.Files) (keys.Recipient, error) {
	name, params, err := parse(arg)
	if err != nil {
		return nil, err
	}
	return d.newRecipient(ctx, name, params)
}

// recipients makes one recipient of all the values that a provider has, as it gets
// them in one request.
func (d *directory) recipients(ctx context.Context, params keys.Parameters) ([]keys.Recipient, error) {
	var all []keys.Recipient
	for _, name := range slices.Sorted(maps.Keys(params)) {
		r, err := d.newRecipient(ctx, name, params[name])
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

func (d *directory) newRecipient(ctx context.Context, name string, params [][]byte) (*Recipient, error) {
	// What would fail later should not have to wait for a layer to be encrypted.
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := d.lookup(name); err != nil {
		return nil, fmt.Errorf("%s: %w", oneline.Word(name), err)
	}
	return &Recipient{directory: d, name: name, params: params}, nil
}

// named reads "NAME" or "NAME:PARAMETER" as a key.
func (d *directory) named(arg string) (keys.Identity, error) {
	name, params, err := parse(arg)
	if err != nil {
		return nil, err
	}
	if _, err := d.lookup(name); err != nil {
		return nil, fmt.Errorf("%s: %w", oneline.Word(name), err)
	}
	return &Identity{directory: d, name: name, params: params}, nil
}

// identities makes one identity for each provider. Whether it is in the configuration
// is found out when it is needed: the parameters come from somewhere else, and other
// keys may do.
func (d *directory) identities(params keys.Parameters) []keys.Identity {
	var all []keys.Identity
	for _, name := range slices.Sorted(maps.Keys(params)) {
		all = append(all, &Identity{directory: d, name: name, params: params[name]})
	}
	return all
}

// enabled is what ocicrypt sends to a provider that was given no parameter.
const enabled = "Enabled"

// parse splits "NAME" or "NAME:PARAMETER" at the first colon.
func parse(arg string) (name string, params [][]byte, err error) {
	name, param, ok := strings.Cut(arg, ":")
	if name == "" {
		return "", nil, errors.New("no key provider is named, as in provider:NAME or provider:NAME:PARAMETER")
	}
	if reserved(name) {
		// In ocicrypt's configurations its parameter would be taken for a key.
		return "", nil, fmt.Errorf("a key provider cannot be called %s", name)
	}
	if !ok {
		param = enabled
	}
	return name, [][]byte{[]byte(param)}, nil
}

// reserved says whether name is one of the kinds of parameters that ocicrypt has of
// its own, so that no provider can be called by it.
func reserved(name string) bool {
	switch name {
	case keys.ParamPrivateKeys, keys.ParamPasswords, keys.ParamPublicKeys, keys.ParamCertificates,
		keys.ParamPGPKeys, keys.ParamPGPPasswords, keys.ParamPGPRecipients, keys.ParamPGPRing,
		keys.ParamPKCS11Keys, keys.ParamPKCS11Config, keys.ParamPKCS11Public:
		return true
	}
	return false
}
