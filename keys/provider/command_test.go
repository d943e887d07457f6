//go:build unix

package provider_test

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"imgcrypt/internal/testprovider"
	"imgcrypt/keys"
	"imgcrypt/keys/provider"
	"imgcrypt/layer"
)

// shell returns a scheme whose provider "sh" is a script.
func shell(t testing.TB, timeout time.Duration, script string) keys.Scheme {
	t.Helper()
	p := &testprovider.Provider{Name: "sh"}
	p.Entry.Command = &testprovider.EntryCommand{Path: "/bin/sh", Args: []string{"-c", script}}
	return provider.Scheme(provider.Config{File: testprovider.WriteConfig(t, p), Timeout: timeout})
}

func shellPacket() layer.Packet { return layer.Packet{Scheme: "provider.sh", Data: []byte("packet")} }

func TestCommands(t *testing.T) {
	t.Parallel()
	const (
		answer = `echo '{"keyunwrapresults":{"optsdata":"c2VjcmV0"}}'`
		other  = `echo '{"keywrapresults":{"annotation":"c2VjcmV0"}}'`
	)
	for _, c := range []struct {
		name, script string
		secret       string
		says         string
		refused      bool
	}{
		{name: "answers", script: "cat >/dev/null; " + answer, secret: "secret"},
		{name: "reads nothing", script: answer, secret: "secret"},
		{name: "closes its input", script: "exec <&-; " + answer, secret: "secret"},
		{name: "warns and answers", script: "echo warning >&2; " + answer, secret: "secret"},
		{name: "leaves a process behind", script: "sleep 100 & " + answer, secret: "secret"},
		{name: "answers nothing", script: "true", says: "/bin/sh: its answer is not the JSON of the protocol"},
		{name: "answers nothing and leaves a process behind", script: "sleep 100 & ", says: "its answer is not the JSON of the protocol"},
		{name: "explains why it answers nothing", script: "echo sorry >&2", says: "the protocol: sorry"},
		{name: "answers the other question", script: other, says: "there is no secret in its answer"},
		{name: "answers an empty object", script: "echo {}", says: "there is no secret in its answer"},
		{name: "answers null", script: "echo null", says: "there is no secret in its answer"},
		{name: "answers no base64", script: `echo '{"keyunwrapresults":{"optsdata":"canary!"}}'`, says: "not the JSON of the protocol"},
		{name: "answers twice", script: answer + ";" + answer, says: "not the JSON of the protocol"},
		{name: "answers and fails", script: answer + "; exit 3", says: "exited with status 3", refused: true},
		{name: "fails", script: "echo one >&2; printf 'two\\033[2J\\n' >&2; exit 7", says: "/bin/sh exited with status 7: one; two?[2J", refused: true},
		{name: "is killed", script: "kill -9 $$", says: "signal: killed"},
		{name: "does not exist", script: "exec /no/such/program", says: "exited with status 127", refused: true},
		{name: "wants a terminal", script: "cat </dev/tty", says: "exited with status", refused: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			got, err := unwrap(t, shell(t, 20*time.Second, c.script), "sh", shellPacket())
			if time.Since(begin) > 15*time.Second {
				t.Error("it took until the deadline")
			}
			if c.says == "" {
				if err != nil || got != c.secret {
					t.Errorf("%q, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "canary") ||
				errors.Is(err, keys.ErrUnreachable) == c.refused {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// A megabyte of request goes to a command that reads nothing and does not end.
func TestCommandNeverReads(t *testing.T) {
	t.Parallel()
	s := shell(t, 500*time.Millisecond, "echo waiting >&2; sleep 100")
	begin := time.Now()
	_, err := unwrap(t, s, "sh", layer.Packet{Scheme: "provider.sh", Data: make([]byte, layer.MaxPacketSize)})
	if !errors.Is(err, keys.ErrUnreachable) || !strings.Contains(err.Error(), "no answer within 500ms: waiting") {
		t.Errorf("%v", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// All that a command has started ends with it when its time is up.
func TestCommandEndsWithItsChildren(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"waits":        "(sleep 100 & echo $! >>%; wait) & echo $! >>%; echo $$ >>%; wait",
		"has ended":    "(sleep 100 & echo $! >>%; wait) & echo $! >>%; sleep 0.2",
		"has failed":   "sleep 100 & echo $! >>%; echo $$ >>%; exit 1",
		"was killed":   "sleep 100 & echo $! >>%; echo $$ >>%; kill -9 $$",
		"floods":       "sleep 100 & echo $! >>%; echo $$ >>%; cat /dev/zero",
		"deaf to TERM": "trap '' TERM HUP INT; sleep 100 & echo $! >>%; echo $$ >>%; wait",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "pids")
			begin := time.Now()
			if _, err := unwrap(t, shell(t, time.Second, strings.ReplaceAll(script, "%", file)), "sh", shellPacket()); err == nil {
				t.Error("it opens")
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			data, err := os.ReadFile(file)
			if err != nil || len(strings.Fields(string(data))) < 2 {
				t.Fatalf("processes %q, %v", data, err)
			}
			for _, text := range strings.Fields(string(data)) {
				pid, err := strconv.Atoi(text)
				if err != nil {
					t.Fatal(err)
				}
				if !gone(pid) {
					t.Errorf("process %d is still there", pid)
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		})
	}
}

// gone waits for the end of a process, which may not have been reaped.
func gone(pid int) bool {
	for range 100 {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return true
		}
		time.Sleep(20 * time.Millisecond)
	}
	return false
}

// A process that has left the group cannot be killed with it; it does not hold anybody up.
func TestCommandWithStray(t *testing.T) {
	t.Parallel()
	setsid, err := exec.LookPath("setsid")
	if err != nil {
		t.Fatal(err) // part of every Linux distribution
	}
	begin := time.Now()
	_, err = unwrap(t, shell(t, 500*time.Millisecond, setsid+" sleep 10 & sleep 100"), "sh", shellPacket())
	if !errors.Is(err, keys.ErrUnreachable) || time.Since(begin) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
}

// What a command says is in the error, but not what it was told in confidence.
func TestCommandThatTells(t *testing.T) {
	t.Parallel()
	s := shell(t, 20*time.Second, "cat >&2; exit 1")
	r, err := s.Recipient(t.Context(), "sh:canary-parameter", new(keys.Files))
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Wrap(t.Context(), []byte("canary-secret"))
	if err == nil || !strings.Contains(err.Error(), `exited with status 1: {"op":"keywrap"`) {
		t.Fatalf("%v", err)
	}
	for _, canary := range []string{"canary", "Y2FuYXJ5"} {
		if strings.Contains(err.Error(), canary) {
			t.Errorf("%v", err)
		}
	}
}

func TestGist(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 1000) + "é" + strings.Repeat("z", 1000)
	for _, c := range []struct{ text, want string }{
		{"", ""}, {"\n\n", ""}, {"one\r\ntwo\n", "one; two"}, {"\x1b[31mred\x00\xff", "?[31mred??"},
		{"my secret is secret", "my … is …"}, {"in base64 c2VjcmV0!", "in base64 …!"}, {"ab", "ab"},
		{long, strings.Repeat("a", 80) + " … " + strings.Repeat("z", 180)},
		{strings.Repeat("é", 500), strings.Repeat("é", 40) + " … " + strings.Repeat("é", 90)},
	} {
		if got := provider.Gist(c.text, []byte("secret"), []byte("ab")); got != c.want {
			t.Errorf("%q: %q", c.text, got)
		}
	}
}

// A part of what is hidden is found, too, as it is or encoded, wherever it stands in what was encoded with it.
func TestGistHidesParts(t *testing.T) {
	t.Parallel()
	const hidden = "the canary sings of 7 secrets"
	encode := base64.StdEncoding.EncodeToString
	for _, text := range []string{
		hidden[:14], hidden[9:], "x" + hidden + "y", hex.EncodeToString([]byte(hidden[3:20])), strings.ToUpper(hex.EncodeToString([]byte(hidden))),
		encode([]byte(hidden)), encode([]byte(hidden[:20])), encode([]byte("x" + hidden)), encode([]byte("xy" + hidden + "z")), encode([]byte(hidden))[5:25],
		base64.RawURLEncoding.EncodeToString([]byte("??" + hidden)), hidden + hidden,
	} {
		got := provider.Gist("says: "+text+" and more", []byte(hidden))
		for i := range len(text) - 12 {
			if strings.Contains(got, text[i:i+12]) {
				t.Errorf("%q becomes %q", text, got)
				break
			}
		}
		if !strings.HasPrefix(got, "says: ") || !strings.HasSuffix(got, " and more") {
			t.Errorf("%q becomes %q", text, got)
		}
	}
	if got := provider.Gist("the can is empty", []byte(hidden)); got != "the can is empty" {
		t.Errorf("%q", got)
	}
}

// The command is looked for where the environment says, as ocicrypt does.
func TestCommandOnPath(t *testing.T) {
	t.Parallel()
	p := &testprovider.Provider{Name: "p"}
	p.Entry.Command = &testprovider.EntryCommand{Path: "sh", Args: []string{"-c", `echo '{"keyunwrapresults":{"optsdata":"c2VjcmV0"}}'`}}
	packet := layer.Packet{Scheme: "provider.p", Data: []byte("x")}
	if got, err := unwrap(t, scheme(testprovider.WriteConfig(t, p)), "p", packet); err != nil || got != "secret" {
		t.Errorf("%q, %v", got, err)
	}
	p.Entry.Command.Path = "no-such-program-anywhere"
	if _, err := unwrap(t, scheme(testprovider.WriteConfig(t, p)), "p", packet); !errors.Is(err, keys.ErrUnreachable) || !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("%v", err)
	}
}
