package pkcs11_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"imgcrypt/internal/tokenproto"
	"imgcrypt/keys"
	"imgcrypt/keys/pkcs11"
	"imgcrypt/layer"
)

// timeout is long enough for a process to start on a machine that is busy.
const timeout = 4 * time.Second

// TestMain makes the test's program a helper with some fault, where it was started by that name.
func TestMain(m *testing.M) {
	if fake, ok := strings.CutPrefix(filepath.Base(os.Args[0]), "fake-"); ok {
		os.Exit(runFake(fake))
	}
	var err error
	if scratch, err = os.MkdirTemp("", "pkcs11-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(scratch)
	os.Exit(code)
}

// scratch is a directory for what all tests need.
var scratch string

// runFake is a helper that leaves a record of how it was started beside itself.
func runFake(name string) int {
	input, err := io.ReadAll(os.Stdin)
	var req tokenproto.Request
	if err != nil || json.Unmarshal(input, &req) != nil || req.Check() != nil {
		return 9
	}
	record, err := os.OpenFile(filepath.Join(filepath.Dir(os.Args[0]), "record"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 9
	}
	environment, _ := os.ReadFile("/proc/self/environ")
	fmt.Fprintf(record, "%d %q %q\n", os.Getpid(), os.Args[1:], environment)
	answer := func(a tokenproto.Answer) {
		a.Version = tokenproto.Version
		line, _ := json.Marshal(a)
		os.Stdout.Write(append(line, '\n'))
	}
	switch name {
	case "hang", "hang-after-answer":
		// Its child has the pipes, too.
		child := exec.Command("sleep", "1000")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if child.Start() != nil {
			return 9
		}
		fmt.Fprintf(record, "%d child\n", child.Process.Pid)
		if name == "hang-after-answer" {
			answer(tokenproto.Answer{Secret: []byte("secret")})
		}
		select {}
	case "child":
		child := exec.Command("sleep", "1000")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if child.Start() != nil {
			return 9
		}
		fmt.Fprintf(record, "%d child\n", child.Process.Pid)
	case "crash":
		fmt.Fprintf(os.Stderr, "about to crash with %s\nand \x1b[2J more\n", req.PIN)
		syscall.Kill(os.Getpid(), syscall.SIGSEGV)
		select {}
	case "crash-after-answer":
		answer(tokenproto.Answer{Secret: []byte("secret")})
		syscall.Kill(os.Getpid(), syscall.SIGSEGV)
		select {}
	case "fail":
		return 3
	case "gigabyte":
		zeros := bytes.Repeat([]byte("0"), 1<<20)
		for range 1 << 10 {
			if _, err := os.Stdout.Write(zeros); err != nil {
				return 1
			}
		}
	case "gigabyte-stderr":
		zeros := bytes.Repeat([]byte("0"), 1<<20)
		for range 1 << 10 {
			os.Stderr.Write(zeros)
		}
		return 1
	case "nothing":
	case "text":
		fmt.Println("Hello", string(req.PIN))
	case "array":
		fmt.Println("[]")
	case "half":
		fmt.Print(`{"version":1,"secret":"c2VjcmV0"}`)
	case "version":
		fmt.Println(`{"version":2,"secret":"c2VjcmV0"}`)
	case "reason":
		fmt.Println(`{"version":1,"reason":"bad-luck","detail":"\u001b[2J` + string(req.PIN) + `"}`)
	case "key":
		answer(tokenproto.Answer{Modulus: bytes.Repeat([]byte{0xff}, 2048), Exponent: []byte{1, 0, 0, 0, 0, 1}, Reason: tokenproto.NoMatch})
	case "pin":
		answer(tokenproto.Answer{Reason: tokenproto.PINWrong})
	}
	return 0
}

// fake is a configuration with a helper that has a fault, and a key file whose module need not be one.
type fake struct {
	config pkcs11.Config
	path   string
	packet layer.Packet
}

const pin = "canary-pin-24680"

func newFake(t testing.TB, name string) fake {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// A link, because a file that was written cannot be run while another test's child still has it open.
	helper := filepath.Join(dir, "fake-"+name)
	if err := os.Symlink(self, helper); err != nil {
		t.Fatal(err)
	}
	f := fake{path: filepath.Join(dir, "key.yaml"), packet: layer.Packet{Scheme: "pkcs11", Data: []byte(`{"recipients":[{"blob":"AAAA"}]}`)}}
	f.config = pkcs11.Config{File: filepath.Join(dir, "ocicrypt.conf"), Helper: helper, Timeout: timeout}
	for path, text := range map[string]string{
		f.config.File:                   "pkcs11: {allowed-module-paths: [" + dir + "/]}\n",
		f.path:                          "pkcs11: {uri: 'pkcs11:token=t;object=o?module-path=" + dir + "/module.so&pin-value=" + pin + "'}\nmodule: {env: {CANARY: canary-env}}\n",
		filepath.Join(dir, "module.so"): "",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f fake) record(t testing.TB) string {
	t.Helper()
	return string(read(t, filepath.Join(filepath.Dir(f.config.Helper), "record")))
}

// gone waits until none of the processes that the record has is there.
func (f fake) gone(t testing.TB) {
	t.Helper()
	lines := bufio.NewScanner(strings.NewReader(f.record(t)))
	for lines.Scan() {
		pid, err := strconv.Atoi(strings.Fields(lines.Text())[0])
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			// Of the killed child of a killed process somebody else reads the status.
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil || bytes.Contains(status, []byte("State:\tZ")) {
				pid = 0
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if pid != 0 {
			t.Errorf("process %d is still there", pid)
		}
	}
}

// Whatever a helper does, there is an answer or an error of its kind, in time, with nothing secret in it, and
// nothing of it is left. No argument and no environment variable of it has a secret.
func TestFaultyHelpers(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name string
		want pkcs11.Reason
		says string
	}{
		{"hang", pkcs11.TimedOut, "it was given 4s"},
		{"hang-after-answer", "", ""},
		{"crash", pkcs11.HelperFailed, "about to crash with …; and ?[2J more; SIGSEGV"},
		{"crash-after-answer", "", ""},
		{"fail", pkcs11.HelperFailed, "exit status 3"},
		{"gigabyte", pkcs11.HelperFailed, "more than 1048576 bytes"},
		{"gigabyte-stderr", pkcs11.HelperFailed, "0000…: exit status 1"},
		{"nothing", pkcs11.HelperFailed, "it gave no answer"},
		{"half", pkcs11.HelperFailed, "it gave no answer"},
		{"text", pkcs11.HelperFailed, "not of the form"},
		{"array", pkcs11.HelperFailed, "not of the form"},
		{"version", pkcs11.HelperFailed, "another version"},
		{"reason", pkcs11.HelperFailed, "?[2J…"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, tc.name)
			start := time.Now()
			secret, err := newIdentity(t, f.config, f.path).Unwrap(t.Context(), []layer.Packet{f.packet})
			if took := time.Since(start); took > 4*timeout {
				t.Errorf("it took %v", took)
			}
			if tc.want == "" {
				if err != nil || string(secret) != "secret" {
					t.Errorf("%q, %v", secret, err)
				}
			} else {
				reasonIs(t, tc.name, err, tc.want)
				if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "canary") {
					t.Errorf("%v does not say %q, or too much", err, tc.says)
				}
			}
			f.gone(t)
			if record := f.record(t); strings.Contains(record, "canary") || !strings.Contains(record, " [] ") {
				t.Errorf("started as %s", record)
			}
		})
	}
}

