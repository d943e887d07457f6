package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// commandTimeout ends a command that hangs. It is far more than any takes.
const commandTimeout = 2 * time.Minute

// screen prints what the demo says and does.
type screen struct {
	w     io.Writer
	color bool
}

func newScreen(f *os.File) *screen {
	info, err := f.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return &screen{w: f, color: terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// The colours of a terminal.
const (
	bold   = "1"
	dim    = "2"
	yellow = "33"
)

func (s *screen) print(style, text string) {
	if s.color {
		text = "\x1b[" + style + "m" + text + "\x1b[0m"
	}
	// Where nobody reads any more, a signal comes too.
	fmt.Fprintln(s.w, text)
}

// title begins a part.
func (s *screen) title(format string, args ...any) {
	s.print(bold, "\n== "+fmt.Sprintf(format, args...))
}

// say explains.
func (s *screen) say(format string, args ...any) {
	fmt.Fprintln(s.w, "# "+fmt.Sprintf(format, args...))
}

// warn says what the machine lacks.
func (s *screen) warn(format string, args ...any) {
	s.print(yellow, "! "+fmt.Sprintf(format, args...))
}

// shell runs command lines as a user would type them.
type shell struct {
	*screen
	dir string
	env []string
}

// export sets variables for the commands that follow.
func (sh *shell) export(vars ...string) {
	sh.print(bold, "$ export "+strings.Join(vars, " "))
	sh.env = append(sh.env, vars...)
}

// ok runs a line that has to succeed, and returns its output.
func (sh *shell) ok(ctx context.Context, line string) (string, error) {
	out, code, err := sh.run(ctx, line)
	if err == nil && code != 0 {
		err = fmt.Errorf("%q failed", line)
	}
	return out, err
}

// refused runs a line that has to fail and to say want.
func (sh *shell) refused(ctx context.Context, line, want string) error {
	out, code, err := sh.run(ctx, line)
	if err != nil {
		return err
	}
	if code == 0 || !strings.Contains(out, want) {
		return fmt.Errorf("%q was to fail and to say %q", line, want)
	}
	sh.print(dim, fmt.Sprintf("[exit code %d]", code))
	return nil
}

// run runs a line and prints it and its output.
func (sh *shell) run(ctx context.Context, line string) (out string, code int, err error) {
	sh.print(bold, "$ "+line)
	out, code, err = sh.capture(ctx, line)
	// ctr may lose the output of a container that ends at once, on a busy machine.
	for try := 1; try < 3 && strings.HasPrefix(line, "ctr-enc run --rm") && out == "" && code == 0 && err == nil; try++ {
		out, code, err = sh.capture(ctx, line)
	}
	out = digestible(out)
	if out != "" {
		fmt.Fprintln(sh.w, out)
	}
	return out, code, err
}

// capture runs a line. An error means that the line did not come to its end.
func (sh *shell) capture(ctx context.Context, line string) (out string, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Dir = sh.dir
	// What gzip says is looked at.
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), sh.env...)
	// A group of its own, so that all of it can be ended, and not by the terminal
	// before what it works with.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	data, err := cmd.CombinedOutput()
	if cmd.Process != nil {
		// Mostly there is nobody left in it.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("%q: %w", line, ctx.Err())
	case errors.As(err, &exit) && exit.Exited():
		return string(data), exit.ExitCode(), nil
	}
	return string(data), 0, err
}

var escape = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")

// digestible leaves of ctr's progress, which it prints again and again with bars for
// each blob, what it was about and how it ended.
func digestible(out string) string {
	lines := strings.Split(strings.Trim(escape.ReplaceAllString(out, ""), "\n"), "\n")
	first, _, _ := strings.Cut(lines[0], " ")
	start := 0
	for i, line := range lines {
		if strings.Contains(line, "\t") && first != "" && strings.HasPrefix(line, first+" ") {
			start = i
		}
	}
	var kept []string
	for _, line := range lines[start:] {
		if !strings.HasPrefix(strings.TrimSpace(line), "└──") && !strings.HasPrefix(strings.TrimSpace(line), "├──") {
			kept = append(kept, strings.TrimRight(strings.ReplaceAll(line, "\t", " "), " "))
		}
	}
	return strings.Join(kept, "\n")
}
