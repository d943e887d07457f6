package pgp_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imgcrypt/keys"
	"imgcrypt/keys/pgp"
	"imgcrypt/layer"
)

// What a user may call a key.
func TestLookup(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	alice := h.gen("25519", "Alice Example", "alice@example.com", "")
	malice := h.gen("25519", "Malice Exämple", "malice@example.com", "")
	bob := h.gen("rsa", "Bob", "", "")
	dead := h.gen("25519", "deadbeef", "", "")
	odd := h.gen("25519", "--version", "", "")
	h.run(nil, "--quick-add-uid", bob, "Bob: the Builder <bob@example.com>")
	h.run(nil, "--quick-add-uid", bob, "Robert <gone@example.com>")
	h.run(nil, "--quick-revoke-uid", bob, "Robert <gone@example.com>")
	of := map[string]string{alice: alice[24:], malice: malice[24:], bob: bob[24:]}
	spaced := func(f string) string {
		var parts []string
		for s := range slices.Chunk([]byte(f), 4) {
			parts = append(parts, string(s))
		}
		return strings.Join(parts[:5], " ") + "  " + strings.Join(parts[5:], " ")
	}
	cases := []struct{ what, want string }{
		{"alice@example.com", alice}, // and not malice@example.com
		{"ALICE@Example.com", alice},
		{"<alice@example.com>", alice},
		{"Alice Example <alice@example.com>", alice},
		{"Alice Exa", alice},
		{"malice", malice},
		{"Exämple", malice},
		{alice, alice},
		{strings.ToLower(alice), alice},
		{"0x" + alice, alice},
		{"0X" + strings.ToLower(alice), alice},
		{spaced(alice), alice},
		{of[bob], bob},
		{"0x" + strings.ToLower(of[bob]), bob},
		{of[malice][8:], malice},
		{h.subkey(alice), alice},
		{"0x" + h.subkey(bob)[8:], bob},
		{"bob", bob},
		{"bob@example.com", bob},
		{"Bob: the", bob},
		{"deadbeef", dead}, // a name that looks like an id
		{"--version", odd}, // a name that looks like an option
		{"-ver", odd},
	}
	for _, c := range cases {
		r, err := h.scheme().Recipient(t.Context(), c.what, new(keys.Files))
		if err != nil {
			t.Errorf("%q: %v", c.what, err)
			continue
		}
		if got := r.(*pgp.Recipient).Fingerprint(); got != c.want {
			t.Errorf("%q is %s, want %s", c.what, got, c.want)
		}
	}

	for _, what := range []string{"nobody@example.com", "gone@example.com", "0xdeadbeef", strings.Repeat("A", 40), "--help", "*", "=", "@",
		"&" + alice, "alice@example.com!", of[alice] + "!"} {
		_, err := h.scheme().Recipient(t.Context(), what, new(keys.Files))
		if !errors.Is(err, pgp.ErrNotFound) && !errors.As(err, new(*pgp.AmbiguousError)) {
			t.Errorf("%q: %v", what, err)
		}
	}
	for _, what := range []string{" ", "\t", "a\nb", "a\x00b", strings.Repeat("a", 5000)} {
		if _, err := h.scheme().Recipient(t.Context(), what, new(keys.Files)); err == nil || len(err.Error()) > 300 {
			t.Errorf("%.20q: %.400v", what, err)
		}
	}
}