// What outlives a helper and holds its pipes costs a moment only.
func TestHelperLeavesChild(t *testing.T) {
	t.Parallel()
	f := newFake(t, "child")
	_, err := newIdentity(t, f.config, f.path).Unwrap(t.Context(), []layer.Packet{f.packet})
	reasonIs(t, "child", err, pkcs11.HelperFailed)
	for line := range strings.Lines(f.record(t)) {
		if fields := strings.Fields(line); fields[1] == "child" {
			pid, _ := strconv.Atoi(fields[0])
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// A wrong PIN is asked about once by who uses the token in every way.
func TestRefusedPIN(t *testing.T) {
	t.Parallel()
	f := newFake(t, "pin")
	id, r := newIdentity(t, f.config, f.path), newRecipient(t, f.config, f.path)
	for range 3 {
		_, err := id.Unwrap(t.Context(), []layer.Packet{f.packet})
		reasonIs(t, "unwrap", err, pkcs11.PINWrong)
		if r.(keys.Owner).Owns(layer.Packet{Scheme: "pkcs11", Data: []byte(`{"recipients":[{"kid":"x"}]}`)}) {
			t.Error("owns what it cannot know")
		}
		_, err = r.Wrap(t.Context(), []byte("x"))
		reasonIs(t, "wrap", err, pkcs11.PINWrong)
	}
	if n := strings.Count(f.record(t), "\n"); n != 2 {
		t.Errorf("%d operations for an identity and a recipient", n)
	}
}

// A public key that nobody can calculate with is an error.
func TestImpossibleKey(t *testing.T) {
	t.Parallel()
	f := newFake(t, "key")
	_, err := newRecipient(t, f.config, f.path).Wrap(t.Context(), []byte("x"))
	reasonIs(t, "exponent", err, pkcs11.UnfitKey)
}

// Whoever does not wait any more gets his own error, and the helper ends.
func TestCanceled(t *testing.T) {
	t.Parallel()
	f := newFake(t, "hang")
	f.config.Timeout = time.Hour
	id := newIdentity(t, f.config, f.path)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	if _, err := id.Unwrap(ctx, []layer.Packet{f.packet}); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, keys.ErrUnreachable) {
		t.Error(err)
	}
	f.gone(t)
	// Who waits for his turn only, too.
	if _, err := id.Unwrap(ctx, []layer.Packet{f.packet}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// Without the helper one line names it, and images without such packets need none.
func TestNoHelper(t *testing.T) {
	t.Parallel()
	f := newFake(t, "nothing")
	f.config.Helper = filepath.Join(t.TempDir(), "imgcrypt-pkcs11")
	id := newIdentity(t, f.config, f.path)
	_, err := id.Unwrap(t.Context(), []layer.Packet{f.packet})
	reasonIs(t, "no helper", err, pkcs11.NoHelper)
	if err == nil || !strings.Contains(err.Error(), "imgcrypt-pkcs11") || !strings.Contains(err.Error(), "looked for at "+f.config.Helper) {
		t.Error(err)
	}
	if _, err := id.Unwrap(t.Context(), []layer.Packet{{Scheme: "jwe", Data: []byte("x")}}); !errors.Is(err, keys.ErrNoMatch) {
		t.Errorf("other packets: %v", err)
	}
	r := newRecipient(t, f.config, f.path)
	if r.(keys.Owner).Owns(f.packet) {
		t.Error("owns what it cannot know")
	}
}

// Without a path it is looked for beside the program and on PATH. This one changes PATH.
func TestLookingForHelper(t *testing.T) {
	f := newFake(t, "nothing")
	t.Setenv("PATH", t.TempDir())
	helper := f.config.Helper
	f.config.Helper = ""
	_, err := newIdentity(t, f.config, f.path).Unwrap(t.Context(), []layer.Packet{f.packet})
	reasonIs(t, "nowhere", err, pkcs11.NoHelper)
	self, _ := os.Executable()
	if err == nil || !strings.Contains(err.Error(), "looked for in "+filepath.Dir(self)+" and on PATH") {
		t.Error(err)
	}
	// There it is, and says that it was started by the wrong name, as a test would.
	t.Setenv("PATH", filepath.Dir(helper))
	if err := os.Symlink("/bin/false", filepath.Join(filepath.Dir(helper), "imgcrypt-pkcs11")); err != nil {
		t.Fatal(err)
	}
	_, err = newIdentity(t, f.config, f.path).Unwrap(t.Context(), []layer.Packet{f.packet})
	reasonIs(t, "on PATH", err, pkcs11.HelperFailed)
}
