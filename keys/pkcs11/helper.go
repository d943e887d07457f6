package pkcs11

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"imgcrypt/internal/tokenproto"
)

// helper is the program that uses tokens.
type helper struct {
	path    string
	timeout time.Duration
}

// Bounds on what is waited for and kept of it.
const (
	// grace is for letting go of the token, after the answer.
	grace = 2 * time.Second
	// maxStderr is what is kept of what it prints, maxGist what of that gets into an error.
	maxStderr = 4 << 10
	maxGist   = 200
)

// find returns the path of the helper.
func (h helper) find() (string, error) {
	name := tokenproto.Program
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	if h.path != "" {
		if path, err := exec.LookPath(h.path); err == nil {
			return path, nil
		}
		return "", &TokenError{Reason: NoHelper, Detail: "looked for at " + h.path}
	}
	beside := "beside the running program"
	if self, err := os.Executable(); err == nil {
		beside = "in " + filepath.Dir(self)
		if path, err := exec.LookPath(filepath.Join(filepath.Dir(self), name)); err == nil {
			return path, nil
		}
	}
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return "", &TokenError{Reason: NoHelper, Detail: "looked for " + beside + " and on PATH"}
}

// ask starts the helper for one operation. If ctx ends before it has answered, the error is that of ctx. Nothing of
// the helper is left when ask returns.
func (h helper) ask(ctx context.Context, req tokenproto.Request) (*tokenproto.Answer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	path, err := h.find()
	if err != nil {
		return nil, err
	}
	req.Version, req.Timeout = tokenproto.Version, h.timeout
	if err := req.Check(); err != nil {
		return nil, &TokenError{Reason: HelperFailed, Detail: "it would be asked for something with " + err.Error()}
	}
	input, err := json.Marshal(req)
	if err != nil {
		return nil, &TokenError{Reason: HelperFailed, Detail: "the request cannot be written"}
	}

	limited, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	cmd := exec.CommandContext(limited, path)
	asGroup(cmd)
	out := &line{enough: func() { time.AfterFunc(grace, cancel) }, tooMuch: cancel}
	errs := &head{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), out, errs
	// What it has started may outlive it, and holds the pipes.
	cmd.WaitDelay = grace
	err = cmd.Run()

	// An answer is one, whatever became of the library afterwards.
	if out.complete() {
		answer, err := parseAnswer(out.data.Bytes())
		if err != nil {
			return nil, &TokenError{Reason: HelperFailed, Detail: path, err: err}
		}
		return answer, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	detail := join(path, errs.gist(req.PIN))
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return nil, &TokenError{Reason: NoHelper, Detail: path}
	case out.full:
		return nil, &TokenError{Reason: HelperFailed, Detail: join(detail, fmt.Sprintf("its answer has more than %d bytes", tokenproto.MaxAnswer))}
	case errors.Is(limited.Err(), context.DeadlineExceeded):
		return nil, &TokenError{Reason: TimedOut, Detail: join(detail, fmt.Sprintf("it was given %v", h.timeout))}
	case err != nil:
		return nil, &TokenError{Reason: HelperFailed, Detail: detail, err: err}
	}
	return nil, &TokenError{Reason: HelperFailed, Detail: join(detail, "it gave no answer")}
}

// parseAnswer never repeats an error of the decoder, which may quote a secret.
func parseAnswer(data []byte) (*tokenproto.Answer, error) {
	var answer tokenproto.Answer
	if json.Unmarshal(data, &answer) != nil {
		return nil, errors.New("its answer is not of the form that it should have")
	}
	if answer.Version != tokenproto.Version {
		return nil, fmt.Errorf("it is of another version than this program (%d, not %d)", answer.Version, tokenproto.Version)
	}
	return &answer, nil
}

// line keeps what is written up to the first line's end.
type line struct {
	data    bytes.Buffer
	full    bool
	enough  func()
	tooMuch func()
}

func (l *line) complete() bool { return !l.full && bytes.HasSuffix(l.data.Bytes(), []byte("\n")) }

func (l *line) Write(p []byte) (int, error) {
	n := len(p)
	if l.full || l.complete() {
		return n, nil
	}
	p, _, ended := bytes.Cut(p, []byte("\n"))
	if l.data.Len()+len(p) > tokenproto.MaxAnswer {
		l.full = true
		l.tooMuch()
		return 0, errors.New("too much")
	}
	l.data.Write(p)
	if ended {
		l.data.WriteByte('\n')
		l.enough()
	}
	return n, nil
}

// head keeps the beginning of what is written.
type head struct{ data []byte }

func (h *head) Write(p []byte) (int, error) {
	h.data = append(h.data, p[:min(len(p), maxStderr-len(h.data))]...)
	return len(p), nil
}

// gist is the beginning as one short line.
func (h *head) gist(pin []byte) string {
	text := quiet(string(h.data), pin)
	if len(text) > maxGist {
		text = strings.ToValidUTF8(text[:maxGist], "") + "…"
	}
	return text
}

// redact takes the PIN out of a text that a vendor's library has written.
func redact(text string, pin []byte) string {
	if len(pin) == 0 {
		return text
	}
	return strings.ReplaceAll(text, string(pin), "…")
}
