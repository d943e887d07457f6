package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testkeys"
	"imgcrypt/internal/testnode"
)

// shows returns the recipients that layerinfo shows of an image with one layer.
func (n *node) shows(t testing.TB, flags ...string) string {
	t.Helper()
	rows := n.layerinfo(t, append(flags, encName)...)
	if len(rows) != 1 {
		t.Fatalf("%d layers", len(rows))
	}
	return rows[0].recipients
}

// layerinfo shows who can open an image: certificates by issuer and serial number, gpg's keys by their addresses or
// their ids, providers by their names, other keys by their ids.
func TestRecipientsShown(t *testing.T) {
	t.Parallel()
	user := testkeys.NewUser(t)
	all := user.All(t)
	n := startNode(t, testnode.Config{}).with(user.Env())
	n.loadLayers(t, 1, plainName)
	for _, h := range all {
		n.encrypt(t, plainName, encName, h)
		nobody, numeric, shown := n.with(nil).shows(t), n.shows(t, "-n"), n.shows(t)
		switch h.Scheme {
		case "pgp":
			if shown != h.Names[0] {
				t.Errorf("pgp: shows %q, want %q", shown, h.Names[0])
			}
			if len(numeric) != len("0x0123456789ABCDEF") || !strings.HasPrefix(numeric, "0x") {
				t.Errorf("pgp: shows %q, want a key id", numeric)
			}
			if nobody != numeric {
				t.Errorf("pgp, without the keyring: shows %q, want %q", nobody, numeric)
			}
			if got := n.with(nil).shows(t, "--gpg-homedir", user.Gnupg()); got != shown {
				t.Errorf("pgp, with --gpg-homedir: shows %q, want %q", got, shown)
			}
			continue
		case "provider":
			if shown != "[provider."+h.Names[0]+"]" {
				t.Errorf("provider: shows %q", shown)
			}
		case "pkcs7":
			if shown != strings.Join(h.Names, " ") {
				t.Errorf("pkcs7: shows %q, want %q", shown, h.Names)
			}
		default:
			if len(shown) != 43 {
				t.Errorf("%s: shows %q, want a thumbprint", h.Scheme, shown)
			}
		}
		if numeric != shown || nobody != shown {
			t.Errorf("%s: shows %q, with -n %q, to somebody else %q", h.Scheme, shown, numeric, nobody)
		}
	}
	n.encrypt(t, plainName, encName, all...)
	shown := n.shows(t)
	for _, h := range all {
		for _, name := range h.Names {
			if !strings.Contains(shown, name) {
				t.Errorf("shows %q without %q", shown, name)
			}
		}
	}
}

// A certificate that has expired is worth a warning, and works.
func TestExpiredCertificate(t *testing.T) {
	t.Parallel()
	user := testkeys.NewUser(t)
	expired, valid := user.PKCS7(t, "-days", "-1"), user.PKCS7(t)
	n := startNode(t, testnode.Config{})
	plain := n.loadLayers(t, 1, plainName)
	encrypt := func(h testkeys.Holder) testnode.Result {
		r := n.enc(slices.Concat([]string{"images", "encrypt"}, recipientFlags(h), []string{plainName, encName})...).OK(t)
		n.opens(t, encName, plain, h)
		return r
	}
	warning := "ctr-enc: warning: recipient pkcs7: " + expired.Files[1] + ": "
	if r := encrypt(expired); strings.Count(r.Stderr, "\n") < 1 || !strings.HasPrefix(r.Stderr, warning) || !strings.Contains(r.Stderr, "expired") {
		t.Errorf("no warning: %s", r)
	}
	if r := encrypt(valid); strings.Contains(r.Stderr, "warning") {
		t.Errorf("a warning: %s", r)
	}
	// As --dec-recipient the certificate need not be among the keys.
	n.encrypt(t, plainName, encName, expired)
	n.enc("images", "decrypt", "--key", expired.Keys[0], "--dec-recipient", expired.Recipient, encName, "example.test/opened").OK(t)
	n.enc("images", "decrypt", "--key", expired.Keys[0], encName, "example.test/opened").OK(t)
	refused(t, n.enc("images", "decrypt", "--key", expired.Keys[0], "--dec-recipient", valid.Recipient, encName, "no"), valid.Files[1], "certificate of none")
}

