// Package parsehelpers turns what users write about keys into ocicrypt's
// configurations, for programs that pass those on: to package encryption, to
// containerd, or to another user of ocicrypt.
//
// It exports what the package of the same path in containerd's imgcrypt exports, with
// the same meaning. Keys are read in every format that package keys knows and handed
// on in those that ocicrypt knows: private keys as unencrypted PKCS#8, public keys as
// PKIX or, where an algorithm is named, as JWK. So a configuration holds secrets in
// the clear, as it has to.
package parsehelpers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"

	"github.com/containers/ocicrypt"
	encconfig "github.com/containers/ocicrypt/config"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/keys"
	"imgcrypt/keys/pgp"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
)

// EncArgs is what a user said about keys, in the words of the flags that are named
// for each field.
type EncArgs struct {
	// GPGHomedir (--gpg-homedir) is gpg's directory; empty means its default.
	GPGHomedir string
	// GPGVersion (--gpg-version) is "1", "2", "v1" or "v2"; empty means whichever is
	// installed.
	GPGVersion string
	// Key (--key) are private keys as [keys.Parser.Identities] reads them: "FILE",
	// "FILE:PASSWORD", "FILE:pass=PASSWORD", "FILE:file=FILE", "FILE:fd=NUMBER" or
	// "provider:NAME:PARAMETER"; also the certificates that belong to them.
	Key []string
	// Recipient (--recipient) are those to encrypt for, as [keys.Parser.Recipient]
	// reads them: "jwe:FILE", "pkcs7:FILE" and so on.
	Recipient []string
	// DecRecipient (--dec-recipient) are the recipients whose Key is given. Only
	// pkcs7's certificates are of use.
	DecRecipient []string
}

// reader reads the arguments of one call, and so each file once.
type reader struct {
	keys.Parser
	gpg pgp.Config
}

func newReader(args EncArgs) (*reader, error) {
	o, err := schemes.FromEnvironment(os.Getenv)
	if err != nil {
		return nil, err
	}
	version, err := gpgVersion(args.GPGVersion)
	if err != nil {
		return nil, err
	}
	o.PGP = pgp.Config{Homedir: args.GPGHomedir, Version: version}
	return &reader{Parser: keys.Parser{Schemes: schemes.All(o), Files: new(keys.Files)}, gpg: o.PGP}, nil
}

// CreateCryptoConfig returns the configuration to encrypt for args.Recipient. The keys
// in args.Key, which adding recipients to an encrypted image needs, are in
// its EncryptConfig.DecryptConfig and in its DecryptConfig. descs are as for
// [CreateDecryptCryptoConfig]. A recipient or key that cannot be used is an error.
func CreateCryptoConfig(args EncArgs, descs []ocispec.Descriptor) (encconfig.CryptoConfig, error) {
	r, err := newReader(args)
	if err != nil {
		return encconfig.CryptoConfig{}, err
	}
	cc, err := r.decryptConfig(args, descs)
	if err != nil {
		return encconfig.CryptoConfig{}, err
	}
	params := make(keys.Parameters)
	for _, s := range args.Recipient {
		recipient, err := r.Recipient(context.Background(), s)
		if err == nil {
			err = add(recipient, params)
		}
		if err != nil {
			return encconfig.CryptoConfig{}, err
		}
	}
	// ocicrypt looks for the configuration of modules among the keys.
	if config, ok := params[keys.ParamPKCS11Config]; ok {
		delete(params, keys.ParamPKCS11Config)
		keys.Parameters(cc.EncryptConfig.DecryptConfig.Parameters).Merge(keys.Parameters{keys.ParamPKCS11Config: config})
	}
	cc.EncryptConfig.Parameters = params
	return cc, nil
}

// CreateDecryptCryptoConfig returns the configuration to decrypt with args.Key, in its
// DecryptConfig. Where no key is given, and layers among descs have PGP recipients, it
// holds those secret keys of gpg's keyring that open them, if gpg gives them out without
// a passphrase.
func CreateDecryptCryptoConfig(args EncArgs, descs []ocispec.Descriptor) (encconfig.CryptoConfig, error) {
	r, err := newReader(args)
	if err != nil {
		return encconfig.CryptoConfig{}, err
	}
	return r.decryptConfig(args, descs)
}

func (r *reader) decryptConfig(args EncArgs, descs []ocispec.Descriptor) (encconfig.CryptoConfig, error) {
	ids, err := r.Identities(args.Key, args.DecRecipient)
	if err != nil {
		return encconfig.CryptoConfig{}, err
	}
	private := make(keys.Parameters)
	for _, id := range ids {
		if err := add(id, private); err != nil {
			return encconfig.CryptoConfig{}, err
		}
	}
	if len(args.Key) == 0 {
		if err := r.addKeyring(descs, private); err != nil {
			return encconfig.CryptoConfig{}, err
		}
	}
	// Two maps, as ocicrypt's functions that combine configurations write into them.
	return encconfig.CryptoConfig{
		EncryptConfig: &encconfig.EncryptConfig{
			Parameters:    keys.Parameters{},
			DecryptConfig: encconfig.DecryptConfig{Parameters: maps.Clone(private)},
		},
		DecryptConfig: &encconfig.DecryptConfig{Parameters: private},
	}, nil
}

// add adds a recipient or an identity to ocicrypt's parameters.
func add(key any, to keys.Parameters) error {
	portable, ok := key.(keys.Portable)
	if !ok {
		return errors.New("ocicrypt's configurations have no place for this kind of key")
	}
	params, err := portable.Parameters()
	if err != nil {
		return err
	}
	to.Merge(params)
	return nil
}

// addKeyring adds the secret keys of gpg's keyring that the layers' PGP packets name.
func (r *reader) addKeyring(descs []ocispec.Descriptor, to keys.Parameters) error {
	var ids []uint64
	for _, desc := range descs {
		// A damaged packet names nobody.
		packets, _ := layer.Packets(desc.Annotations)
		for _, p := range packets {
			if p.Scheme == pgp.Name {
				ids = append(ids, pgp.KeyIDs(p)...)
			}
		}
	}
	if len(ids) == 0 {
		return nil
	}
	ring, err := pgp.ExportSecretKeys(context.Background(), r.gpg, ids)
	if errors.Is(err, keys.ErrNoMatch) || errors.Is(err, keys.ErrUnreachable) {
		// Nobody asked for the keyring, and the node may have a key.
		return nil
	}
	if err != nil {
		return err
	}
	to.Merge(keys.Parameters{keys.ParamPGPKeys: {ring}})
	return nil
}

// CreateGPGClient returns a client of the gpg of args.GPGVersion, which works in
// args.GPGHomedir.
func CreateGPGClient(args EncArgs) (ocicrypt.GPGClient, error) {
	version, err := gpgVersion(args.GPGVersion)
	if err != nil {
		return nil, err
	}
	return ocicrypt.NewGPGClient(version, args.GPGHomedir)
}

// gpgVersion returns what ocicrypt and package pgp call a version.
func gpgVersion(version string) (string, error) {
	switch version {
	case "1", "2":
		return "v" + version, nil
	case "", "v1", "v2":
		return version, nil
	}
	return "", fmt.Errorf("gpg version %.20q: it can be 1, 2, v1 or v2", version)
}
