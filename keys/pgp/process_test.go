package pgp_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imgcrypt/internal/testenv"
	"imgcrypt/keys"
	"imgcrypt/keys/pgp"
	"imgcrypt/layer"
)

// fakeGPG writes a shell script that tells its version as gpg does, and otherwise does what
// is given.
func fakeGPG(t testing.TB, dir, name, version, script string) string {
	t.Helper()
	testenv.Need(t, "sh")
	path := filepath.Join(dir, name)
	text := "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'gpg (GnuPG) " + version + "'; echo more; exit 0; }\n" + script + "\n"
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// ourPacket is a packet for a key that no keyring here has.
func ourPacket(t testing.TB) layer.Packet {
	t.Helper()
	h := newHome(t, "gpg")
	return wrap(t, fileRecipient(t, h.public(h.gen("25519", "Somebody", "", ""))), secret)
}

// Whatever gpg does, it ends soon and in an error of its own.
func TestBadGPG(t *testing.T) {
	t.Parallel()
	packet := ourPacket(t)
	id := strings.TrimPrefix(pgp.Scheme(pgp.Config{}).Describe(packet)[0], "0x")
	fingerprint := strings.Repeat("0", 24) + id
	listing := fmt.Sprintf("echo 'pub:u:255:22:%s:1::::::scESC:'; echo 'fpr:::::::::%s:'; echo 'uid:u::::1::X::x@example.com:'", id, fingerprint)
	secretListing := strings.ReplaceAll(listing, "pub:", "sec:")
	cases := map[string]struct {
		script string
		lookup string // a part of the error
		open   string
		want   error // of lookup; of open it is always ErrUnreachable, unless empty
	}{
		"hangs":               {"sleep 1000", "did not end within 500ms", "did not end within 500ms", keys.ErrUnreachable},
		"hangs behind it":     {"sleep 1000 & wait", "did not end within 500ms", "did not end within 500ms", keys.ErrUnreachable},
		"prints for ever":     {"exec yes", "printed too much", "printed too much", keys.ErrUnreachable},
		"complains at length": {"head -c 100000000 /dev/zero | tr '\\0' x >&2; exit 2", "not in the keyring", "", pgp.ErrNotFound},
		"exits 1":             {"echo 'gpg: \x1b[2Jno \u00e4gent' >&2; exit 1", "not in the keyring, nor a file (gpg: ?[2Jno \u00e4gent)", "", pgp.ErrNotFound},
		"says nothing":        {"exit 3", "ended with code 3 and said nothing", "", pgp.ErrNotFound},
		"kills itself":        {"kill -9 $$", "signal: killed", "signal: killed", keys.ErrUnreachable},
		"prints nonsense":     {"echo 'fpr:x'; echo 'uid'; echo ':::::'; echo sub; echo pub; echo uid", "not in the keyring", "", pgp.ErrNotFound},
		"no fingerprint":      {"echo 'pub:u:255:22:1:1::::::scESC:'; echo 'uid:u::::1::X::x@example.com:'", "lists a key without a fingerprint", "", keys.ErrUnreachable},
		"exports nothing":     {"case \"$*\" in *--export*) exit 0;; esac;" + listing, "does not export " + fingerprint, "", keys.ErrUnreachable},
		"exports no key":      {"case \"$*\" in *--export*) echo x; exit 0;; esac;" + listing, "no OpenPGP public key", "", keys.ErrNotKey},
		"exports too much":    {"case \"$*\" in *--export*) exec yes;; esac;" + listing, "printed too much", "", keys.ErrUnreachable},
		"does not decrypt":    {"case \"$*\" in *--decrypt*) exit 2;; esac;" + secretListing, "", "said nothing", nil},
		"decrypts badly":      {"case \"$*\" in *--decrypt*) echo hello; exit 0;; esac;" + secretListing, "", "does not decrypt", nil},
		"decrypts for ever":   {"case \"$*\" in *--decrypt*) sleep 1000;; esac;" + secretListing, "", "did not end within", nil},
		"agent is away":       {"case \"$*\" in *--decrypt*) echo '[GNUPG:] ERROR pkdecrypt_failed 33554509' >&2; exit 2;; esac;" + secretListing, "", "does not decrypt", nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := pgp.Config{Program: fakeGPG(t, t.TempDir(), "gpg", "2.2.40", c.script), Timeout: 30 * time.Second, UseKeyring: true}
			if strings.Contains(c.script, "sleep") {
				config.Timeout = 500 * time.Millisecond
			}
			check := func(what string, err error, want error, texts string) {
				t.Helper()
				for text := range strings.SplitSeq(texts, "|") {
					if strings.Contains(fmt.Sprint(err), text) && errors.Is(err, want) && len(err.Error()) < 700 {
						return
					}
				}
				t.Errorf("%s: %.1000v", what, err)
			}
			start := time.Now()
			if c.lookup != "" {
				_, err := pgp.Scheme(config).Recipient(t.Context(), "x@example.com", new(keys.Files))
				check("lookup", err, c.want, c.lookup)
			}
			_, err := pgp.Scheme(config).Fallback(nil).Unwrap(t.Context(), []layer.Packet{packet})
			if c.open != "" {
				check("open", err, keys.ErrUnreachable, c.open)
			} else {
				check("open", err, keys.ErrNoMatch, "")
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// A gpg that is stopped leaves nothing behind, and the caller's reason is the error.
func TestCancelled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pidFile := filepath.Join(dir, "pid")
	config := pgp.Config{Program: fakeGPG(t, dir, "gpg", "2.2.40", "sleep 1000 & echo $! >"+pidFile+"; wait"), Timeout: time.Minute}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for {
			if data, err := os.ReadFile(pidFile); err == nil && len(data) > 1 {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	_, err := pgp.Scheme(config).Recipient(ctx, "x", new(keys.Files))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	pid, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	stat := filepath.Join("/proc", strings.TrimSpace(string(pid)), "stat")
	for range 100 {
		data, err := os.ReadFile(stat)
		if err != nil || strings.Contains(string(data), ") Z ") {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("process %s of gpg's group is still there", pid)
}

func TestNoGPG(t *testing.T) {
	t.Parallel()
	packet := ourPacket(t)
	config := pgp.Config{Program: "/nowhere/gpg", UseKeyring: true}
	s := pgp.Scheme(config)
	_, err := s.Recipient(t.Context(), "alice@example.com", new(keys.Files))
	if !errors.Is(err, keys.ErrUnreachable) || !strings.Contains(err.Error(), "not installed") || !strings.Contains(err.Error(), "pgp:./FILE") {
		t.Errorf("looking up a key: %v", err)
	}
	if _, err := s.Fallback(nil).Unwrap(t.Context(), []layer.Packet{packet}); !errors.Is(err, keys.ErrUnreachable) || !strings.Contains(err.Error(), "not installed") {
		t.Errorf("opening: %v", err)
	}
	if _, err := s.Fallback(nil).Unwrap(t.Context(), []layer.Packet{{Scheme: "jwe", Data: []byte("{}")}}); !errors.Is(err, keys.ErrNoMatch) {
		t.Errorf("opening a packet of another scheme: %v", err)
	}
	if _, err := pgp.ExportSecretKeys(t.Context(), config, []uint64{1}); !errors.Is(err, keys.ErrUnreachable) {
		t.Errorf("exporting: %v", err)
	}
}

// Which of several gpgs is run.
func TestVersions(t *testing.T) {
	type bin map[string]string // name → version
	cases := []struct {
		version string
		bin     bin
		want    string
	}{
		{"", bin{"gpg": "2.4.0", "gpg1": "1.4.23", "gpg2": "2.2.40"}, "gpg2"},
		{"", bin{"gpg": "2.4.0", "gpg1": "1.4.23"}, "gpg"},
		{"", bin{"gpg1": "1.4.23"}, "gpg1"},
		{"", bin{"gpg": "x", "gpg1": "1.4.23"}, "gpg1"},
		{"", bin{}, "error: not installed"},
		{"v1", bin{"gpg": "1.4.23", "gpg1": "1.4.23", "gpg2": "2.2.40"}, "gpg1"},
		{"v1", bin{"gpg": "1.4.23"}, "gpg"},
		{"v1", bin{"gpg": "2.2.40"}, "error: version 1 is asked for"},
		{"v2", bin{"gpg": "1.4.23", "gpg2": "2.2.40"}, "gpg2"},
		{"v2", bin{"gpg": "2.2.40"}, "gpg"},
		{"v2", bin{"gpg": "1.4.23"}, "error: version 2 is asked for"},
		{"v2", bin{"gpg1": "1.4.23"}, "error: not installed"},
		{"v3", bin{"gpg": "2.2.40"}, "error: neither v1 nor v2"},
	}
	for _, c := range cases {
		t.Run(fmt.Sprint(c.version, c.bin), func(t *testing.T) {
			dir := t.TempDir()
			for name, version := range c.bin {
				fakeGPG(t, dir, name, version, "echo ran "+name+" >&2; exit 2")
			}
			t.Setenv("PATH", dir)
			_, err := pgp.Scheme(pgp.Config{Version: c.version}).Recipient(t.Context(), "alice", new(keys.Files))
			want, failed := strings.CutPrefix(c.want, "error: ")
			if !failed {
				want = "ran " + want + ")"
			}
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

// What gpg gets: no shell, no option made of a name, its homedir in one word, and the
// terminal only where somebody may be asked.
func TestArguments(t *testing.T) {
	t.Parallel()
	packet := ourPacket(t)
	id := pgp.Scheme(pgp.Config{}).Describe(packet)[0]
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	script := "{ for a; do echo \"<$a>\"; done; echo \"$LC_ALL|$GPG_TTY\"; } >>" + log + "; case \"$*\" in *--list-secret*) echo sec:u:::" + id[2:] + ";; esac"
	config := pgp.Config{Program: fakeGPG(t, dir, "gpg", "2.2.40", script), Homedir: "-x; $(y)", TTY: "/dev/pts/77", UseKeyring: true}
	s := pgp.Scheme(config)
	for _, what := range []string{"--output=x", "-", "$(touch x)", "0x" + id[2:]} {
		if _, err := s.Recipient(t.Context(), what, new(keys.Files)); !errors.Is(err, pgp.ErrNotFound) {
			t.Errorf("%q: %v", what, err)
		}
	}
	if _, err := s.Fallback(nil).Unwrap(t.Context(), []layer.Packet{packet}); !errors.Is(err, keys.ErrUnreachable) {
		t.Error(err)
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for _, want := range []string{
		"<--homedir=-x; $(y)>\n<--batch>", "<-->\n<*--output=x>\nC|", "<-->\n<*->\nC|", "<-->\n<*$(touch x)>\nC|", "<-->\n<" + id + ">\nC|",
		"<--decrypt>\n|/dev/pts/77\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %s", want, text)
		}
	}
	decrypting := text[strings.LastIndex(text, "<--homedir"):]
	if strings.Contains(decrypting, "--batch") || strings.Contains(decrypting, "--no-tty") {
		t.Errorf("nobody could be asked: %s", decrypting)
	}
}

// A recipient that was written as a key, with its password, is not shown to gpg.
func TestPasswordOfRecipient(t *testing.T) {
	t.Chdir(t.TempDir())
	log := "log"
	program := fakeGPG(t, ".", "gpg", "2.2.40", "echo \"$@\" >>"+log+"; exit 2")
	if err := os.WriteFile("key.asc", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	parser := &keys.Parser{Schemes: []keys.Scheme{pgp.Scheme(pgp.Config{Program: "./" + program})}}
	for _, what := range []string{"pgp:key.asc:canary", "pgp:key.asc:pass=canary", "pgp:./key.asc:canary", "pgp:nosuch.asc:pass=canary",
		"pgp:nosuch.asc:file=canary", "pgp:nosuch.asc:fd=canary", "pgp:./nosuch.asc:pass=canary", "pgp:carol@example.org:x:pass=canary"} {
		_, err := parser.Recipient(t.Context(), what)
		if err == nil || !strings.Contains(err.Error(), "takes no password") || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if data, err := os.ReadFile(log); err == nil {
		t.Errorf("gpg was run with %s", data)
	}
}
