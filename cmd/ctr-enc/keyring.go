package main

import (
	"context"
	"slices"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"imgcrypt/images/encryption"
	"imgcrypt/internal/clikeys"
	"imgcrypt/keys"
)

// withKeys adds the key flags to a command, and has its action wrapped.
func withKeys(wrap func(cli.ActionFunc) cli.ActionFunc) func(*cli.Command) {
	return func(cmd *cli.Command) {
		skip := &cli.BoolFlag{Name: "skip-decrypt-auth", Usage: "Do not check that the given keys open the image, for nodes that have keys of their own"}
		cmd.Flags = slices.Concat(cmd.Flags, clikeys.Flags(), []cli.Flag{skip})
		cmd.Action = wrap(cmd.Action)
	}
}

// keyring holds the keys that a command was given, and then those that need no naming. It is made once per
// command, as --key may name a pipe.
type keyring struct {
	ids   []keys.Identity
	given bool // there are any named ones
	check bool // refuse what these keys do not open
}

func readKeys(cmd *cli.Command) (keyring, error) {
	parser, err := clikeys.Parser(cmd)
	if err != nil {
		return keyring{}, err
	}
	ids, given, err := clikeys.Identities(cmd, parser)
	return keyring{ids: ids, given: given > 0, check: !cmd.Bool("skip-decrypt-auth")}, err
}

// authorize fails unless k opens every layer of the image for the platform.
func (k keyring) authorize(ctx context.Context, client *containerd.Client, img images.Image, platform platforms.MatchComparer) error {
	if !k.check {
		return nil
	}
	return encryption.CheckAuthorizationFor(ctx, client.ContentStore(), img.Target, k.ids, platform)
}

// unpack unpacks an image as ctr does, and sends what its layers need along to the node's decoder. What k does not
// open the node's own keys may.
func (k keyring) unpack(ctx context.Context, client *containerd.Client, cmd *cli.Command, img images.Image, platform platforms.MatchComparer) error {
	if !cmd.Bool("debug") {
		// containerd's client logs what it then returns.
		defer func(level string) { _ = log.SetLevel(level) }(log.GetLevel().String())
		_ = log.SetLevel("warn")
	}
	return leased(ctx, client, func(ctx context.Context) error {
		err := containerd.NewImageWithPlatform(client, img, platform).Unpack(ctx, cmd.String("snapshotter"),
			containerd.WithUnpackApplyOpts(diff.WithSyncFs(cmd.Bool("sync-fs")), encryption.WithIdentities(k.ids)))
		return encryption.ExplainUnpack(ctx, client.ContentStore(), img.Target, k.ids, platform, err)
	})
}

// open checks and unpacks an image that was pulled or imported. Without keys there is no check, for the node
// may have its own. What the transfer service brought is left alone, as it would do, if it has no layers of a root
// file system or, without keys, is not here for the platform.
func (k keyring) open(ctx context.Context, client *containerd.Client, cmd *cli.Command, img images.Image, platform platforms.MatchComparer) error {
	if !cmd.Bool("local") {
		m, err := images.Manifest(ctx, client.ContentStore(), img.Target, platform)
		isLayer := func(l ocispec.Descriptor) bool { return images.IsLayerType(l.MediaType) }
		if errdefs.IsNotFound(err) && !k.given || err == nil && !(images.IsConfigType(m.Config.MediaType) && slices.ContainsFunc(m.Layers, isLayer)) {
			return nil
		}
	}
	if k.given {
		if err := k.authorize(ctx, client, img, platform); err != nil {
			return err
		}
	}
	return k.unpack(ctx, client, cmd, img, platform)
}