func TestAmbiguous(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	var all []string
	for i := range 13 {
		all = append(all, h.gen("25519", fmt.Sprintf("Twin %d", i), "twin@example.com", ""))
	}
	for _, what := range []string{"twin@example.com", "Twin"} {
		_, err := h.scheme().Recipient(t.Context(), what, new(keys.Files))
		var ambiguous *pgp.AmbiguousError
		if !errors.As(err, &ambiguous) || !errors.Is(err, keys.ErrNotKey) {
			t.Fatalf("%q: %v", what, err)
		}
		if len(ambiguous.Keys) != len(all) {
			t.Errorf("%d keys", len(ambiguous.Keys))
		}
		for _, fingerprint := range all {
			if !slices.ContainsFunc(ambiguous.Keys, func(line string) bool { return strings.HasPrefix(line, fingerprint+` "Twin `) }) {
				t.Errorf("%s is not in %q", fingerprint, ambiguous.Keys)
			}
		}
		if text := err.Error(); strings.Count(text, "\n") != 11 || !strings.HasSuffix(text, "\n  and 3 more") {
			t.Errorf("the error is %s", text)
		}
	}
	// A fingerprint and a complete user id are not ambiguous.
	for _, what := range []string{all[3], "Twin 3 <twin@example.com>"} {
		if got := recipient(t, h.scheme(), what).(*pgp.Recipient).Fingerprint(); got != all[3] {
			t.Errorf("%q is %s", what, got)
		}
	}
	// The keys that cannot be used do not count.
	for _, fingerprint := range all[1:] {
		h.revoke(fingerprint)
	}
	if got := recipient(t, h.scheme(), "Twin").(*pgp.Recipient).Fingerprint(); got != all[0] {
		t.Errorf("Twin is %s", got)
	}
	h.revoke(all[0])
	_, err := h.scheme().Recipient(t.Context(), "Twin", new(keys.Files))
	if !errors.Is(err, keys.ErrNotKey) || strings.Count(err.Error(), ": revoked") != 10 || !strings.HasSuffix(err.Error(), "and 3 more") {
		t.Errorf("all revoked: %v", err)
	}
}

// revoke takes the certificate that gpg made with the key.
func (h *home) revoke(fingerprint string) {
	h.t.Helper()
	data, err := os.ReadFile(filepath.Join(h.dir, "openpgp-revocs.d", fingerprint+".rev"))
	if err != nil {
		h.t.Fatal(err)
	}
	h.run([]byte(strings.ReplaceAll(string(data), ":-----BEGIN", "-----BEGIN")), "--import")
}

// Keys that cannot be used: in the keyring, in a file, and in ocicrypt's parameters.
func TestUnusableRecipients(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	past := time.Now().Add(-48 * time.Hour).UTC().Format("20060102T150405")
	cases := map[string]struct {
		name  string
		why   string // in a file
		ring  string // in the keyring
		setup func(fingerprint string)
		kind  string
		more  []string
	}{
		"expired":             {ring: "expired", why: "it expired at ", kind: "25519", more: []string{"Creation-Date: " + past, "Expire-Date: seconds=3600"}},
		"revoked":             {ring: "revoked", why: "it is revoked", kind: "25519", setup: h.revoke},
		"only for signatures": {ring: "without a valid subkey", why: "no subkey for encryption", kind: "sign"},
		"subkey expired": {ring: "without a valid subkey", why: "its subkey for encryption 0x", kind: "sign", setup: func(fingerprint string) {
			h.run(nil, "--passphrase", "", "--quick-add-key", fingerprint, "cv25519", "encr", "seconds=1")
			time.Sleep(2500 * time.Millisecond)
		}},
		"disabled": {ring: "disabled", kind: "25519", setup: func(fingerprint string) {
			h.run([]byte("disable\nsave\n"), "--command-fd", "0", "--edit-key", fingerprint)
		}},
		"too small": {ring: "1024 bits", why: "1024 bits is too small", kind: "small"},
	}
	for name, c := range cases {
		address := strings.ReplaceAll(name, " ", "-") + "@example.com"
		fingerprint := h.gen(c.kind, "", address, "", c.more...)
		if c.setup != nil {
			c.setup(fingerprint)
		}
		_, err := h.scheme().Recipient(t.Context(), address, new(keys.Files))
		if !errors.Is(err, keys.ErrNotKey) || !strings.Contains(err.Error(), c.ring) || !strings.Contains(err.Error(), fingerprint) {
			t.Errorf("%s: in the keyring: %v", name, err)
		}
		if c.why == "" {
			continue
		}
		path := file(t, "key", h.public(fingerprint))
		_, err = h.scheme().Recipient(t.Context(), path, new(keys.Files))
		if !errors.Is(err, keys.ErrNotKey) || !strings.Contains(err.Error(), c.why) || !strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("%s: in a file: %v", name, err)
		}
		_, err = h.scheme().Recipients(t.Context(), keys.Parameters{
			keys.ParamPGPRecipients: {[]byte(address)}, keys.ParamPGPRing: {h.public()},
		})
		if !errors.Is(err, keys.ErrNotKey) || !strings.Contains(err.Error(), c.why) || !strings.HasPrefix(err.Error(), "gpg-recipients[0]: ") {
			t.Errorf("%s: in parameters: %v", name, err)
		}
	}
	// A key that expired opens what was encrypted for it before.
	expired := h.gen("25519", "Later", "", "", "Expire-Date: seconds=2")
	old := wrap(t, fileRecipient(t, h.public(expired)), secret)
	private := h.secret("", expired)
	time.Sleep(3 * time.Second)
	if _, err := h.scheme().Recipient(t.Context(), "Later", new(keys.Files)); !errors.Is(err, keys.ErrNotKey) {
		t.Errorf("expired since: %v", err)
	}
	opens(t, identity(t, private), secret, old)
}

