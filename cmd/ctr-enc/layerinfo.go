package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/keys/schemes"
)

func layerinfoCommand() *cli.Command {
	return &cli.Command{
		Name:      "layerinfo",
		Usage:     "Show how the layers of an image are encrypted",
		ArgsUsage: "[flags] <local>",
		Description: `List the layers of an image with the schemes that they are encrypted with and,
as far as the image tells, who can open them. Platforms that are not here are
left out.
`,
		Flags: slices.Concat(selectFlags(), gpgFlags(), []cli.Flag{&cli.BoolFlag{
			Name:  "n",
			Usage: "Show pgp recipients by key id, not by address",
		}}),
		DisableSliceFlagSeparator: true,
		Action:                    layerinfo,
	}
}

func layerinfo(ctx context.Context, cmd *cli.Command) error {
	job, err := newJob(cmd)
	if err != nil {
		return err
	}
	ctx, client, done, err := connect(ctx, cmd)
	if err != nil {
		return err
	}
	defer done()
	img, err := client.ImageService().Get(ctx, job.local)
	if err != nil {
		return err
	}
	selection := job.selection()
	found, err := imgcrypt.Inspect(ctx, encryption.NewStore(client.ContentStore()), img.Target,
		imgcrypt.InspectOptions{Schemes: schemes.All(), Platform: selection.Platform})
	if err != nil {
		return fmt.Errorf("%s: %w", job.local, err)
	}
	// The parameters are those of containerd's imgcrypt, whose output scripts parse.
	w := tabwriter.NewWriter(cmd.Root().Writer, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "#\tDIGEST\tPLATFORM\tSIZE\tENCRYPTION\tRECIPIENTS\t")
	rows := 0
	for _, m := range found.Manifests {
		for _, l := range m.Layers {
			if selection.Layer != nil && !selection.Layer(imgcrypt.Layer{Index: l.Index, Count: len(m.Layers)}) {
				continue
			}
			rows++
			fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\t%s\t\n", l.Index, l.Digest, platformName(m.Platform), l.Size,
				strings.Join(l.Schemes, ","), strings.Join(names(l.Recipients), ", "))
		}
	}
	if err := job.unused(); err != nil {
		return fmt.Errorf("%s: %w", job.local, err)
	}
	if rows == 0 {
		return errors.New("no layer is here")
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

func platformName(p *ocispec.Platform) string {
	if p == nil {
		return "unknown"
	}
	return platforms.Format(*p)
}
