// Command imgcrypt encrypts container images where they live: in registries, OCI
// layouts, archives and containerds. It needs neither a daemon nor root.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v3"

	"imgcrypt/internal/clikeys"
	"imgcrypt/internal/version"
	"imgcrypt/keys"
	"imgcrypt/layer"
)

const name = "imgcrypt"

// Exit codes.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitNoKey       = 10
	exitTampered    = 11
	exitNothing     = 12
	exitInterrupted = 130
)

func main() {
	os.Exit(run(os.Args, os.Stdin, os.Stdout, os.Stderr))
}

var (
	// errUsage is wrapped by errors about the command line.
	errUsage = errors.New("usage")
	// errNothing means that there was nothing to decrypt.
	errNothing = errors.New("nothing to decrypt")
)

// usageError is one about the command line.
type usageError struct{ error }

func (usageError) Is(target error) bool { return target == errUsage }

// run runs a command line and returns the exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The second interrupt ends the process.
	context.AfterFunc(ctx, stop)
	cmd := tree()
	cmd.Reader, cmd.Writer, cmd.ErrWriter = stdin, stdout, stderr
	err := cmd.Run(ctx, args)
	if err == nil {
		return exitOK
	}
	if ctx.Err() != nil {
		err = errors.New("interrupted")
		clikeys.Report(stderr, name+": error", err)
		return exitInterrupted
	}
	clikeys.Report(stderr, name+": error", err)
	if hint := hintFor(err); hint != "" {
		clikeys.Report(stderr, name+": hint", errors.New(hint))
	}
	return exitCode(err)
}

func exitCode(err error) int {
	switch {
	case errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, layer.ErrTampered):
		return exitTampered
	case errors.Is(err, keys.ErrNoKey):
		return exitNoKey
	case errors.Is(err, errNothing):
		return exitNothing
	}
	return exitFailure
}

// tree returns the commands.
func tree() *cli.Command {
	root := &cli.Command{
		Name:    name,
		Usage:   "encrypted container images, without a daemon",
		Version: version.String(),
		Description: `An IMAGE is written as where it lives:
  [docker://]HOST/REPO[:TAG|@DIGEST]   in a registry
  oci:DIR[:NAME]                       in an OCI layout
  oci-archive:FILE[:NAME]              in a tar of an OCI layout
  docker-archive:FILE[:NAME]           in what "docker save" writes
  containerd:NAME                      in a containerd

Exit codes: 0 done, 1 failed, 2 wrong usage, 10 no key opens it, 11 tampered,
12 nothing to decrypt, 130 interrupted.`,
		EnableShellCompletion: true,
		// Errors become an exit code in run, and nowhere else.
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
		OnUsageError:   func(_ context.Context, _ *cli.Command, err error, _ bool) error { return usageError{err} },
		Flags:          placeFlags(),
		Commands: []*cli.Command{
			encryptCommand(), decryptCommand(), inspectCommand(), verifyCommand(), recipientsCommand(), keygenCommand(),
		},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.NArg() > 0 {
				return usageError{errors.New("there is no command " + cmd.Args().First())}
			}
			return cli.ShowRootCommandHelp(cmd)
		},
	}
	for _, cmd := range root.Commands {
		prepare(cmd)
	}
	return root
}

// prepare gives a command what all have.
func prepare(cmd *cli.Command) {
	// A password may contain commas.
	cmd.DisableSliceFlagSeparator = true
	cmd.OnUsageError = func(_ context.Context, _ *cli.Command, err error, _ bool) error { return usageError{err} }
	for _, sub := range cmd.Commands {
		prepare(sub)
	}
}
