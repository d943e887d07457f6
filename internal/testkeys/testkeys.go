// Package testkeys gives tests keys of all schemes, as their users have them: made by openssl, gpg and SoftHSM, in files
// and in the environment.
//
//	user := testkeys.NewUser(t)
//	alice, bob := user.Holder(t, "pgp"), user.Holder(t, "pkcs11")
//	… --recipient alice.Recipient … --key alice.Keys[0] …, in a process with user.Env()
//
// All programs that know a scheme take the same: ocicrypt, skopeo and buildah, too. The one exception is
// that some take only binary keyrings of gpg, which is why all here are.
package testkeys

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testprovider"
	"imgcrypt/internal/testsofthsm"
	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
)

// Schemes are the names of all schemes, sorted.
func Schemes() []string { return []string{"jwe", "pgp", "pkcs11", "pkcs7", "provider"} }

// User is somebody with a home directory, a keyring of gpg, a token and a configuration of key providers. What a
// user has not been asked for is not made. A User is for one goroutine at a time.
type User struct {
	dir       string
	gnupg     string
	made      int
	token     *testsofthsm.Token
	providers map[string]testprovider.Entry
}

// Holder is one key of a scheme.
type Holder struct {
	// Scheme is the scheme's name.
	Scheme string
	// Recipient is what comes after --recipient.
	Recipient string
	// Keys come after one --key each, and open what was encrypted for Recipient.
	Keys []string
	// Files are what a directory of keys has to hold to open it.
	Files []string
	// Config is, for a provider, a configuration that has it and no other.
	Config string
	// Names are what layerinfo says of the recipient.
	Names []string
}

// NewUser makes a user without keys.
func NewUser(t testing.TB) *User {
	t.Helper()
	return &User{dir: t.TempDir(), providers: make(map[string]testprovider.Entry)}
}

// Holder makes another key of a scheme. Where the scheme's tools are missing the test is skipped.
func (u *User) Holder(t testing.TB, scheme string) Holder {
	t.Helper()
	switch scheme {
	case "jwe":
		return u.jwe(t)
	case "pkcs7":
		return u.PKCS7(t)
	case "pgp":
		return u.PGP(t, "")
	case "pkcs11":
		return u.PKCS11(t, testsofthsm.Options{})
	case "provider":
		return u.Provider(t, testprovider.Options{})
	}
	t.Fatalf("no scheme %s", scheme)
	return Holder{}
}

// All makes a key of each scheme, in the order of Schemes.
func (u *User) All(t testing.TB) []Holder {
	t.Helper()
	var all []Holder
	for _, scheme := range Schemes() {
		all = append(all, u.Holder(t, scheme))
	}
	return all
}

// Env is what the environment of a process must have to use the user's keys. It names the user's home directory
// and all that lies elsewhere by default, so that nothing of the developer's own is used.
func (u *User) Env() []string {
	env := append([]string{"HOME=" + u.dir}, u.NodeEnv()...)
	if u.gnupg != "" {
		env = append(env, "GNUPGHOME="+u.gnupg)
	}
	return env
}

// NodeEnv is what a decoder's environment must have, and containerd's configuration gives it.
func (u *User) NodeEnv() []string {
	env := []string{schemes.EnvProviderConfig + "=" + u.ProviderConfig()}
	if u.token != nil {
		env = append(env, u.token.Env()...)
		// SoftHSM knows no other.
		env = append(env, schemes.EnvPKCS11Hash+"=sha1")
	}
	return env
}

// Parser reads the user's recipients and keys in this process.
func (u *User) Parser(t testing.TB) *keys.Parser {
	t.Helper()
	env := u.Env()
	options, err := schemes.FromEnvironment(func(name string) string {
		for _, variable := range slices.Backward(env) {
			if value, ok := strings.CutPrefix(variable, name+"="); ok {
				return value
			}
		}
		return ""
	})
	if err != nil {
		t.Fatal(err)
	}
	options.PGP.Homedir = u.gnupg
	if u.token != nil {
		options.PKCS11.Helper = testenv.Build(t, testenv.TokenHelper)
	}
	return &keys.Parser{Schemes: schemes.All(options), Files: new(keys.Files)}
}

// Identities reads the keys of holders.
func (u *User) Identities(t testing.TB, holders ...Holder) []keys.Identity {
	t.Helper()
	var all []string
	for _, h := range holders {
		all = append(all, h.Keys...)
	}
	ids, err := u.Parser(t).Identities(all, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// Recipients reads the recipients of holders.
func (u *User) Recipients(t testing.TB, holders ...Holder) []keys.Recipient {
	t.Helper()
	parser := u.Parser(t)
	var all []keys.Recipient
	for _, h := range holders {
		r, err := parser.Recipient(t.Context(), h.Recipient)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// path is a new file of the user.
func (u *User) path(name string) string {
	return filepath.Join(u.dir, fmt.Sprintf("%d-%s", u.made, name))
}

func (u *User) jwe(t testing.TB) Holder {
	t.Helper()
	u.made++
	private, public := u.path("key.pem"), u.path("pub.pem")
	u.run(t, "openssl", "genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", private)
	u.run(t, "openssl", "pkey", "-in", private, "-pubout", "-out", public)
	return Holder{Scheme: "jwe", Recipient: "jwe:" + public, Keys: []string{private}, Files: []string{private}}
}

// PKCS7 makes a key and a certificate. args go to `openssl x509 -req` and replace the period of its validity.
func (u *User) PKCS7(t testing.TB, args ...string) Holder {
	t.Helper()
	u.made++
	private, request, cert := u.path("key.pem"), u.path("request.pem"), u.path("cert.pem")
	name := fmt.Sprintf("holder %d", u.made)
	u.run(t, "openssl", "req", "-newkey", "rsa:2048", "-nodes", "-keyout", private, "-subj", "/O=Example/CN="+name, "-out", request)
	if len(args) == 0 {
		args = []string{"-days", "30"}
	}
	u.run(t, "openssl", append([]string{"x509", "-req", "-in", request, "-signkey", private, "-set_serial", fmt.Sprint(1000 + u.made), "-out", cert}, args...)...)
	return Holder{
		Scheme: "pkcs7", Recipient: "pkcs7:" + cert, Keys: []string{private, cert}, Files: []string{private, cert},
		Names: []string{`issuer="CN=` + name + `,O=Example"`, fmt.Sprintf("serial=%04X", 1000+u.made)},
	}
}

// PKCS11 makes a key on the user's token.
func (u *User) PKCS11(t testing.TB, o testsofthsm.Options) Holder {
	t.Helper()
	testenv.Need(t, testenv.Cgo)
	if u.token == nil {
		u.token = testsofthsm.Empty(t)
	}
	key := u.token.NewKey(t, o)
	// It has to be there before a command looks for it beside itself.
	testenv.Build(t, testenv.TokenHelper)
	return Holder{Scheme: "pkcs11", Recipient: "pkcs11:" + key.PublicKey, Keys: []string{key.YAML}, Files: []string{key.YAML}}
}

// Token is the user's token, nil before the first holder of pkcs11.
func (u *User) Token() *testsofthsm.Token { return u.token }

// run runs a tool with the user's environment.
func (u *User) run(t testing.TB, name string, args ...string) string {
	t.Helper()
	testenv.Need(t, name)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), u.Env()...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, stderr.String())
	}
	return string(out)
}
