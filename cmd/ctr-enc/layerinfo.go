package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/containerd/platforms"
	"github.com/urfave/cli/v3"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/keys/schemes"
)

func layerinfoCommand() *cli.Command {
	n := &cli.BoolFlag{Name: "n", Usage: "Show pgp recipients by key id, not by address"}
	return newCommand("layerinfo", "Show how the layers of an image are encrypted", "<local>", slices.Concat(selectFlags(), gpgFlags(), []cli.Flag{n}), layerinfo,
		`List the layers of an image with the schemes that they are encrypted with and, as
far as the image tells, who can open them. Platforms that are not here are left
out.`)
}

func layerinfo(ctx context.Context, cmd *cli.Command) error {
	j, err := newJob(cmd)
	if err != nil {
		return err
	}
	ctx, client, done, err := connect(ctx, cmd)
	if err != nil {
		return err
	}
	defer done()
	root, err := encryption.NewTags(client.ImageService()).Resolve(ctx, j.local)
	if err != nil {
		return fmt.Errorf("%s: %w", j.local, err)
	}
	chosen := j.selection()
	img, err := imgcrypt.Inspect(ctx, encryption.NewStore(client.ContentStore()), root,
		imgcrypt.InspectOptions{Schemes: schemes.All(), Platform: chosen.Platform})
	if err != nil {
		return fmt.Errorf("%s: %w", j.local, err)
	}
	// The parameters are those of containerd's imgcrypt, whose output scripts parse.
	w := tabwriter.NewWriter(cmd.Root().Writer, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "#\tDIGEST\tPLATFORM\tSIZE\tENCRYPTION\tRECIPIENTS\t")
	for _, m := range img.Manifests {
		platform := "unknown"
		if m.Platform != nil {
			platform = platforms.Format(*m.Platform)
		}
		for _, l := range m.Layers {
			if chosen.Layer != nil && !chosen.Layer(imgcrypt.Layer{Index: l.Index, Count: len(m.Layers)}) {
				continue
			}
			fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\t%s\t\n", l.Index, l.Digest, platform, l.Size,
				strings.Join(l.Schemes, ","), strings.Join(names(l.Recipients), ", "))
		}
	}
	if err := j.unused(); err != nil {
		return fmt.Errorf("%s: %w", j.local, err)
	}
	return w.Flush()
}

func names(recipients []imgcrypt.Recipient) []string {
	list := make([]string, len(recipients))
	for i, r := range recipients {
		list[i] = r.Name
	}
	slices.Sort(list)
	return list
}