// The newest subkey is taken, old ones still open, and own unless they were revoked.
func TestRotatedSubkey(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	fingerprint := h.gen("25519", "Rota", "rota@example.com", "")
	r := recipient(t, h.scheme(), "rota@example.com")
	before := wrap(t, r, secret)
	time.Sleep(1100 * time.Millisecond)
	h.run(nil, "--passphrase", "", "--quick-add-key", fingerprint, "cv25519", "encr", "never")
	again := recipient(t, h.scheme(), "rota@example.com")
	after := wrap(t, again, secret)
	if pgp.KeyIDs(before)[0] == pgp.KeyIDs(after)[0] {
		t.Errorf("both packets are for %X", pgp.KeyIDs(before)[0])
	}
	for _, p := range []layer.Packet{before, after} {
		if !again.(keys.Owner).Owns(p) {
			t.Error("does not own a packet for one of its subkeys")
		}
		opens(t, identity(t, h.secret("")), secret, p)
	}
	h.run([]byte("key 1\nrevkey\ny\n1\n\ny\nsave\n"), "--command-fd", "0", "--edit-key", fingerprint)
	for _, r := range []keys.Recipient{recipient(t, h.scheme(), "rota@example.com"), fileRecipient(t, h.public())} {
		if owner := r.(keys.Owner); owner.Owns(before) || !owner.Owns(after) {
			t.Error("owns a packet for a revoked subkey, or none for the one that is left")
		}
	}
	opens(t, identity(t, h.secret("")), secret, before)
}

// A subkey that has expired owns nothing.
func TestExpiredSubkeyOwnsNothing(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	fingerprint := h.gen("25519", "Rota", "rota@example.com", "")
	r := recipient(t, h.scheme(), "rota@example.com")
	time.Sleep(1100 * time.Millisecond)
	h.run(nil, "--passphrase", "", "--quick-add-key", fingerprint, "cv25519", "encr", "seconds=2")
	brief := wrap(t, recipient(t, h.scheme(), "rota@example.com"), secret)
	if r.(keys.Owner).Owns(brief) {
		t.Fatal("the packet is for the subkey that stays")
	}
	time.Sleep(3 * time.Second)
	if again := recipient(t, h.scheme(), "rota@example.com").(keys.Owner); again.Owns(brief) || !again.Owns(wrap(t, r, secret)) {
		t.Error("owns a packet for an expired subkey, or none for the other")
	}
}

