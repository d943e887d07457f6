package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/tokenproto"
)

type result struct {
	code           int
	stdout, stderr string
}

func run(t *testing.T, program, stdin string, args ...string) result {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func request(t *testing.T, change func(*tokenproto.Request)) string {
	t.Helper()
	req := tokenproto.Request{
		Version: tokenproto.Version, Operation: tokenproto.Unwrap, Timeout: time.Minute, Module: "/no/such/module.so",
		Env: map[string]string{"A": "canary-env"}, Key: tokenproto.Key{Label: []byte("o")}, PIN: []byte("canary-pin"),
		Blobs: []tokenproto.Blob{{Data: []byte("x"), Hash: tokenproto.SHA1}},
	}
	change(&req)
	data, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// What is no request gets no answer and one line, in which nothing of it is repeated.
func TestRefused(t *testing.T) {
	t.Parallel()
	testenv.Need(t, testenv.Cgo)
	program := testenv.Build(t, testenv.TokenHelper)
	valid := request(t, func(*tokenproto.Request) {})
	cases := map[string]struct {
		stdin, stderr string
	}{
		"nothing":      {"", "standard input is no request"},
		"text":         {"canary", "standard input is no request"},
		"wrong type":   {`{"pin":{"canary":1}}`, "standard input is no request"},
		"more":         {valid + valid, "standard input is no request"},
		"too much":     {strings.Repeat(" ", tokenproto.MaxRequest) + valid, "more than 8388608 bytes"},
		"version":      {request(t, func(r *tokenproto.Request) { r.Version = 2 }), "version 2, and 1 is known"},
		"operation":    {request(t, func(r *tokenproto.Request) { r.Operation = "canary" }), "no known operation"},
		"no timeout":   {request(t, func(r *tokenproto.Request) { r.Timeout = 0 }), "timeout out of range"},
		"long timeout": {request(t, func(r *tokenproto.Request) { r.Timeout = 1 << 60 }), "timeout out of range"},
		"relative":     {request(t, func(r *tokenproto.Request) { r.Module = "canary.so" }), "no absolute path"},
		"zero byte":    {request(t, func(r *tokenproto.Request) { r.Module = "/canary\x00.so" }), "no absolute path"},
		"no key":       {request(t, func(r *tokenproto.Request) { r.Key = tokenproto.Key{} }), "no key is named"},
		"no blobs":     {request(t, func(r *tokenproto.Request) { r.Blobs = nil }), "nothing to unwrap"},
		"many blobs":   {request(t, func(r *tokenproto.Request) { r.Blobs = make([]tokenproto.Blob, 2000) }), "more than 1024 blobs"},
		"hash":         {request(t, func(r *tokenproto.Request) { r.Blobs[0].Hash = "canary" }), "unknown hash"},
		"long blob":    {request(t, func(r *tokenproto.Request) { r.Blobs[0].Data = make([]byte, 4000) }), "wrong size"},
		"variable":     {request(t, func(r *tokenproto.Request) { r.Env["canary=x"] = "" }), "cannot be set"},
	}
	for name, c := range cases {
		got := run(t, program, c.stdin)
		if got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, c.stderr) || strings.Count(got.stderr, "\n") != 1 || strings.Contains(got.stderr, "canary") {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// A failure is an answer, too.
func TestAnswer(t *testing.T) {
	t.Parallel()
	testenv.Need(t, testenv.Cgo)
	got := run(t, testenv.Build(t, testenv.TokenHelper), request(t, func(*tokenproto.Request) {}))
	var answer tokenproto.Answer
	if err := json.Unmarshal([]byte(got.stdout), &answer); err != nil || got.code != 0 || got.stderr != "" || !strings.HasSuffix(got.stdout, "}\n") {
		t.Errorf("%+v, %v", got, err)
	}
	if answer.Version != tokenproto.Version || answer.Reason != tokenproto.ModuleFailed || strings.Contains(got.stdout, "canary") {
		t.Errorf("%+v", answer)
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	testenv.Need(t, testenv.Cgo)
	program := testenv.Build(t, testenv.TokenHelper)
	if got := run(t, program, "", "--version"); got.code != 0 || !strings.HasPrefix(got.stdout, "imgcrypt-pkcs11 ") || got.stderr != "" {
		t.Errorf("%+v", got)
	}
	if got := run(t, program, "", "--pin"); got.code != 2 || got.stdout != "" || !strings.Contains(got.stderr, "no arguments") {
		t.Errorf("%+v", got)
	}
}

// It can be built without cgo, as `go build ./...` may do, and then says so.
func TestWithoutCgo(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "imgcrypt-pkcs11")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := run(t, program, request(t, func(*tokenproto.Request) {}))
	if got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, "built without cgo") {
		t.Errorf("%+v", got)
	}
}
