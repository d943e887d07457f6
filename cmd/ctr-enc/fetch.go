package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/cmd/ctr/commands"
	"github.com/containerd/containerd/v2/cmd/ctr/commands/content"
	ctrimages "github.com/containerd/containerd/v2/cmd/ctr/commands/images"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

// pull is the action of `images pull`: fetch by containerd or by ctr, then unpack from here, since only a
// client can send keys along.
func pull(ctx context.Context, cmd *cli.Command) error {
	ref := cmd.Args().First()
	if ref == "" {
		return errors.New("please provide an image reference to pull")
	}
	keys, err := readKeys(cmd)
	if err != nil {
		return err
	}
	wanted, err := platforms.ParseAll(cmd.StringSlice("platform"))
	if err != nil {
		return err
	}
	client, ctx, cancel, err := commands.NewClient(ctx, cmd)
	if err != nil {
		return err
	}
	defer cancel()
	all, fetch := cmd.Bool("all-platforms"), pullByTransfer
	switch {
	case cmd.Bool("local"):
		fetch = pullLocally
	case all && len(wanted) > 0:
		return errors.New("cannot specify both --platform and --all-platforms")
	}
	if len(wanted) == 0 && !all {
		wanted = []ocispec.Platform{platforms.DefaultSpec()}
	}
	img, err := fetch(ctx, client, cmd, ref, wanted)
	if err != nil {
		return err
	}
	if all && cmd.Bool("local") {
		if wanted, err = images.Platforms(ctx, client.ContentStore(), img.Target); err != nil {
			return fmt.Errorf("unable to resolve image platforms: %w", err)
		}
	}
	out, start := cmd.Root().Writer, time.Now()
	for _, p := range wanted {
		fmt.Fprintf(out, "unpacking %s %s...\n", platforms.Format(p), img.Target.Digest)
		if err := keys.open(ctx, client, cmd, img, platforms.Only(p)); err != nil {
			return err
		}
		if cmd.Bool("print-chainid") {
			diffIDs, err := img.RootFS(ctx, client.ContentStore(), platforms.Only(p))
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "image chain ID: %s\n", identity.ChainID(diffIDs))
		}
	}
	fmt.Fprintf(out, "done: %s\t\n", time.Since(start))
	return nil
}

// pullByTransfer has containerd fetch the image; without platforms, for all.
func pullByTransfer(ctx context.Context, client *containerd.Client, cmd *cli.Command, ref string, wanted []ocispec.Platform) (images.Image, error) {
	for _, flag := range []string{"max-concurrent-downloads", "print-chainid", "skip-verify", "tlscacert", "tlscert", "tlskey"} {
		if cmd.IsSet(flag) {
			return images.Image{}, fmt.Errorf("%q requires \"--local\" flag", "--"+flag)
		}
	}
	credentials, err := commands.NewStaticCredentials(ctx, cmd, ref)
	if err != nil {
		return images.Image{}, err
	}
	from := []registry.Opt{registry.WithCredentials(credentials), registry.WithHostDir(cmd.String("hosts-dir"))}
	if cmd.Bool("plain-http") {
		from = append(from, registry.WithDefaultScheme("http"))
	}
	for flag, opt := range map[string]registry.Opt{"http-dump": registry.WithHTTPDebug(), "http-trace": registry.WithHTTPTrace()} {
		if cmd.Bool(flag) {
			from = append(from, opt, registry.WithClientStream(log.G(ctx).Writer()))
		}
	}
	source, err := registry.NewOCIRegistry(ctx, ref, from...)
	if err != nil {
		return images.Image{}, err
	}
	to := []image.StoreOpt{image.WithPlatforms(wanted...)}
	if !cmd.Bool("skip-metadata") {
		to = append(to, image.WithAllMetadata)
	}
	if labels := cmd.StringSlice("label"); len(labels) > 0 {
		to = append(to, image.WithImageLabels(commands.LabelArgs(labels)))
	}
	progress, done := ctrimages.ProgressHandler(ctx, os.Stdout)
	err = client.Transfer(ctx, source, image.NewStore(ref, to...), transfer.WithProgress(progress))
	done()
	if err != nil {
		return images.Image{}, err
	}
	return client.ImageService().Get(ctx, ref)
}

