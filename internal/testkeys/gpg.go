package testkeys

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// PGP makes a key in the user's keyring, and exports it, with a passphrase unless that is empty. Holder's Files
// are the export.
func (u *User) PGP(t testing.TB, passphrase string) Holder {
	t.Helper()
	u.made++
	if u.gnupg == "" {
		u.makeKeyring(t)
	}
	address := fmt.Sprintf("holder%d@example.test", u.made)
	protection := "%no-protection"
	if passphrase != "" {
		protection = "Passphrase: " + passphrase
	}
	recipe := u.path("recipe")
	write(t, recipe, strings.Join([]string{
		"Key-Type: RSA", "Key-Length: 2048", "Key-Usage: sign",
		protection,
		"Subkey-Type: RSA", "Subkey-Length: 2048", "Subkey-Usage: encrypt",
		"Name-Real: Holder", "Name-Email: " + address, "Expire-Date: 0", "%commit", "",
	}, "\n"))
	u.GPG(t, "--generate-key", recipe)
	secret := u.path("secret.gpg")
	u.GPG(t, "--pinentry-mode", "loopback", "--passphrase", passphrase, "--output", secret, "--export-secret-keys", address)
	key := secret
	if passphrase != "" {
		key += ":pass=" + passphrase
	}
	return Holder{
		Scheme: "pgp", Recipient: "pgp:" + address, Keys: []string{key}, Files: []string{secret},
		Names: []string{address},
	}
}

// makeKeyring makes the home directory of gpg. Its path is short, since gpg's agent has its sockets there.
func (u *User) makeKeyring(t testing.TB) {
	t.Helper()
	parent := os.TempDir()
	if len(parent) > 60 {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "imgcrypt-gpg-")
	if err != nil {
		t.Fatal(err)
	}
	u.gnupg = dir
	t.Cleanup(func() {
		kill := exec.Command("gpgconf", "--homedir", dir, "--kill", "all")
		if out, err := kill.CombinedOutput(); err != nil {
			t.Errorf("gpgconf --kill: %v\n%s", err, out)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
}

// GPG runs gpg with the user's keyring, and returns what it prints.
func (u *User) GPG(t testing.TB, args ...string) string {
	t.Helper()
	return u.run(t, "gpg", append([]string{"--batch", "--quiet"}, args...)...)
}

// GPG1 runs the gpg of version 1 with another home directory.
func (u *User) GPG1(t testing.TB, homedir string, args ...string) string {
	t.Helper()
	return u.run(t, "gpg1", append([]string{"--homedir", homedir, "--batch", "--quiet"}, args...)...)
}

// Gnupg is the home directory of the user's gpg, empty before the first holder of pgp.
func (u *User) Gnupg() string { return u.gnupg }

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