// Who gives no key opens with gpg's own keyring, to decrypt and to run.
func TestOwnKeyring(t *testing.T) {
	t.Parallel()
	user, stranger := testkeys.NewUser(t), testkeys.NewUser(t)
	h := user.Holder(t, "pgp")
	stranger.Holder(t, "pgp")
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		me, other := n.with(user.Env()), n.with(stranger.Env())
		me.loadEncrypted(t, runnable(t), "--recipient", h.Recipient)
		for _, n := range []*node{n, other} {
			lines := refusedKeys(t, n.enc("images", "decrypt", encName, "no"))
			if !strings.Contains(lines[0], "(encrypted for pgp)") {
				t.Errorf("says %q", lines)
			}
			refused(t, n.run(nil, encName), unauthorized, "(encrypted for pgp)")
		}
		n.leavesNothing(t)
		for _, flags := range [][]string{nil, {"--gpg-homedir", user.Gnupg()}} {
			who := me
			if flags != nil {
				who = other
			}
			who.enc(slices.Concat([]string{"images", "decrypt"}, flags, []string{encName, "example.test/opened"})...).OK(t)
			if r := who.run(flags, encName); r.Code != 0 || r.Stdout != hello {
				t.Errorf("%q: %s", flags, r)
			}
		}
		// The keyring is for who names no key.
		refused(t, me.run([]string{"--key", rsaKeys(t).private}, encName), unauthorized)
		n.leavesNothing(t)
	})
}

// Recipients of gpg that cannot be found, or not be told apart, are errors that say so; so is a missing gpg.
func TestGPGRecipients(t *testing.T) {
	t.Parallel()
	user := testkeys.NewUser(t)
	h, same := user.Holder(t, "pgp"), user.Holder(t, "pgp")
	n := startNode(t, testnode.Config{}).with(user.Env())
	plain := n.loadLayers(t, 1, plainName)
	encrypt := func(n *node, recipient string, flags ...string) testnode.Result {
		return n.enc(slices.Concat([]string{"images", "encrypt", "--recipient", recipient}, flags, []string{plainName, encName})...)
	}
	r := encrypt(n, "pgp:Holder")
	if r.Code != 1 || !strings.Contains(r.Stderr, h.Names[0]) || !strings.Contains(r.Stderr, same.Names[0]) {
		t.Errorf("an ambiguous name: %s", r)
	}
	refused(t, encrypt(n, "pgp:nobody@example.test"), "nobody@example.test", "not in the keyring")
	refused(t, encrypt(n.with(append(user.Env(), "PATH=/nowhere")), h.Recipient), "gpg cannot be asked", "not installed")

	// The exported key needs no gpg, neither to encrypt nor to open.
	public := filepath.Join(t.TempDir(), "public.asc")
	writeFile(t, public, []byte(user.GPG(t, "--armor", "--export", h.Names[0])))
	without := n.with([]string{"PATH=/nowhere"})
	encrypt(without, "pgp:"+public).OK(t)
	without.opens(t, encName, plain, h)

	// The keyring of gpg 1.
	testenv.Need(t, "gpg1")
	old := t.TempDir()
	if err := os.Chmod(old, 0o700); err != nil {
		t.Fatal(err)
	}
	user.GPG1(t, old, "--import", h.Files[0])
	flags := []string{"--gpg-version", "v1", "--gpg-homedir", old}
	encrypt(without.with(nil), h.Recipient, flags...).OK(t)
	n.opens(t, encName, plain, h)
	n.with(nil).enc(slices.Concat([]string{"images", "decrypt"}, flags, []string{encName, "example.test/opened"})...).OK(t)
	refused(t, encrypt(n.with(nil), same.Recipient, flags...), "not in the keyring")
	n.leavesNothing(t)
}
