package pgp_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containers/ocicrypt/config"
	ocipgp "github.com/containers/ocicrypt/keywrap/pgp"

	"imgcrypt/keys"
	"imgcrypt/keys/pgp"
)

const secret = `{"symkey":"…"}`

// Every kind of key, with and without a passphrase, in every direction: here, gpg and ocicrypt.
func TestEveryKindOfKey(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	for _, kind := range slices.Sorted(maps.Keys(kinds())) {
		if kind == "sign" || kind == "small" {
			continue
		}
		for _, passphrase := range []string{"", "open: sesame"} {
			name := kind + map[bool]string{true: " protected"}[passphrase != ""]
			fingerprint := h.gen(kind, "Key of "+kind, strings.ReplaceAll(name, " ", "-")+"@example.com", passphrase)
			for _, armor := range []bool{false, true} {
				t.Run(name+map[bool]string{true: " armoured"}[armor], func(t *testing.T) {
					bothWays(t, h, fingerprint, passphrase, armor)
				})
			}
		}
	}
}

func bothWays(t *testing.T, h *home, fingerprint, passphrase string, armor bool) {
	options := []string{"--no-armor"}
	if armor {
		options = []string{"--armor"}
	}
	options = append(options, "--pinentry-mode", "loopback", "--passphrase", passphrase)
	public := h.run(nil, append(options, "--export", fingerprint)...)
	private := h.run(nil, append(options, "--export-secret-keys", fingerprint)...)
	var password []string
	if passphrase != "" {
		password = append(password, passphrase)
	}
	id, r := identity(t, private, password...), fileRecipient(t, public)

	ours := wrap(t, r, secret)
	opens(t, id, secret, ours)
	if got := h.run(ours.Data, "--pinentry-mode", "loopback", "--passphrase", passphrase, "--decrypt"); string(got) != secret {
		t.Errorf("gpg opens ours to %q", got)
	}
	opens(t, id, secret, message(h.run([]byte(secret), "--encrypt", "--recipient", fingerprint)))
	opens(t, id, secret, message(h.run([]byte(secret), "--encrypt", "--hidden-recipient", fingerprint)))
	opens(t, id, secret, message(h.run([]byte(secret), "--encrypt", "--recipient", fingerprint, "--compress-algo", "bzip2")))
	opens(t, id, secret, message(h.run([]byte(secret), "--encrypt", "--sign", "--recipient", fingerprint, "--local-user", fingerprint,
		"--pinentry-mode", "loopback", "--passphrase", passphrase)))
	if !r.(keys.Owner).Owns(ours) {
		t.Error("does not own its own packet")
	}
	withOcicrypt(t, id, r, private, passphrase, armor)
}

// withOcicrypt is both ways with what is portable and with what ocicrypt's users have.
func withOcicrypt(t *testing.T, id keys.Identity, r keys.Recipient, private []byte, passphrase string, armor bool) {
	ours := wrap(t, r, secret)
	kw := ocipgp.NewKeyWrapper()
	params, err := r.(keys.Portable).Parameters()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := kw.WrapKeys(&config.EncryptConfig{Parameters: params}, []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	opens(t, id, secret, message(theirs))
	if !r.(keys.Owner).Owns(message(theirs)) {
		t.Error("does not own what ocicrypt wrapped")
	}
	private2, err := id.(keys.Portable).Parameters()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := kw.UnwrapKey(&config.DecryptConfig{Parameters: private2}, ours.Data); err != nil || string(got) != secret {
		t.Errorf("ocicrypt opens ours to %q, %v", got, err)
	}

	// What ocicrypt's users have: binary exports, and the passphrase.
	if !armor {
		dc := &config.DecryptConfig{Parameters: map[string][][]byte{"gpg-privatekeys": {private}, "gpg-privatekeys-passwords": {[]byte(passphrase)}}}
		if got, err := kw.UnwrapKey(dc, ours.Data); err != nil || string(got) != secret {
			t.Errorf("ocicrypt opens ours with the export to %q, %v", got, err)
		}
	}
	for _, p := range []keys.Parameters{private2, {keys.ParamPGPKeys: {private}, keys.ParamPGPPasswords: {[]byte(passphrase)}}} {
		ids := pgp.Scheme(pgp.Config{}).Identities(p)
		if len(ids) != 1 {
			t.Fatalf("%d identities", len(ids))
		}
		opens(t, ids[0], secret, ours)
	}
	again, err := pgp.Scheme(pgp.Config{}).Recipients(t.Context(), params)
	if err != nil || len(again) != 1 {
		t.Fatalf("%d recipients, %v", len(again), err)
	}
	opens(t, id, secret, wrap(t, again[0], secret))
}

// The gpg of version 1 opens what is wrapped here, and the other way round.
func TestGPG1(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg1")
	for _, kind := range []string{"rsa", "dsa"} {
		address := kind + "@example.com"
		two := newHome(t, "gpg")
		h.run(two.secret("", two.gen(kind, "", address, "")), "--import")
		r := recipient(t, h.scheme(), address)
		ours := wrap(t, r, secret)
		if got := h.run(ours.Data, "--decrypt"); string(got) != secret {
			t.Errorf("%s: gpg1 opens ours to %q", kind, got)
		}
		id := identity(t, h.run(nil, "--export-secret-keys", address))
		opens(t, id, secret, ours)
		opens(t, id, secret, message(h.run([]byte(secret), "--encrypt", "--recipient", address)))
		config := h.config()
		config.UseKeyring = true
		opens(t, pgp.Scheme(config).Fallback(nil), secret, ours)
		exported, err := pgp.ExportSecretKeys(t.Context(), h.config(), pgp.KeyIDs(ours))
		if err != nil {
			t.Fatal(err)
		}
		opens(t, identity(t, exported), secret, ours)
	}
}
