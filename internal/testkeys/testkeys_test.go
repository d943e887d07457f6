package testkeys_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testkeys"
	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
)

// There is a holder of every scheme, each opens what is wrapped for him and no other.
func TestHolders(t *testing.T) {
	t.Parallel()
	var names []string
	for _, s := range schemes.All(schemes.Options{}) {
		names = append(names, s.Name)
	}
	if !slices.Equal(names, testkeys.Schemes()) {
		t.Fatalf("schemes %v, want %v", testkeys.Schemes(), names)
	}
	user := testkeys.NewUser(t)
	all := append(user.All(t), user.All(t)...)
	for i, to := range all {
		packet, err := user.Recipients(t, to)[0].Wrap(t.Context(), []byte("secret"))
		if err != nil {
			t.Fatalf("%s: %v", to.Recipient, err)
		}
		for j, by := range all {
			var opened bool
			for _, id := range user.Identities(t, by) {
				secret, err := id.Unwrap(t.Context(), []layer.Packet{packet})
				opened = opened || err == nil && string(secret) == "secret"
			}
			if opened != (i == j) {
				t.Errorf("%v opens what is for %s: %t", by.Keys, to.Recipient, opened)
			}
		}
		for _, file := range to.Files {
			if _, err := os.Stat(file); err != nil {
				t.Error(err)
			}
		}
		if (len(to.Files) == 0) != (to.Scheme == "provider") || (to.Config != "") != (to.Scheme == "provider") {
			t.Errorf("%s: files %v, configuration %q", to.Scheme, to.Files, to.Config)
		}
	}
}

// A process has nothing of the developer's own by the user's environment.
func TestEnv(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "gpg", testenv.SoftHSM, testenv.Cgo)
	user := testkeys.NewUser(t)
	user.All(t)
	for _, name := range []string{"HOME", "GNUPGHOME", schemes.EnvPKCS11Config, schemes.EnvPKCS11Hash, schemes.EnvProviderConfig} {
		if !slices.ContainsFunc(user.Env(), func(variable string) bool { return strings.HasPrefix(variable, name+"=") }) {
			t.Errorf("no %s in %v", name, user.Env())
		}
	}
	h := user.PGP(t, "a passphrase")
	if _, err := user.Parser(t).Identities(h.Keys, nil); err != nil {
		t.Error(err)
	}
	if _, err := user.Parser(t).Identities(h.Files, nil); !errors.Is(err, keys.ErrPassword) {
		t.Errorf("without its passphrase: %v", err)
	}
}
