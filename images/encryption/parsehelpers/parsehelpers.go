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
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containers/ocicrypt"
	encconfig "github.com/containers/ocicrypt/config"
	"github.com/go-jose/go-jose/v4"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
)

// EncArgs is what a user said about keys, in the words of the flags that are named
// for each field.
type EncArgs struct {
	// GPGHomedir (--gpg-homedir) is gpg's directory; empty means its default.
	GPGHomedir string
	// GPGVersion (--gpg-version) is "1", "2", "v1" or "v2"; empty means whichever is
	// installed.
	GPGVersion string
	// Key (--key) are private keys as [keys.Parser.Key] reads them: "FILE",
	// "FILE:PASSWORD", "FILE:pass=PASSWORD", "FILE:file=FILE" or "FILE:fd=NUMBER".
	Key []string
	// Recipient (--recipient) are those to encrypt for: "jwe:FILE".
	Recipient []string
	// DecRecipient (--dec-recipient) are the recipients whose Key is given, for
	// schemes that need both. jwe does not: its entries are checked and not used.
	DecRecipient []string
}

// The names of parameters in ocicrypt's configurations.
const (
	paramPublicKeys  = "pubkeys"
	paramPrivateKeys = "privkeys"
	paramPasswords   = "privkeys-passwords"
)

// params are the parameters of one of ocicrypt's configurations.
type params = map[string][][]byte

// reader reads the arguments of one call, and so each file once.
type reader struct {
	keys.Parser
}

func newReader() *reader {
	return &reader{keys.Parser{Schemes: schemes.All(), Files: new(keys.Files)}}
}

// addFunc adds the public half of what a recipient names to parameters. The parser
// has found it usable before.
type addFunc func(r *reader, arg string, to params) error

// recipientParams says how each scheme's recipients get into ocicrypt's parameters.
// nil stands for those that ocicrypt has and this module has not yet.
func recipientParams() map[string]addFunc {
	return map[string]addFunc{
		"jwe":      addPublicKey,
		"pgp":      nil,
		"pkcs11":   nil,
		"pkcs7":    nil,
		"provider": nil,
	}
}

// CreateCryptoConfig returns the configuration to encrypt for args.Recipient. The keys
// in args.Key, which adding recipients to an encrypted image needs, are in
// its EncryptConfig.DecryptConfig and in its DecryptConfig. descs are layers whose
// recipients may say which PGP keys to look for; no scheme uses them yet.
//
// A recipient or key that cannot be used is an error; a scheme that is not built
// wraps keys.ErrUnknownScheme.
func CreateCryptoConfig(args EncArgs, descs []ocispec.Descriptor) (encconfig.CryptoConfig, error) {
	r := newReader()
	cc, err := r.decryptConfig(args)
	if err != nil {
		return encconfig.CryptoConfig{}, err
	}
	cc.EncryptConfig.Parameters, err = r.recipients(args.Recipient)
	if err != nil {
		return encconfig.CryptoConfig{}, err
	}
	return cc, nil
}

// CreateDecryptCryptoConfig returns the configuration to decrypt with args.Key, in its
// DecryptConfig. descs and errors are as for [CreateCryptoConfig].
func CreateDecryptCryptoConfig(args EncArgs, descs []ocispec.Descriptor) (encconfig.CryptoConfig, error) {
	return newReader().decryptConfig(args)
}

func (r *reader) decryptConfig(args EncArgs) (encconfig.CryptoConfig, error) {
	if _, err := r.recipients(args.DecRecipient); err != nil {
		return encconfig.CryptoConfig{}, err
	}
	private := params{}
	for _, arg := range args.Key {
		if err := r.addPrivateKeys(arg, private); err != nil {
			return encconfig.CryptoConfig{}, err
		}
	}
	// Two maps, as ocicrypt's functions that combine configurations write into them.
	return encconfig.CryptoConfig{
		EncryptConfig: &encconfig.EncryptConfig{
			Parameters:    params{},
			DecryptConfig: encconfig.DecryptConfig{Parameters: maps.Clone(private)},
		},
		DecryptConfig: &encconfig.DecryptConfig{Parameters: private},
	}, nil
}

// recipients returns the parameters for recipients of all schemes.
func (r *reader) recipients(list []string) (params, error) {
	to := params{}
	for _, s := range list {
		name, arg, _ := strings.Cut(s, ":")
		add, known := recipientParams()[name]
		if known && add == nil {
			return nil, notBuilt(name)
		}
		// It also has the words for a scheme that nobody knows.
		if _, err := r.Recipient(s); err != nil {
			return nil, err
		}
		if !known {
			return nil, notBuilt(name)
		}
		if err := add(r, arg, to); err != nil {
			return nil, fmt.Errorf("recipient %s: %w", name, err)
		}
	}
	return to, nil
}

func notBuilt(scheme string) error {
	return fmt.Errorf("scheme %s is not built yet: %w", scheme, keys.ErrUnknownScheme)
}

// addPublicKey adds the key in a file in a form that ocicrypt parses.
func addPublicKey(r *reader, path string, to params) error {
	data, err := r.Files.Read(path)
	if err != nil {
		return err
	}
	key, err := keys.ParsePublicKey(data)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if key.Algorithm != "" {
		data, err = jose.JSONWebKey{Key: key.Key, Algorithm: key.Algorithm}.MarshalJSON()
	} else {
		data, err = x509.MarshalPKIXPublicKey(key.Key)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %w", path, keys.ErrNotKey, err)
	}
	to[paramPublicKeys] = append(to[paramPublicKeys], data)
	return nil
}

// addPrivateKeys adds those keys in a file, decrypted, that a scheme can use. One at
// least has to be.
func (r *reader) addPrivateKeys(arg string, to params) error {
	if strings.HasPrefix(arg, "provider:") {
		return notBuilt("provider")
	}
	file, err := r.Key(arg)
	if err != nil {
		return err
	}
	all, err := keys.ParsePrivateKeys(file.Data, file.Password)
	if err != nil {
		// It also has the words for a file that is a key, but of another kind.
		if _, other := r.IdentityOf(file); other != nil {
			return other
		}
		return fmt.Errorf("%s: %w", file.Label, err)
	}
	unusable := true
	for _, key := range all {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			continue
		}
		if _, err := r.IdentityOf(keys.Key{Label: file.Label, Data: der}); err != nil {
			continue
		}
		unusable = false
		to[paramPrivateKeys] = append(to[paramPrivateKeys], der)
		to[paramPasswords] = append(to[paramPasswords], []byte{})
	}
	if unusable {
		_, err := r.IdentityOf(file)
		return err
	}
	return nil
}

// CreateGPGClient returns a client of the gpg of args.GPGVersion, which works in
// args.GPGHomedir.
func CreateGPGClient(args EncArgs) (ocicrypt.GPGClient, error) {
	version := args.GPGVersion
	if slices.Contains([]string{"1", "2"}, version) {
		version = "v" + version
	}
	if !slices.Contains([]string{"", "v1", "v2"}, version) {
		return nil, fmt.Errorf("gpg version %.20q: it can be 1, 2, v1 or v2", args.GPGVersion)
	}
	return ocicrypt.NewGPGClient(version, args.GPGHomedir)
}
