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
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/cmd/ctr/app"
	"github.com/urfave/cli/v3"
)

const name = "ctr-enc"

func main() {
	os.Exit(run(os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// run runs a command line and returns the exit code: that of the container for
// run, 1 for any other failure, as ctr does.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	cmd := tree()
	cmd.Reader, cmd.Writer, cmd.ErrWriter = stdin, stdout, stderr
	err := cmd.Run(context.Background(), args)
	if err == nil {
		return 0
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintf(stderr, "%s: %s\n", name, oneLine(msg))
	}
	var exit cli.ExitCoder
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 1
}

// oneLine keeps an error to the one line that a user or a script reads: errors of
// containerd may quote several lines of the output of a decoder.
func oneLine(msg string) string {
	return strings.Join(strings.FieldsFunc(msg, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// tree returns ctr's commands with ours.
func tree() *cli.Command {
	root := app.New()
	root.Name = name
	root.Version += " imgcrypt " + version()
	root.Usage = "containerd's ctr, for encrypted images too"
	root.Description = `ctr-enc is containerd's client ctr, extended by images encrypt, decrypt and
layerinfo, and by --key for whatever unpacks or runs an image. As ctr, it is a
debugging and administrative client.`
	// Returned errors become the exit code in run, and nowhere else.
	root.ExitErrHandler = func(context.Context, *cli.Command, error) {}

	edit(root, withKeys(ahead(imageToRun)), "run")
	edit(root, withKeys(ahead(imageToRun)), "containers", "create")
	edit(root, withKeys(ahead(imageToMount)), "images", "mount")
	edit(root, withKeys(ahead(imageToUnpack)), "snapshots", "unpack")
	edit(root, withKeys(func(cli.ActionFunc) cli.ActionFunc { return pull }), "images", "pull")
	edit(root, withKeys(importWithKeys), "images", "import")
	edit(root, alwaysLocal, "images", "export")
	for _, cmd := range []string{"pull", "import", "push", "tag"} {
		edit(root, localWithoutTransfer, "images", cmd)
	}
	edit(root, func(images *cli.Command) {
		images.Commands = append(images.Commands, encryptCommand(), decryptCommand(), layerinfoCommand())
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

// version is that of this module, as the go command has recorded it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}
