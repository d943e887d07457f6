package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/cmd/ctr/commands"
	"github.com/containerd/containerd/v2/cmd/ctr/commands/content"
	ctrimages "github.com/containerd/containerd/v2/cmd/ctr/commands/images"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
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
	return interruptible(ctx, func(ctx context.Context) error {
		if cmd.Bool("local") {
			return pullLocally(ctx, client, cmd, keys, ref, wanted)
		}
		return pullByTransfer(ctx, client, cmd, keys, ref, wanted)
	})
}

// pullByTransfer has containerd fetch the image.
func pullByTransfer(ctx context.Context, client *containerd.Client, cmd *cli.Command, keys keyring, ref string, wanted []ocispec.Platform) error {
	for _, flag := range []string{"max-concurrent-downloads", "print-chainid", "skip-verify", "tlscacert", "tlscert", "tlskey"} {
		if cmd.IsSet(flag) {
			return fmt.Errorf("%q requires \"--local\" flag", "--"+flag)
		}
	}
	switch all := cmd.Bool("all-platforms"); {
	case all && len(wanted) > 0:
		return errors.New("cannot specify both --platform and --all-platforms")
	case !all && len(wanted) == 0:
		wanted = []ocispec.Platform{platforms.DefaultSpec()}
	}
	source, err := registryOf(ctx, cmd, ref)
	if err != nil {
		return err
	}
	store := []image.StoreOpt{image.WithPlatforms(wanted...)}
	if !cmd.Bool("skip-metadata") {
		store = append(store, image.WithAllMetadata)
	}
	if labels := cmd.StringSlice("label"); len(labels) > 0 {
		store = append(store, image.WithImageLabels(commands.LabelArgs(labels)))
	}
	progress, done := ctrimages.ProgressHandler(ctx, os.Stdout)
	err = client.Transfer(ctx, source, image.NewStore(ref, store...), transfer.WithProgress(progress))
	done()
	if err != nil {
		return err
	}
	img, err := client.ImageService().Get(ctx, ref)
	if err != nil {
		return err
	}
	for _, p := range wanted {
		if err := keys.open(ctx, client, cmd, img, platforms.Only(p)); err != nil {
			return err
		}
	}
	return nil
}

// registryOf returns the registry of ref as cmd's flags describe it.
func registryOf(ctx context.Context, cmd *cli.Command, ref string) (*registry.OCIRegistry, error) {
	credentials, err := commands.NewStaticCredentials(ctx, cmd, ref)
	if err != nil {
		return nil, err
	}
	opts := []registry.Opt{registry.WithCredentials(credentials), registry.WithHostDir(cmd.String("hosts-dir"))}
	if cmd.Bool("plain-http") {
		opts = append(opts, registry.WithDefaultScheme("http"))
	}
	for flag, opt := range map[string]registry.Opt{"http-dump": registry.WithHTTPDebug(), "http-trace": registry.WithHTTPTrace()} {
		if cmd.Bool(flag) {
			opts = append(opts, opt, registry.WithClientStream(log.G(ctx).Writer()))
		}
	}
	return registry.NewOCIRegistry(ctx, ref, opts...)
}

// pullLocally fetches the image as `content fetch` does.
func pullLocally(ctx context.Context, client *containerd.Client, cmd *cli.Command, keys keyring, ref string, wanted []ocispec.Platform) error {
	config, err := content.NewFetchConfig(ctx, cmd)
	if err != nil {
		return err
	}
	var img images.Image
	err = leased(ctx, client, func(ctx context.Context) (err error) {
		img, err = content.Fetch(ctx, client, ref, config)
		return err
	})
	if err != nil {
		return err
	}
	if cmd.Bool("all-platforms") {
		if wanted, err = images.Platforms(ctx, client.ContentStore(), img.Target); err != nil {
			return fmt.Errorf("unable to resolve image platforms: %w", err)
		}
	}
	if len(wanted) == 0 {
		wanted = []ocispec.Platform{platforms.DefaultSpec()}
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
