package testnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// clientTimeout ends a client that hangs. It is far more than any command takes.
const clientTimeout = 3 * time.Minute

// Result is what a client command came to.
type Result struct {
	// Command is the command line: the program's base name and its arguments.
	Command []string
	// Stdout and Stderr are the whole output.
	Stdout, Stderr string
	// Code is the exit code; -1 where Err is set.
	Code int
	// Err tells why there is no exit code: not started, or killed because it did not end in time.
	Err error
}

// Env returns the variables that point containerd's clients to the node: its socket, namespace and snapshotter.
// They also silence what ctr says about the age of the machine's cgroups, so that standard error is the command's.
func (n *Node) Env() []string {
	return []string{
		"CONTAINERD_ADDRESS=" + n.Address(),
		"CONTAINERD_NAMESPACE=" + n.Namespace(),
		"CONTAINERD_SNAPSHOTTER=" + n.snapshotter,
		"CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1",
	}
}

// Ctr runs the configured ctr with the node's environment.
func (n *Node) Ctr(args ...string) Result {
	return n.Exec(context.Background(), n.cfg.CtrPath, args...)
}

// Exec runs another client, ctr-enc say, with the node's environment. Standard input is empty.
func (n *Node) Exec(ctx context.Context, program string, args ...string) Result {
	return n.ExecEnv(ctx, nil, program, args...)
}

// ExecEnv is Exec with more variables, "NAME=value", in the environment.
func (n *Node) ExecEnv(ctx context.Context, env []string, program string, args ...string) Result {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	for try := 1; ; try++ {
		cmd := n.Command(ctx, program, args...)
		cmd.Env = append(cmd.Env, env...)
		if r := Capture(cmd); try == 3 || !outputLost(args, r) {
			return r
		}
	}
}

// outputLost says whether a container that is removed again has run and printed nothing. On a busy machine ctr, and all
// that is made of it, can lose the output of a container that ends at once: containerd's client cancels the
// opening of the FIFOs when it deletes the task, also where they are open but the client has not noticed yet.
func outputLost(args []string, r Result) bool {
	return len(args) > 0 && args[0] == "run" && slices.Contains(args, "--rm") && r.Code == 0 && r.Stdout == "" && r.Stderr == ""
}

// Command prepares a client with the node's environment for callers that have to set more. Its home directory is the
// node's, and nothing in its environment leads to keys and configurations of whoever runs the tests.
func (n *Node) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), isPersonal), n.Env()...)
	cmd.Env = append(cmd.Env, "HOME="+n.dir)
	// A killed client's children may hold its output open.
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// isPersonal says whether a variable leads to keys or to configurations about keys.
func isPersonal(variable string) bool {
	for _, prefix := range []string{"GNUPGHOME=", "GPG_", "XDG_CONFIG_HOME=", "OCICRYPT_", "IMGCRYPT_KEYPROVIDER_", "SOFTHSM2_CONF="} {
		if strings.HasPrefix(variable, prefix) {
			return true
		}
	}
	return false
}

// Capture runs a command to its end and keeps its output.
func Capture(cmd *exec.Cmd) Result {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := Result{
		Command: append([]string{filepath.Base(cmd.Path)}, cmd.Args[1:]...),
		Stdout:  stdout.String(),
		Stderr:  stderr.String(),
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		r.Code = exit.ExitCode()
	case err != nil:
		r.Code, r.Err = -1, err
	}
	return r
}

// OK fails the test unless the command succeeded.
func (r Result) OK(t testing.TB) Result {
	t.Helper()
	if r.Code != 0 {
		t.Fatalf("failed:\n%s", r)
	}
	return r
}

// Fails fails the test unless the command ended with an exit code other than 0.
func (r Result) Fails(t testing.TB) Result {
	t.Helper()
	if r.Code <= 0 {
		t.Fatalf("did not fail as it should:\n%s", r)
	}
	return r
}

// String renders the command, its output and its exit code as a terminal would show them.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "$ %s\n%s%s", strings.Join(r.Command, " "), r.Stdout, r.Stderr)
	if r.Err != nil {
		fmt.Fprintf(&b, "[%v]", r.Err)
	} else {
		fmt.Fprintf(&b, "[exit %d]", r.Code)
	}
	return b.String()
}
