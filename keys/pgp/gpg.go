package pgp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"imgcrypt/internal/oneline"
	"imgcrypt/keys"
)

const (
	// defaultTimeout bounds a run of gpg that asks nobody.
	defaultTimeout = 30 * time.Second
	// patience is how many times as long a run may take that asks the user.
	patience = 4
	// maxListing bounds what gpg prints of a keyring, in bytes. Ten thousand keys
	// take about ten million.
	maxListing = 64 << 20
	// maxExport bounds exported keys, in bytes.
	maxExport = 16 << 20
	// maxMessages bounds what gpg prints on standard error, in bytes.
	maxMessages = 64 << 10
	// stragglers is the time that is left to whatever holds gpg's output open after
	// gpg has ended.
	stragglers = 2 * time.Second
)

// gpg is the user's GnuPG. It is looked for when it is first needed.
type gpg struct {
	config Config

	mu    sync.Mutex
	found program
}

// program is a gpg and the first number of its version.
type program struct {
	path  string
	major byte
}

// call is one run of gpg.
type call struct {
	args  []string
	stdin []byte
	// limit bounds its standard output, in bytes.
	limit int
	// asks is set where the user may be asked for a passphrase.
	asks bool
}

// result is how a run of gpg ended.
type result struct {
	stdout []byte
	// status are the lines that are for programs, messages those that are for people.
	status, messages []string
	code             int
}

var (
	errHung    = errors.New("it did not end")
	errFlooded = errors.New("it printed too much")
)

func unreachable(err error) error { return fmt.Errorf("gpg %w: %w", keys.ErrUnreachable, err) }

// program finds the gpg that the configuration asks for.
func (g *gpg) program(ctx context.Context) (program, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.found.path != "" {
		return g.found, nil
	}
	var want byte
	var candidates []string
	switch g.config.Version {
	case "":
		candidates = []string{"gpg2", "gpg", "gpg1"}
	case "v1":
		want, candidates = '1', []string{"gpg1", "gpg"}
	case "v2":
		want, candidates = '2', []string{"gpg2", "gpg"}
	default:
		return program{}, fmt.Errorf("gpg version %.20q is neither v1 nor v2", g.config.Version)
	}
	if g.config.Program != "" {
		candidates = []string{g.config.Program}
	}
	failed := fmt.Errorf("it is not installed (no %s is found)", strings.Join(candidates, ", "))
	for _, name := range candidates {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		major, err := g.major(ctx, path)
		if ctx.Err() != nil {
			return program{}, ctx.Err()
		}
		if err != nil {
			failed = fmt.Errorf("%s: %w", path, err)
			continue
		}
		if want != 0 && major != want {
			failed = fmt.Errorf("%s is of version %c, and version %c is asked for", path, major, want)
			continue
		}
		g.found = program{path: path, major: major}
		return g.found, nil
	}
	return program{}, unreachable(failed)
}

// major asks a gpg for its version: "gpg (GnuPG) 2.2.40".
func (g *gpg) major(ctx context.Context, path string) (byte, error) {
	res, err := g.start(ctx, program{path: path}, call{args: []string{"--version"}, limit: 64 << 10})
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(res.stdout), "\n")
	words := strings.Fields(line)
	if res.code != 0 || len(words) < 2 {
		return 0, errors.New("it does not tell its version")
	}
	switch major := words[len(words)-1][0]; major {
	case '1', '2', '3':
		return major, nil
	}
	return 0, errors.New("it is of a version that is not known")
}

// run runs gpg. An exit code other than 0 is not an error here; that it cannot be run,
// does not end or prints too much is one, which wraps [keys.ErrUnreachable].
func (g *gpg) run(ctx context.Context, c call) (result, error) {
	p, err := g.program(ctx)
	if err != nil {
		return result{}, err
	}
	if g.config.Homedir != "" {
		// In one word, so that no directory is taken for an option.
		c.args = append([]string{"--homedir=" + g.config.Homedir}, c.args...)
	}
	res, err := g.start(ctx, p, c)
	if err != nil && ctx.Err() == nil {
		err = unreachable(err)
	}
	return res, err
}

func (g *gpg) start(parent context.Context, p program, c call) (result, error) {
	timeout := g.config.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	if c.asks {
		timeout *= patience
	}
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	ctx, stop := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w within %v", errHung, timeout))
	defer stop()

	stdout := &capture{limit: c.limit, full: func() { cancel(fmt.Errorf("%w (over %d bytes)", errFlooded, c.limit)) }}
	stderr := &capture{limit: maxMessages}
	cmd := exec.CommandContext(ctx, p.path, c.args...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = stdout, stderr, stragglers
	if c.stdin != nil {
		cmd.Stdin = bytes.NewReader(c.stdin)
	}
	// gpg has to be told where the user's agent, display and home are, so it gets the
	// environment of this process.
	cmd.Env = cmd.Environ()
	if c.asks && g.config.TTY != "" {
		cmd.Env = append(cmd.Env, "GPG_TTY="+g.config.TTY)
	}
	if !c.asks {
		// Where somebody may be asked, it is in his language.
		cmd.Env = append(cmd.Env, "LC_ALL=C")
	}
	// The gpg of version 1 itself reads the passphrase from the terminal, which a
	// process in another group than the terminal's must not do.
	if !c.asks || p.major != '1' {
		ownGroup(cmd)
	}
	err := cmd.Run()
	res := result{stdout: stdout.data}
	res.status, res.messages = split(stderr.data)
	var exit *exec.ExitError
	switch {
	case parent.Err() != nil:
		return result{}, parent.Err()
	case ctx.Err() != nil:
		return result{}, context.Cause(ctx)
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		res.code = exit.ExitCode()
		return res, nil
	case err != nil:
		return result{}, err
	}
	return res, nil
}

// capture keeps what is written to it, up to a limit. What is beyond is dropped, and
// full called if it is set.
type capture struct {
	data  []byte
	limit int
	full  func()
}

func (c *capture) Write(p []byte) (int, error) {
	room := min(len(p), c.limit-len(c.data))
	c.data = append(c.data, p[:room]...)
	if room < len(p) && c.full != nil {
		c.full()
		return room, errFlooded
	}
	return len(p), nil
}

// statusMark begins the lines that gpg writes for programs (GnuPG's doc/DETAILS).
const statusMark = "[GNUPG:] "

func split(stderr []byte) (status, messages []string) {
	for line := range strings.Lines(string(stderr)) {
		line = strings.TrimSpace(line)
		if text, ok := strings.CutPrefix(line, statusMark); ok {
			status = append(status, text)
		} else if line != "" {
			messages = append(messages, line)
		}
	}
	return status, messages
}

// has says whether gpg reported a status: a keyword, and perhaps words after it.
func (r result) has(words ...string) bool {
	return slices.ContainsFunc(r.status, func(line string) bool {
		got := strings.Fields(line)
		return len(got) >= len(words) && slices.Equal(got[:len(words)], words)
	})
}

// gist is what gpg said last, for an error.
func (r result) gist() string {
	const lines, size = 3, 300
	last := r.messages[max(0, len(r.messages)-lines):]
	text := oneline.Of(strings.ToValidUTF8(strings.Join(last, "\n"), "?"))
	if len(text) > size {
		text = strings.ToValidUTF8(text[:size], "") + "…"
	}
	if text == "" {
		return fmt.Sprintf("it ended with code %d and said nothing", r.code)
	}
	return text
}
