// Package schemes lists the ways of wrapping a layer's secret that this module
// knows. A new one is a package below keys and a line here.
package schemes

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
	"imgcrypt/keys/pgp"
	"imgcrypt/keys/pkcs11"
	"imgcrypt/keys/pkcs7"
	"imgcrypt/keys/provider"
)

// Options are the options of all schemes. The zero value knows no key provider and no
// module for tokens, and the default keyring of gpg.
type Options struct {
	PGP      pgp.Config
	PKCS11   pkcs11.Config
	Provider provider.Config
}

// All returns every scheme, ordered by name.
func All(o Options) []keys.Scheme {
	return []keys.Scheme{
		jwe.Scheme(),
		pgp.Scheme(o.PGP),
		pkcs11.Scheme(o.PKCS11),
		pkcs7.Scheme(),
		provider.Scheme(o.Provider),
	}
}

// The environment variables that [FromEnvironment] asks for, beside XDG_CONFIG_HOME and
// HOME. All but the last are ocicrypt's.
const (
	EnvPKCS11Config    = "OCICRYPT_CONFIG"
	EnvPKCS11Hash      = "OCICRYPT_OAEP_HASHALG"
	EnvProviderConfig  = "OCICRYPT_KEYPROVIDER_CONFIG"
	EnvProviderTimeout = "IMGCRYPT_KEYPROVIDER_TIMEOUT"
)

// FromEnvironment returns the options that the environment asks for, where ocicrypt
// looks for them, too. getenv is os.Getenv. No file is read yet.
func FromEnvironment(getenv func(string) string) (Options, error) {
	var dirs []string
	if dir := getenv("XDG_CONFIG_HOME"); dir != "" {
		dirs = append(dirs, dir)
	}
	if dir := getenv("HOME"); dir != "" {
		dirs = append(dirs, filepath.Join(dir, ".config"))
	}
	o := Options{
		PKCS11: pkcs11.Config{
			File:     getenv(EnvPKCS11Config),
			Dirs:     strings.Join(append(dirs, "/etc"), string(filepath.ListSeparator)),
			OAEPHash: getenv(EnvPKCS11Hash),
		},
		Provider: provider.Config{File: getenv(EnvProviderConfig)},
	}
	if text := getenv(EnvProviderTimeout); text != "" {
		var err error
		if o.Provider.Timeout, err = time.ParseDuration(text); err != nil || o.Provider.Timeout <= 0 {
			return Options{}, fmt.Errorf("%s=%.40q is no time limit, such as 30s", EnvProviderTimeout, text)
		}
	}
	return o, nil
}