// pullLocally fetches the image as `content fetch` does.
func pullLocally(ctx context.Context, client *containerd.Client, cmd *cli.Command, ref string, _ []ocispec.Platform) (img images.Image, err error) {
	config, err := content.NewFetchConfig(ctx, cmd)
	if err != nil {
		return img, err
	}
	err = leased(ctx, client, func(ctx context.Context) (err error) {
		img, err = content.Fetch(ctx, client, ref, config)
		return err
	})
	return img, err
}

// importWithKeys has ctr import without unpacking, and unpacks from here. ctr does not tell which names it has
// created or replaced, so it is made to label them.
func importWithKeys(action cli.ActionFunc) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		keys, err := readKeys(cmd)
		// Without unpacking nothing is to be done here, and ctr discards layers only when it unpacks itself.
		switch discard := cmd.Bool("discard-unpacked-layers"); {
		case err != nil:
			return err
		case discard && keys.given:
			return errors.New("--discard-unpacked-layers cannot be combined with --key")
		case discard || cmd.Bool("no-unpack") || cmd.NArg() == 0:
			return action(ctx, cmd)
		}
		nctx, client, done, err := connect(ctx, cmd)
		if err != nil {
			return err
		}
		defer done()
		var before []images.Image
		if cmd.Bool("local") && !cmd.IsSet("label") {
			// Then ctr keeps the labels that an image had.
			if before, err = client.ImageService().List(nctx); err != nil {
				return err
			}
		}
		mark := rand.Text()
		err = errors.Join(cmd.Set("label", markLabel+"="+mark), cmd.Set("no-unpack", "true"))
		// Where two imports create a name at once, containerd's client fails one of them. A pipe cannot be read again.
		file, serr := os.Stat(cmd.Args().First())
		for more := err == nil; more; more = errdefs.IsAlreadyExists(err) && serr == nil && file.Mode().IsRegular() {
			err = action(ctx, cmd)
		}
		imported, uerr := unmark(nctx, client.ImageService(), mark, before)
		err = cmp.Or(err, uerr)
		for i := 0; err == nil && i < len(imported); i++ {
			err = unpackImported(nctx, client, cmd, keys, imported[i])
		}
		return err
	}
}

// markLabel is the label that an image has while it is being imported. Its value tells by whom.
const markLabel = "imgcrypt.import"

// unmark returns the images that have the mark, without it: with the labels that they had before, if they had any.
func unmark(ctx context.Context, store images.Store, mark string, before []images.Image) ([]images.Image, error) {
	marked, err := store.List(ctx, fmt.Sprintf("labels.%q==%q", markLabel, mark))
	for n, img := range marked {
		if i := slices.IndexFunc(before, func(old images.Image) bool { return old.Name == img.Name }); i >= 0 {
			img.Labels = before[i].Labels // among them the mark of an import at the same time
		}
		delete(img.Labels, markLabel)
		if marked[n], err = store.Update(ctx, img, "labels"); err != nil {
			return nil, err
		}
	}
	return marked, err
}

// unpackImported unpacks what ctr would: an image for one platform, or by the transfer service and with
// --all-platforms for all of the operating system.
func unpackImported(ctx context.Context, client *containerd.Client, cmd *cli.Command, keys keyring, img images.Image) error {
	host := platforms.DefaultSpec()
	wanted, err := platforms.ParseAll([]string{cmp.Or(cmd.String("platform"), platforms.Format(host))})
	if cmd.Bool("all-platforms") && !cmd.Bool("local") {
		wanted, err = images.Platforms(ctx, client.ContentStore(), img.Target)
		wanted = slices.DeleteFunc(wanted, func(p ocispec.Platform) bool { return p.OS != host.OS })
	}
	if err != nil {
		return err
	}
	for _, p := range wanted {
		fmt.Fprintf(cmd.Root().Writer, "unpacking %s (%s)...\n", img.Name, img.Target.Digest)
		if err := keys.open(ctx, client, cmd, img, platforms.Only(p)); err != nil {
			return err
		}
	}
	return nil
}
