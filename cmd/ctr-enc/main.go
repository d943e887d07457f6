// Command ctr-enc is containerd's own client ctr, with commands that encrypt and
// decrypt images, and with --key wherever ctr unpacks or runs an image.
//
// It contains no command of ctr: it takes the command tree of containerd's
// cmd/ctr/app and changes copies of single commands in it. What runs or shows an
// image first checks that the given keys open every layer of it, unpacks it with
// the keys, and then does what ctr does, which finds the image unpacked.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"

	"github.com/containerd/containerd/v2/cmd/ctr/app"
	"github.com/urfave/cli/v3"

	"imgcrypt/internal/clikeys"
	"imgcrypt/internal/version"
)

const name = "ctr-enc"

func main() {
	os.Exit(run(os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// run runs a command line and returns the exit code: that of the container for
// `run`, 130 after an interrupt, 1 for any other failure.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	cmd := tree()
	cmd.Reader, cmd.Writer, cmd.ErrWriter = stdin, stdout, stderr
	err := cmd.Run(context.Background(), args)
	if err == nil {
		return 0
	}
	clikeys.Report(stderr, name, err)
	var exit cli.ExitCoder
	// The exit code of a program that was started to use a key is not ours.
	var other *exec.ExitError
	if errors.As(err, &exit) && !errors.As(err, &other) {
		return exit.ExitCode()
	}
	return 1
}

// tree returns ctr's commands with ours.
func tree() *cli.Command {
	root := app.New()
	root.Name = name
	root.Usage = "containerd's ctr, for encrypted images too"
	root.Description = "It has images encrypt, decrypt and layerinfo, and --key for whatever unpacks or runs an image."
	root.Version += " imgcrypt " + version.String()
	// Errors become an exit code in run, and nowhere else.
	root.ExitErrHandler = func(context.Context, *cli.Command, error) {}

	edit(root, withKeys(ahead(2, "name")), "run")
	edit(root, withKeys(ahead(2, "name")), "containers", "create")
	edit(root, withKeys(ahead(1, "name")), "images", "mount")
	edit(root, withKeys(ahead(1, "target.digest")), "snapshots", "unpack")
	edit(root, withKeys(func(cli.ActionFunc) cli.ActionFunc { return pull }), "images", "pull")
	edit(root, withKeys(importWithKeys), "images", "import")
	for _, cmd := range []string{"pull", "push", "tag", "import", "export"} {
		edit(root, preferLocal, "images", cmd)
	}
	edit(root, func(images *cli.Command) {
		images.Commands = append(slices.Clip(images.Commands), encryptCommand(), decryptCommand(), layerinfoCommand())
	}, "images")
	return root
}

// edit applies change to a copy of the command at path below parent. ctr's commands
// are variables of its packages, so they are never changed themselves.
func edit(parent *cli.Command, change func(*cli.Command), path ...string) {
	if len(path) == 0 {
		change(parent)
		return
	}
	i := slices.IndexFunc(parent.Commands, func(c *cli.Command) bool { return c.Name == path[0] })
	if i < 0 {
		panic("containerd's ctr has no command " + path[0])
	}
	child := *parent.Commands[i]
	parent.Commands = slices.Clone(parent.Commands)
	parent.Commands[i] = &child
	edit(&child, change, path[1:]...)
}
