package provider

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"
)

// waitDelay is how long the pipes of a command are read on after it has ended or was
// killed: a process that it started may hold them open for ever.
const waitDelay = time.Second

// command is a provider that is started for each question.
type command struct {
	path string
	args []string
}

// ask implements asker.
func (c *command) ask(ctx context.Context, q question) ([]byte, error) {
	request, err := q.marshal()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := &bounded{full: func() { cancel(errTooLong()) }}
	var words excerpt
	cmd := exec.CommandContext(ctx, c.path, c.args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(request), out, &words
	cmd.WaitDelay = waitDelay
	isolate(cmd)
	if err := cmd.Start(); err != nil {
		return nil, away(err)
	}
	err = cmd.Wait()
	data, failed := c.outcome(ctx, q, err, out.data, gist(words.String(), q.hidden()))
	if failed != nil {
		// What it has started may live on, and is still in the group.
		_ = killGroup(cmd.Process)
	}
	return data, failed
}

// outcome judges a command by how it ended and what it wrote.
func (c *command) outcome(ctx context.Context, q question, err error, out []byte, stderr string) ([]byte, error) {
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, note(context.Cause(ctx), stderr)
	case errors.As(err, &exit) && exit.Exited():
		return nil, note(fmt.Errorf("%s exited with status %d", c.path, exit.ExitCode()), stderr)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		// Not wrapped: whoever looks for an exit code in an error wants another one.
		return nil, unreachable(note(fmt.Errorf("%s: %v", c.path, err), stderr))
	}
	// After ErrWaitDelay too: the command has succeeded and left a process behind that
	// has its output open, but what it wrote itself has arrived.
	data, err := q.parse(out)
	if err != nil {
		return nil, unreachable(note(fmt.Errorf("%s: %w", c.path, err), stderr))
	}
	return data, nil
}

func errTooLong() error { return unreachable(fmt.Errorf("its answer is over %d bytes", maxAnswer)) }

// bounded keeps what is written to it, until it is too much.
type bounded struct {
	data []byte
	full func()
}

func (b *bounded) Write(p []byte) (int, error) {
	if len(b.data)+len(p) > maxAnswer {
		b.full()
		return 0, errTooLong()
	}
	b.data = append(b.data, p...)
	return len(p), nil
}

// keptEnds is how much an excerpt keeps of each end, in bytes: far more than is shown,
// so that what has to be hidden is found whole.
const keptEnds = 16 << 10

// excerpt keeps the beginning and the end of what is written to it.
type excerpt struct{ head, tail []byte }

func (e *excerpt) Write(p []byte) (int, error) {
	n := min(len(p), keptEnds-len(e.head))
	e.head = append(e.head, p[:n]...)
	e.tail = append(e.tail, p[n:]...)
	if over := len(e.tail) - keptEnds; over > keptEnds {
		e.tail = append(e.tail[:0], e.tail[over:]...)
	}
	return len(p), nil
}

// String returns what was kept.
func (e *excerpt) String() string {
	return string(e.head) + string(e.tail[max(0, len(e.tail)-keptEnds):])
}
