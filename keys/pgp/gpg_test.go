package pgp_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imgcrypt/internal/testenv"
	"imgcrypt/keys"
	"imgcrypt/keys/pgp"
	"imgcrypt/layer"
)

// home is a directory of a real gpg.
type home struct {
	t   testing.TB
	gpg string
	dir string
}

// newHome makes one for gpg or gpg1, and stops its agent at the end. The path is short
// because a socket's has to be.
func newHome(t testing.TB, gpg string) *home {
	t.Helper()
	testenv.Need(t, gpg, "gpgconf")
	dir, err := os.MkdirTemp("", "pgp")
	if err != nil {
		t.Fatal(err)
	}
	h := &home{t: t, gpg: gpg, dir: dir}
	// Passphrases are cheap here, and nobody is at the terminal.
	if err := os.WriteFile(filepath.Join(dir, "gpg-agent.conf"), []byte("s2k-count 65536\npinentry-program /bin/false\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if gpg != "gpg1" {
			if out, err := exec.Command("gpgconf", "--homedir", dir, "--kill", "all").CombinedOutput(); err != nil {
				t.Errorf("stopping the agent: %v: %s", err, out)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return h
}

// try runs gpg in the home.
func (h *home) try(stdin []byte, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args = append([]string{"--homedir", h.dir, "--batch", "--no-tty", "--yes", "--quiet", "--trust-model", "always"}, args...)
	cmd := exec.CommandContext(ctx, h.gpg, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		h.t.Logf("%s %q: %v: %s", h.gpg, args, err, stderr.Bytes())
	}
	return out, err
}

func (h *home) run(stdin []byte, args ...string) []byte {
	h.t.Helper()
	out, err := h.try(stdin, args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

// gen makes a key of a kind with the user id "NAME <address>", protected if passphrase is set,
// and returns its fingerprint.
func (h *home) gen(kind, name, address, passphrase string, more ...string) string {
	h.t.Helper()
	var b strings.Builder
	line := func(s string) { b.WriteString(s + "\n") }
	if passphrase == "" {
		line("%no-protection")
	}
	for _, s := range kinds()[kind] {
		line(s)
	}
	if name != "" {
		line("Name-Real: " + name)
	}
	if address != "" {
		line("Name-Email: " + address)
	}
	if passphrase != "" {
		line("Passphrase: " + passphrase)
	}
	if len(more) == 0 {
		line("Expire-Date: 0")
	}
	for _, s := range more {
		line(s)
	}
	line("%commit")
	before := h.fingerprints()
	h.run([]byte(b.String()), "--gen-key", "--pinentry-mode", "loopback")
	for _, f := range h.fingerprints() {
		if !strings.Contains(strings.Join(before, " "), f) {
			return f
		}
	}
	h.t.Fatal("no key was made")
	return ""
}

// kinds are kinds of keys.
func kinds() map[string][]string {
	sign, encrypt := "Key-Usage: sign", "Subkey-Usage: encrypt"
	return map[string][]string{
		"rsa":   {"Key-Type: RSA", "Key-Length: 2048", sign, "Subkey-Type: RSA", "Subkey-Length: 2048", encrypt},
		"rsa1":  {"Key-Type: RSA", "Key-Length: 2048", "Key-Usage: sign encrypt"},
		"small": {"Key-Type: RSA", "Key-Length: 1024", sign, "Subkey-Type: RSA", "Subkey-Length: 1024", encrypt},
		"25519": {"Key-Type: EDDSA", "Key-Curve: ed25519", sign, "Subkey-Type: ECDH", "Subkey-Curve: cv25519", encrypt},
		"nist":  {"Key-Type: ECDSA", "Key-Curve: nistp256", sign, "Subkey-Type: ECDH", "Subkey-Curve: nistp384", encrypt},
		"p521":  {"Key-Type: ECDSA", "Key-Curve: nistp521", sign, "Subkey-Type: ECDH", "Subkey-Curve: nistp521", encrypt},
		"brain": {"Key-Type: ECDSA", "Key-Curve: brainpoolP256r1", sign, "Subkey-Type: ECDH", "Subkey-Curve: brainpoolP256r1", encrypt},
		"dsa":   {"Key-Type: DSA", "Key-Length: 2048", sign, "Subkey-Type: ELG-E", "Subkey-Length: 2048", encrypt},
		"sign":  {"Key-Type: EDDSA", "Key-Curve: ed25519", sign},
	}
}

func (h *home) fingerprints() []string {
	var all []string
	primary := false
	for line := range strings.Lines(string(h.run(nil, "--with-colons", "--list-keys"))) {
		f := strings.Split(line, ":")
		primary = primary || f[0] == "pub"
		if f[0] == "fpr" && primary {
			all = append(all, f[9])
			primary = false
		}
	}
	return all
}

// subkey returns the id of the first subkey of a key, or of the key itself if it has none.
func (h *home) subkey(fingerprint string) string {
	h.t.Helper()
	id := fingerprint[len(fingerprint)-16:]
	for line := range strings.Lines(string(h.run(nil, "--with-colons", "--list-keys", fingerprint))) {
		if f := strings.Split(line, ":"); f[0] == "sub" {
			return f[4]
		}
	}
	return id
}

func (h *home) public(fingerprints ...string) []byte {
	h.t.Helper()
	return h.run(nil, append([]string{"--export"}, fingerprints...)...)
}

func (h *home) secret(passphrase string, fingerprints ...string) []byte {
	h.t.Helper()
	return h.run(nil, append([]string{"--pinentry-mode", "loopback", "--passphrase", passphrase, "--export-secret-keys"}, fingerprints...)...)
}

func (h *home) config() pgp.Config { return pgp.Config{Homedir: h.dir, Program: h.gpg} }

func (h *home) scheme() keys.Scheme { return pgp.Scheme(h.config()) }

// file writes a file and returns its path.
func file(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func recipient(t testing.TB, s keys.Scheme, what string) keys.Recipient {
	t.Helper()
	r, err := s.Recipient(t.Context(), what, new(keys.Files))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func fileRecipient(t testing.TB, public []byte) keys.Recipient {
	t.Helper()
	return recipient(t, pgp.Scheme(pgp.Config{}), file(t, "public.asc", public))
}

func identity(t testing.TB, secret []byte, password ...string) keys.Identity {
	t.Helper()
	k := keys.Key{Label: "secret.asc", Data: secret}
	if len(password) > 0 {
		k.Password = []byte(password[0])
	}
	id, err := pgp.Scheme(pgp.Config{}).Identity(k)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func wrap(t testing.TB, r keys.Recipient, secret string) layer.Packet {
	t.Helper()
	p, err := r.Wrap(t.Context(), []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func opens(t testing.TB, id keys.Identity, want string, packets ...layer.Packet) {
	t.Helper()
	if got, err := id.Unwrap(t.Context(), packets); err != nil || string(got) != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func message(data []byte) layer.Packet { return layer.Packet{Scheme: "pgp", Data: data} }
