package pkcs11_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testsofthsm"
	"imgcrypt/internal/tokenproto"
	"imgcrypt/keys"
	"imgcrypt/keys/pkcs11"
	"imgcrypt/layer"
)

// Everything that a URI can say wrong about a token is an error of its own, which says what it is about.
func TestWrongURI(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	c := config(t, token)
	p := wrap(t, newRecipient(t, c, token.PublicKey), "secret")
	twin := token.NewKey(t, testsofthsm.Options{Label: token.Key.Label})
	token.NewKey(t, testsofthsm.Options{Label: "EC", Flags: []string{"--key-type", "EC:prime256v1"}})
	module := "?module-path=" + token.Module
	pin := "&pin-value=" + token.PIN
	notModule := filepath.Join(t.TempDir(), "not-a-module.so")
	if err := os.WriteFile(notModule, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	wide := c
	wide.File = filepath.Join(t.TempDir(), "wide.conf")
	if err := os.WriteFile(wide.File, []byte("pkcs11: {module-directories: ["+filepath.Dir(token.Module)+"], allowed-module-paths: ["+filepath.Dir(notModule)+"/]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	internal := c
	internal.File = "internal"
	key := "pkcs11:token=test%20token;id=%C0%01"
	cases := []struct {
		name   string
		config pkcs11.Config
		uri    string
		want   pkcs11.Reason // empty: it opens
		says   string
	}{
		{"right", c, key + module + pin, "", ""},
		{"by module name", c, key + "?module-name=softhsm2" + pin, "", ""},
		{"by directory and name", c, key + "?module-path=" + filepath.Dir(token.Module) + "&module-name=softhsm2" + pin, "", ""},
		{"internal configuration", internal, key + "?module-name=softhsm2" + pin, "", ""},
		{"no token attribute", c, "pkcs11:id=%C0%01" + module + pin, "", ""},
		{"model and manufacturer", c, key + ";model=SoftHSM%20v2;manufacturer=SoftHSM%20project;type=private" + module + pin, "", ""},
		{"no such token", c, "pkcs11:token=nowhere;id=%C0%01" + module + pin, pkcs11.NoToken, `token "nowhere"; there are "test token"`},
		{"no such serial", c, key + ";serial=7" + module + pin, pkcs11.NoToken, `serial "7"`},
		{"no such model", c, key + ";model=X" + module + pin, pkcs11.NoToken, `model "X"`},
		{"no such slot", c, "pkcs11:slot-id=4711;id=%C0%01" + module + pin, pkcs11.NoToken, `slot-id "4711"`},
		{"no such object", c, "pkcs11:token=test%20token;object=nothing" + module + pin, pkcs11.NoKey, `object "nothing"`},
		{"no such id", c, "pkcs11:token=test%20token;id=%00%01" + module + pin, pkcs11.NoKey, `id "\x00\x01"`},
		{"two objects", c, "pkcs11:token=test%20token;object=key%201" + module + pin, pkcs11.SeveralKeys, "there are 2 private keys"},
		{"the twin", c, twin.URI, "no match", ""},
		{"an EC key", c, "pkcs11:token=test%20token;object=EC" + module + pin, pkcs11.UnfitKey, "no RSA key"},
		{"no PIN", c, key + module, pkcs11.PINMissing, "pin-value="},
		{"empty PIN", c, key + module + "&pin-value=", pkcs11.PINMissing, "pin-value="},
		{"PIN of no file", c, key + module + "&pin-source=file:/no/such/file", pkcs11.PINMissing, "/no/such/file"},
		{"PIN of a program", c, key + module + "&pin-source=%7Ccat%20/etc/passwd", pkcs11.PINMissing, "file:/path"},
		{"PIN of a relative file", c, key + module + "&pin-source=file:pin", pkcs11.PINMissing, "file:/path"},
		{"no such module", c, key + "?module-path=/no/such/module.so" + pin, pkcs11.NoModule, "/no/such/module.so"},
		{"no module of this name", c, key + "?module-name=nonesuch" + pin, pkcs11.NoModule, `"nonesuch" in the directories of ` + c.File},
		{"module not allowed", c, key + "?module-path=" + notModule + pin, pkcs11.ModuleForbidden, notModule + ", by " + c.File},
		{"found, but not allowed", wide, key + "?module-name=softhsm2" + pin, pkcs11.ModuleForbidden, token.Module + ", by " + wide.File},
		{"not a module", wide, key + "?module-path=" + notModule + pin, pkcs11.ModuleFailed, notModule},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			path := token.WriteYAML(t, strings.ReplaceAll(tc.name, " ", "-")+".yaml", tc.uri)
			secret, err := newIdentity(t, tc.config, path).Unwrap(t.Context(), []layer.Packet{p})
			switch tc.want {
			case "":
				if err != nil || string(secret) != "secret" {
					t.Errorf("%q, %v", secret, err)
				}
				return
			case "no match":
				if !errors.Is(err, keys.ErrNoMatch) {
					t.Error(err)
				}
				return
			}
			reasonIs(t, tc.name, err, tc.want)
			if err != nil && (!strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "canary")) {
				t.Errorf("%v does not say %q, or too much", err, tc.says)
			}
			if _, err := newRecipient(t, tc.config, path).Wrap(t.Context(), []byte("x")); err != nil && !strings.HasPrefix(err.Error(), path+": ") {
				t.Errorf("as a recipient: %v", err)
			}
		})
	}
}

