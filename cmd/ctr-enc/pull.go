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
	client, ctx, cancel, err := commands.NewClient(ctx, cmd)
	if err != nil {
		return err
	}
	defer cancel()
	return interruptible(ctx, func(ctx context.Context) error {
		if cmd.Bool("local") {
			return pullLocally(ctx, client, cmd, keys, ref)
		}
		return pullByTransfer(ctx, client, cmd, keys, ref)
	})
}

// pullByTransfer has containerd fetch the image.
func pullByTransfer(ctx context.Context, client *containerd.Client, cmd *cli.Command, keys keyring, ref string) error {
	for _, flag := range []string{"max-concurrent-downloads", "print-chainid", "skip-verify", "tlscacert", "tlscert", "tlskey"} {
		if cmd.IsSet(flag) {
			return fmt.Errorf("%q requires \"--local\" flag", "--"+flag)
		}
	}
	wanted, err := platforms.ParseAll(cmd.StringSlice("platform"))
	if err != nil {
		return err
	}
	switch all := cmd.Bool("all-platforms"); {
	case all && len(wanted) > 0:
		return errors.New("cannot specify both --platform and --all-platforms")
	case !all && len(wanted) == 0:
		wanted = []ocispec.Platform{hostPlatform()}
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
	opts := []registry.Opt{
		registry.WithCredentials(credentials),
		registry.WithHostDir(cmd.String("hosts-dir")),
	}
	if cmd.Bool("plain-http") {
		opts = append(opts, registry.WithDefaultScheme("http"))
	}
	if cmd.Bool("http-dump") {
		opts = append(opts, registry.WithHTTPDebug(), registry.WithClientStream(log.G(ctx).Writer()))
	}
	if cmd.Bool("http-trace") {
		opts = append(opts, registry.WithHTTPTrace(), registry.WithClientStream(log.G(ctx).Writer()))
	}
	return registry.NewOCIRegistry(ctx, ref, opts...)
}

// pullLocally fetches the image as `content fetch` does.
func pullLocally(ctx context.Context, client *containerd.Client, cmd *cli.Command, keys keyring, ref string) error {
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
	var wanted []ocispec.Platform
	if cmd.Bool("all-platforms") {
		wanted, err = images.Platforms(ctx, client.ContentStore(), img.Target)
	} else {
		wanted, err = platforms.ParseAll(cmd.StringSlice("platform"))
	}
	if err != nil {
		return err
	}
	if len(wanted) == 0 {
		wanted = []ocispec.Platform{platforms.DefaultSpec()}
	}
	start := time.Now()
	for _, p := range wanted {
		fmt.Fprintf(cmd.Root().Writer, "unpacking %s %s...\n", platforms.Format(p), img.Target.Digest)
		if err := keys.openStrictly(ctx, client, cmd, img, platforms.Only(p)); err != nil {
			return err
		}
		if cmd.Bool("print-chainid") {
			diffIDs, err := img.RootFS(ctx, client.ContentStore(), platforms.Only(p))
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.Root().Writer, "image chain ID: %s\n", identity.ChainID(diffIDs))
		}
	}
	fmt.Fprintf(cmd.Root().Writer, "done: %s\t\n", time.Since(start))
	return nil
}

// openStrictly unpacks a fetched image, after a check of the given keys. Without keys there is no check, for
// the node may have its own.
func (k keyring) openStrictly(ctx context.Context, client *containerd.Client, cmd *cli.Command, img images.Image, platform platforms.MatchComparer) error {
	if k.given {
		if err := k.authorize(ctx, client, img, platform); err != nil {
			return err
		}
	}
	return k.unpack(ctx, client, cmd, img, platform)
}

// open is openStrictly for what the transfer service has fetched: as it would, it leaves alone what is
// not there for the platform (without keys), and what has no root file system.
func (k keyring) open(ctx context.Context, client *containerd.Client, cmd *cli.Command, img images.Image, platform platforms.MatchComparer) error {
	config, err := img.Config(ctx, client.ContentStore(), platform)
	switch {
	case errdefs.IsNotFound(err) && !k.given:
		return nil
	case err != nil:
		return err
	case !images.IsConfigType(config.MediaType):
		return nil
	}
	return k.openStrictly(ctx, client, cmd, img, platform)
}

// hostPlatform is what ctr pulls and unpacks by default: Linux images on macOS.
func hostPlatform() ocispec.Platform {
	p := platforms.DefaultSpec()
	if p.OS == "darwin" {
		p.OS = "linux"
	}
	return p
}