// A secret key that never leaves the keyring.
func TestFallback(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	h.gen("25519", "", "alice@example.com", "")
	h.gen("rsa", "", "bob@example.com", "open sesame")
	other := newHome(t, "gpg")
	stranger := fileRecipient(t, other.public(other.gen("25519", "", "stranger@example.com", "")))
	forAlice := wrap(t, recipient(t, h.scheme(), "alice@example.com"), "for alice")
	forBob := wrap(t, recipient(t, h.scheme(), "bob@example.com"), "for bob")
	forStranger := wrap(t, stranger, "for a stranger")

	config := h.config()
	if pgp.Scheme(config).Fallback(nil) != nil {
		t.Error("a fallback that was not asked for")
	}
	config.UseKeyring = true
	if pgp.Scheme(config).Fallback([]keys.Identity{identity(t, h.secret("", "alice@example.com"))}) != nil {
		t.Error("a fallback where a key was given")
	}
	id := pgp.Scheme(config).Fallback(nil)
	if name := id.(keys.Named).Name(); name != "gpg keyring" {
		t.Errorf("it is called %q", name)
	}
	opens(t, id, "for alice", forStranger, layer.Packet{Scheme: "jwe", Data: []byte("{}")}, forAlice)
	opens(t, id, "for alice", message(h.run([]byte("for alice"), "--encrypt", "--sign", "--local-user", "alice@example.com",
		"--recipient", "alice@example.com")))

	refused := map[string]struct {
		packets []layer.Packet
		want    error
		text    string
	}{
		"nothing":         {nil, keys.ErrNoMatch, ""},
		"another scheme":  {[]layer.Packet{{Scheme: "jwe", Data: forAlice.Data}}, keys.ErrNoMatch, ""},
		"a stranger's":    {[]layer.Packet{forStranger}, keys.ErrNoMatch, ""},
		"nobody is named": {[]layer.Packet{message(h.run([]byte("x"), "--encrypt", "--hidden-recipient", "alice@example.com"))}, keys.ErrNoMatch, ""},
		"no packet":       {[]layer.Packet{message([]byte("x"))}, layer.ErrMalformed, ""},
		"damaged":         {[]layer.Packet{message(append(slices.Clone(forAlice.Data[:len(forAlice.Data)-1]), forAlice.Data[len(forAlice.Data)-1]^1))}, layer.ErrMalformed, "names key 0x"},
		"no passphrase":   {[]layer.Packet{forBob}, keys.ErrPassword, "gpg --export-secret-keys"},
		"a bomb":          {[]layer.Packet{message(h.run(make([]byte, 10<<20), "--encrypt", "--recipient", "alice@example.com"))}, layer.ErrMalformed, "over 65536 bytes"},
	}
	for name, c := range refused {
		if got, err := id.Unwrap(t.Context(), c.packets); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	// What fails stops nothing that does not.
	opens(t, id, "for alice", refused["damaged"].packets[0], message([]byte("x")), forAlice)

	// With the passphrase in the agent's memory nobody has to be asked.
	h.run([]byte("x"), "--pinentry-mode", "loopback", "--passphrase", "open sesame", "--sign", "--local-user", "bob@example.com")
	h.run(forBob.Data, "--pinentry-mode", "loopback", "--passphrase", "open sesame", "--decrypt")
	opens(t, id, "for bob", forBob)

	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() { opens(t, id, "for alice", forAlice) })
	}
	wait.Wait()

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := id.Unwrap(ctx, []layer.Packet{forAlice}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// pinentry has the agent ask for passphrases with a script, which answers with reply, a
// command of the shell.
func (h *home) pinentry(reply string) {
	h.t.Helper()
	path := filepath.Join(h.dir, "pinentry")
	script := "#!/bin/sh\necho OK\nwhile read word rest; do case $word in GETPIN) " + reply + ";; BYE) echo OK; exit;; *) echo OK;; esac; done\n"
	conf := "s2k-count 65536\npinentry-program " + path + "\n"
	err := errors.Join(os.WriteFile(path, []byte(script), 0o700), os.WriteFile(filepath.Join(h.dir, "gpg-agent.conf"), []byte(conf), 0o600))
	if err != nil {
		h.t.Fatal(err)
	}
	if out, err := exec.Command("gpgconf", "--homedir", h.dir, "--kill", "all").CombinedOutput(); err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
}

// The user is asked for the passphrase, and gives it or not.
func TestPinentry(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	h.gen("25519", "", "alice@example.com", "open sesame")
	packet := wrap(t, recipient(t, h.scheme(), "alice@example.com"), secret)
	config := h.config()
	config.UseKeyring = true
	for name, c := range map[string]struct {
		reply string
		want  error
	}{
		"gives it":          {"echo 'D open sesame'; echo OK", nil},
		"gives a wrong one": {"echo 'D canary'; echo OK", keys.ErrPassword},
		"cancels":           {"echo 'ERR 83886179 canceled <Pinentry>'", keys.ErrPassword},
		"goes away":         {"exit 1", keys.ErrPassword},
		"is not there":      {"exec sleep 5", keys.ErrUnreachable},
	} {
		h.pinentry(c.reply)
		config.Timeout = time.Minute
		if c.want == keys.ErrUnreachable {
			config.Timeout = 300 * time.Millisecond
		}
		start := time.Now()
		got, err := pgp.Scheme(config).Fallback(nil).Unwrap(t.Context(), []layer.Packet{packet})
		if !errors.Is(err, c.want) || c.want == nil && string(got) != secret || strings.Contains(fmt.Sprint(err), "canary") {
			t.Errorf("who %s: %q, %v", name, got, err)
		}
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("who %s: it took %v", name, took)
		}
		exported, err := pgp.ExportSecretKeys(t.Context(), config, pgp.KeyIDs(packet))
		if c.want != nil {
			if !errors.Is(err, keys.ErrUnreachable) {
				t.Errorf("who %s: exporting: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		opens(t, identity(t, exported, "open sesame"), secret, packet)
	}
}

func TestExportSecretKeys(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	h.gen("25519", "", "alice@example.com", "")
	h.gen("rsa", "", "bob@example.com", "open sesame")
	forAlice := wrap(t, recipient(t, h.scheme(), "alice@example.com"), secret)
	ids := append(pgp.KeyIDs(forAlice), 0x1234567812345678)
	data, err := pgp.ExportSecretKeys(t.Context(), h.config(), ids)
	if err != nil {
		t.Fatal(err)
	}
	opens(t, identity(t, data), secret, forAlice)

	if _, err := pgp.ExportSecretKeys(t.Context(), h.config(), nil); !errors.Is(err, keys.ErrNoMatch) {
		t.Errorf("of no key: %v", err)
	}
	if _, err := pgp.ExportSecretKeys(t.Context(), h.config(), ids[1:]); !errors.Is(err, keys.ErrNoMatch) {
		t.Errorf("of a stranger's: %v", err)
	}
	bob := pgp.KeyIDs(wrap(t, recipient(t, h.scheme(), "bob@example.com"), secret))
	if _, err := pgp.ExportSecretKeys(t.Context(), h.config(), bob); !errors.Is(err, keys.ErrUnreachable) {
		t.Errorf("without a passphrase: %v", err)
	}
	// Only public halves are there, or stubs.
	public := newHome(t, "gpg")
	public.run(h.public(), "--import")
	public.run(h.run(nil, "--pinentry-mode", "loopback", "--passphrase", "", "--export-secret-subkeys", "alice@example.com"), "--import")
	if _, err := pgp.ExportSecretKeys(t.Context(), public.config(), bob); !errors.Is(err, keys.ErrNoMatch) {
		t.Errorf("of a public key: %v", err)
	}
	if data, err = pgp.ExportSecretKeys(t.Context(), public.config(), ids); err != nil {
		t.Fatal(err)
	}
	opens(t, identity(t, data), secret, forAlice)
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	alice := h.gen("25519", "Alice", "alice@example.com", "")
	named := h.gen("25519", "Name, only", "", "")
	hidden := h.gen("25519", "Hidden", "", "")
	other := newHome(t, "gpg")
	stranger := other.gen("rsa", "Stranger", "", "")
	other.run(h.public(), "--import")
	all := message(other.run([]byte(secret), "--encrypt", "--recipient", alice, "--recipient", stranger, "--hidden-recipient", hidden, "--recipient", named))
	id := func(fingerprint string) string { return "0x" + other.subkey(fingerprint) }
	config := h.config()
	config.ShowAddresses = true
	missing := pgp.Config{Program: "/nowhere/gpg", ShowAddresses: true}
	cases := map[string]struct {
		config pgp.Config
		packet layer.Packet
		want   []string
	}{
		"ids":          {h.config(), all, []string{id(alice), id(stranger), "[pgp]", id(named)}},
		"addresses":    {config, all, []string{"alice@example.com", id(stranger), "[pgp]", `"Name, only"`}},
		"no gpg":       {missing, all, []string{id(alice), id(stranger), "[pgp]", id(named)}},
		"no message":   {config, message([]byte("x")), []string{"[pgp]"}},
		"empty":        {config, message(nil), []string{"[pgp]"}},
		"a passphrase": {config, message(h.run([]byte("x"), "--pinentry-mode", "loopback", "--passphrase", "x", "--symmetric")), []string{"[pgp]"}},
	}
	for name, c := range cases {
		scheme := pgp.Scheme(c.config)
		for range 2 {
			// gpg puts hidden recipients where it likes.
			got := scheme.Describe(c.packet)
			slices.Sort(got)
			slices.Sort(c.want)
			if !slices.Equal(got, c.want) {
				t.Errorf("%s: %q, want %q", name, got, c.want)
			}
		}
	}
}
