// Command demo shows what this project is for, on real components: an image is
// encrypted for a public key, pushed to a registry, pulled by a node that has nothing
// else, refused without the private key, run with it, and decrypted to what it was.
//
// It starts two containerds of its own and a registry on 127.0.0.1, and prints every
// command line that it runs, with what came back. What it makes is below one
// temporary directory, and gone at the end, also after a failure or an interrupt; a
// containerd of the machine is left alone. Where the machine lacks something, it
// says so and shows the rest: without root or containerd it encrypts, sends and
// decrypts the image with this module's library.
//
// `make demo` runs it, after the set-up.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testnode"
)

// Exit codes.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitInterrupted = 130
)

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "usage: demo (it takes no arguments)")
		os.Exit(exitUsage)
	}
	var missing []string
	for _, what := range []string{testenv.SuperUser, testenv.MountNamespace, testenv.Containerd24, "runc"} {
		if err := testenv.Missing(what); err != nil {
			missing = append(missing, err.Error())
		}
	}
	if len(missing) == 0 {
		// This starts the program again, so what is above runs twice.
		if err := testnode.Isolate(); err != nil {
			missing = append(missing, err.Error())
		}
	}
	os.Exit(run(missing, os.Stdout, os.Stderr))
}

// run is the demo. missing are the reasons why there can be no containerd.
func run(missing []string, stdout *os.File, stderr io.Writer) int {
	// A closed pipe and a closed terminal end the demo as an interrupt does: after
	// everything was removed. Nothing ends it faster.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	err := demonstrate(ctx, missing, newScreen(stdout))
	switch {
	case err == nil:
		return exitOK
	case ctx.Err() != nil:
		// What failed, failed because of that; but what could not be removed is told.
		var left *leftError
		if errors.As(err, &left) {
			fmt.Fprintf(stderr, "demo: %v\n", left)
		}
		fmt.Fprintln(stderr, "demo: interrupted")
		return exitInterrupted
	}
	fmt.Fprintf(stderr, "demo: error: %v\n", err)
	return exitFailure
}

// leftError says that something of the demo is still there.
type leftError struct{ err error }

func (e *leftError) Error() string { return "could not remove everything: " + e.err.Error() }

func (e *leftError) Unwrap() error { return e.err }

func demonstrate(ctx context.Context, missing []string, s *screen) (err error) {
	dir, err := os.MkdirTemp("", "imgcrypt-demo-")
	if err != nil {
		return err
	}
	defer func() {
		if left := os.RemoveAll(dir); left != nil {
			err = errors.Join(err, &leftError{left})
		}
	}()
	// What the nodes and the compiler need for a while goes there too.
	if err := os.Setenv("TMPDIR", dir); err != nil {
		return err
	}
	sh := &shell{screen: s, dir: dir}
	sh.title("imgcrypt: an image that only the holders of a key can run")
	sh.say("Everything here is below %s and goes away at the end.", dir)
	if len(missing) == 0 {
		return withContainerd(ctx, sh)
	}
	for _, why := range missing {
		sh.warn("%s", why)
	}
	sh.warn("so there is no containerd and no container: this is the library alone, on OCI layouts")
	return withLibrary(ctx, sh)
}