// A wrong PIN is one, and locks nobody out who has the right one.
func TestWrongPIN(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	c := config(t, token)
	p := wrap(t, newRecipient(t, c, token.PublicKey), "secret")
	// One after the other: SoftHSM writes that there was a wrong PIN, and meanwhile others cannot read the token.
	for _, pin := range []string{"canary-wrong", "1", strings.Repeat("canary", 100), "canary\x00\xff"} {
		id, err := pkcs11.Scheme(c).Identity(keys.Key{Label: "key.yaml", Data: read(t, token.YAML), Password: []byte(pin)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = id.Unwrap(t.Context(), []layer.Packet{p})
		reasonIs(t, fmt.Sprintf("%.20q", pin), err, pkcs11.PINWrong)
		if strings.Contains(fmt.Sprint(err), "canary") {
			t.Errorf("%v says too much", err)
		}
	}
	if secret, err := newIdentity(t, c, token.YAML).Unwrap(t.Context(), []layer.Packet{p}); err != nil || string(secret) != "secret" {
		t.Errorf("%q, %v", secret, err)
	}
}

// Processes that use a token at the same time do not get in each other's way, though SoftHSM loses sight of a token
// while another process logs in. And none is kept waiting for good by one that hangs.
func TestManyProcesses(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	c := config(t, token)
	p := wrap(t, newRecipient(t, c, token.PublicKey), "secret")
	var wait sync.WaitGroup
	for range 6 {
		id := newIdentity(t, c, token.YAML)
		wait.Go(func() {
			for range 8 {
				if secret, err := id.Unwrap(t.Context(), []layer.Packet{p}); err != nil || string(secret) != "secret" {
					t.Errorf("%q, %v", secret, err)
				}
			}
		})
	}
	wait.Wait()
	s := newSpied(t, token, token.Key, "")
	lock, err := os.Open(s.module)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	s.config.Timeout = timeout
	if secret, err := newIdentity(t, s.config, s.path).Unwrap(t.Context(), []layer.Packet{s.packet}); err != nil || string(secret) != "secret" {
		t.Errorf("beside one that hangs: %q, %v", secret, err)
	}
}

// Two tokens of one name are told apart by the number of their slot.
func TestTwoTokens(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	c := config(t, token)
	p := wrap(t, newRecipient(t, c, token.PublicKey), "secret")
	cmd := exec.Command("softhsm2-util", "--init-token", "--free", "--label", token.Label, "--pin", "1234", "--so-pin", "1234")
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+token.Conf)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, err := newIdentity(t, c, token.YAML).Unwrap(t.Context(), []layer.Packet{p})
	reasonIs(t, "two tokens", err, pkcs11.SeveralTokens)
	_, after, _ := strings.Cut(fmt.Sprint(err), "slots [")
	slots, _, _ := strings.Cut(after, "]")
	for slot := range strings.FieldsSeq(slots) {
		path := token.WriteYAML(t, slot+".yaml", strings.Replace(token.URI, "pkcs11:", "pkcs11:slot-id="+slot+";", 1))
		if secret, err := newIdentity(t, c, path).Unwrap(t.Context(), []layer.Packet{p}); err == nil && string(secret) == "secret" {
			return
		}
	}
	t.Errorf("in none of the slots of %v", err)
}

// A PIN comes from the URI, from a file with or without a line's end, or with the key, which goes first.
func TestPIN(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	c := config(t, token)
	p := wrap(t, newRecipient(t, c, token.PublicKey), "secret")
	without, _, _ := strings.Cut(token.URI, "&pin-value=")
	file := func(content string) string {
		path := filepath.Join(t.TempDir(), "pin of")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(path, " ", "%20")
	}
	for name, tc := range map[string]struct{ uri, password string }{
		"in the URI":               {token.URI, ""},
		"percent encoded":          {without + "&pin-value=%63" + token.PIN[1:], ""},
		"given":                    {without, token.PIN},
		"given goes first":         {without + "&pin-value=canary-wrong", token.PIN},
		"given, no file":           {without + "&pin-source=file:/no/such/file", token.PIN},
		"of a file":                {without + "&pin-source=file:" + file(token.PIN), ""},
		"of a file with a line":    {without + "&pin-source=file://" + file(token.PIN+"\n"), ""},
		"of a file from Windows":   {without + "&pin-source=" + file(token.PIN+"\r\n"), ""},
		"before the others":        {strings.Replace(without, "?", "?pin-value="+token.PIN+"&", 1), ""},
		"empty password, URI's":    {token.URI, ""},
		"and a vendor's attribute": {token.URI + "&x-vendor=1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := token.WriteYAML(t, strings.ReplaceAll(name, " ", "-"), tc.uri)
			id, err := pkcs11.Scheme(c).Identity(keys.Key{Label: path, Data: read(t, path), Password: []byte(tc.password)})
			if err != nil {
				t.Fatal(err)
			}
			if secret, err := id.Unwrap(t.Context(), []layer.Packet{p}); err != nil || string(secret) != "secret" {
				t.Errorf("%q, %v", secret, err)
			}
			// Elsewhere there is neither the password nor the file.
			params, err := id.(keys.Portable).Parameters()
			if err != nil {
				t.Fatal(err)
			}
			var form struct {
				PKCS11 struct{ URI string } `yaml:"pkcs11"`
			}
			data := params[keys.ParamPKCS11Keys][0]
			if err := yaml.Unmarshal(data, &form); err != nil || strings.Contains(form.PKCS11.URI, "pin-source") || strings.Count(form.PKCS11.URI, "pin-value") != 1 {
				t.Errorf("sent as %s: %v", data, err)
			}
			there := pkcs11.Scheme(pkcs11.Config{Helper: c.Helper}).Identities(params)[0]
			if secret, err := there.Unwrap(t.Context(), []layer.Packet{p}); err != nil || string(secret) != "secret" {
				t.Errorf("sent: %q, %v", secret, err)
			}
		})
	}
}

// spy builds a library that does what SoftHSM does, with faults.
var spy = sync.OnceValues(func() (string, error) {
	run := func(name string, args ...string) (string, error) {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s %q: %w\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out)), nil
	}
	cc, err := run("go", "env", "CC")
	if err != nil {
		return "", err
	}
	headers, err := run("go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11")
	if err != nil {
		return "", err
	}
	path := filepath.Join(scratch, "spy.so")
	_, err = run(cc, "-shared", "-fPIC", "-Wall", "-Werror", "-I"+headers, "-o", path, "testdata/spy.c", "-ldl")
	return path, err
})

// spied is a key on a token whose library is the spy.
type spied struct {
	config pkcs11.Config
	path   string
	log    string
	module string
	packet layer.Packet
}

// newSpied returns one for a key of the token.
func newSpied(t testing.TB, token *testsofthsm.Token, key testsofthsm.Key, faults string) spied {
	t.Helper()
	testenv.Need(t, testenv.Cgo)
	built, err := spy()
	if err != nil {
		t.Fatal(err)
	}
	// Of its own, since operations with one library wait for each other.
	module := filepath.Join(t.TempDir(), "spy.so")
	if err := os.WriteFile(module, read(t, built), 0o600); err != nil {
		t.Fatal(err)
	}
	s := spied{module: module, config: config(t, token), log: filepath.Join(t.TempDir(), "log")}
	s.config.File = filepath.Join(t.TempDir(), "ocicrypt.conf")
	if err := os.WriteFile(s.config.File, []byte("pkcs11: {allowed-module-paths: ["+module+"]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	form := map[string]any{
		"pkcs11": map[string]any{"uri": strings.Replace(key.URI, token.Module, module, 1)},
		"module": map[string]any{"env": map[string]string{
			"SOFTHSM2_CONF": token.Conf, "SPY_MODULE": token.Module, "SPY_FAULTS": faults, "SPY_LOG": s.log,
		}},
	}
	data, err := yaml.Marshal(form)
	if err != nil {
		t.Fatal(err)
	}
	s.path = filepath.Join(t.TempDir(), "spied.yaml")
	if err := os.WriteFile(s.path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s.packet = wrap(t, newRecipient(t, s.config, key.PublicKey), "secret")
	return s
}

// calls returns what the library noted.
func (s spied) calls(t testing.TB) []string {
	t.Helper()
	data, err := os.ReadFile(s.log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Fields(string(data))
}

// Libraries and tokens with all kinds of faults: what works still works, and everything else is an error of
// its own, with nothing secret in it and at most one login.
func TestFaultyModules(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	big := token.NewKey(t, testsofthsm.Options{Bits: 3072})
	cases := []struct {
		faults string
		key    testsofthsm.Key
		want   pkcs11.Reason
		says   string
		calls  string
	}{
		{"", token.Key, "", "", "login oaep finalize"},
		{"", big, "", "", "login oaep raw finalize"},
		{"cannot-lock", token.Key, "", "", "login oaep finalize"},
		{"print-pin", token.Key, "", "", "login oaep finalize"},
		{"crash-at-end", token.Key, "", "", "login oaep finalize"},
		{"hang-at-end", token.Key, "", "", "login oaep finalize"},
		{"no-modulus", token.Key, "", "", "login oaep finalize"},
		{"no-raw", token.Key, "", "", "login oaep finalize"},
		{"no-raw", big, pkcs11.NoMechanism, "OCICRYPT_OAEP_HASHALG=sha1", "login oaep finalize"},
		{"no-start", token.Key, pkcs11.ModuleFailed, "CKR_DEVICE_ERROR", ""},
		{"not-permitted", token.Key, pkcs11.UnfitKey, "it may not decrypt", "login finalize"},
		{"removed", token.Key, pkcs11.TokenFailed, "CKR_DEVICE_REMOVED", "login oaep finalize"},
		{"locked", token.Key, pkcs11.PINLocked, "", "finalize"},
		{"final-try", token.Key, pkcs11.PINLastTry, "", "finalize"},
		{"lock-at-login", token.Key, pkcs11.PINLocked, "CKR_PIN_LOCKED", "login finalize"},
		{"crash-at-login print-pin", token.Key, pkcs11.HelperFailed, "SIGSEGV", "login"},
	}
	for _, tc := range cases {
		t.Run(fmt.Sprintf("%s %d", tc.faults, publicKey(t, tc.key.PublicKey).N.BitLen()), func(t *testing.T) {
			// One after the other: each has a library of its own, so they would not take turns.
			s := newSpied(t, token, tc.key, tc.faults)
			id := newIdentity(t, s.config, s.path)
			secret, err := id.Unwrap(t.Context(), []layer.Packet{s.packet, s.packet})
			if tc.want == "" {
				if err != nil || string(secret) != "secret" {
					t.Errorf("%q, %v", secret, err)
				}
			} else {
				reasonIs(t, tc.faults, err, tc.want)
				if err != nil && (!strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "canary")) {
					t.Errorf("%v does not say %q, or too much", err, tc.says)
				}
			}
			if got := strings.Join(s.calls(t), " "); got != tc.calls {
				t.Errorf("called %q, want %q", got, tc.calls)
			}
			// What a token says of a PIN is its last word.
			if errors.Is(err, keys.ErrPassword) {
				_, again := id.Unwrap(t.Context(), []layer.Packet{s.packet})
				if again == nil || again.Error() != err.Error() || strings.Join(s.calls(t), " ") != tc.calls {
					t.Errorf("asked again: %v, %q", again, s.calls(t))
				}
			}
		})
	}
}

// A wrong PIN is tried once, however many packets and layers there are, and whoever asks at the same time.
func TestWrongPINOnce(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	s := newSpied(t, token, token.Key, "")
	id, err := pkcs11.Scheme(s.config).Identity(keys.Key{Label: "key.yaml", Data: read(t, s.path), Password: []byte("canary-wrong-pin")})
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			_, err := id.Unwrap(t.Context(), slices.Repeat([]layer.Packet{s.packet}, 5))
			if !errors.Is(err, keys.ErrPassword) || strings.Contains(err.Error(), "canary") {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if calls := strings.Join(s.calls(t), " "); calls != "login finalize" {
		t.Errorf("the library was called for %q", calls)
	}
}

// A library that hangs is given up at the deadline, or when nobody waits any more.
func TestHangingModule(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	s := newSpied(t, token, token.Key, "hang-at-login")
	canceled, cancel := context.WithCancel(t.Context())
	id := newIdentity(t, s.config, s.path)
	done := make(chan error)
	go func() {
		_, err := id.Unwrap(canceled, []layer.Packet{s.packet})
		done <- err
	}()
	for len(s.calls(t)) == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	s.config.Timeout = timeout
	_, err := newIdentity(t, s.config, s.path).Unwrap(t.Context(), []layer.Packet{s.packet})
	reasonIs(t, "hangs", err, pkcs11.TimedOut)
}

// Where nobody ends it, the helper ends itself.
func TestHelperEnds(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	s := newSpied(t, token, token.Key, "")
	req, err := json.Marshal(tokenproto.Request{
		Version: tokenproto.Version, Operation: tokenproto.Unwrap, Timeout: time.Millisecond, Module: s.module,
		Env: map[string]string{"SOFTHSM2_CONF": token.Conf, "SPY_MODULE": token.Module, "SPY_FAULTS": "hang-at-login"},
		Key: tokenproto.Key{Label: []byte(token.Key.Label)}, PIN: []byte(token.PIN),
		Blobs: []tokenproto.Blob{{Data: make([]byte, 256), Hash: tokenproto.SHA1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.config.Helper)
	cmd.Stdin = bytes.NewReader(req)
	if out, err := cmd.CombinedOutput(); err == nil || ctx.Err() != nil || string(out) != "imgcrypt-pkcs11: it took too long\n" {
		t.Errorf("%s, %v", out, err)
	}
}

// A token that asks for no PIN is given none.
func TestNoLogin(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	key := token.NewKey(t, testsofthsm.Options{})
	key.URI, _, _ = strings.Cut(key.URI, "&pin-value=")
	s := newSpied(t, token, key, "no-login")
	// SoftHSM hides the private key all the same, but the helper has gone as far as looking for it.
	_, err := newIdentity(t, s.config, s.path).Unwrap(t.Context(), []layer.Packet{s.packet})
	reasonIs(t, "no login", err, pkcs11.NoKey)
	if calls := strings.Join(s.calls(t), " "); calls != "finalize" {
		t.Errorf("the library was called for %q", calls)
	}
	// Its public key is there for everybody.
	if p, err := newRecipient(t, s.config, s.path).Wrap(t.Context(), []byte("secret")); err != nil || len(p.Data) == 0 {
		t.Error(err)
	}
}
