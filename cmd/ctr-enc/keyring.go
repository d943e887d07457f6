package main

import (
	"context"
	"fmt"
	"slices"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	encconfig "github.com/containers/ocicrypt/config"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/images/encryption/parsehelpers"
)

// gpgFlags say where gpg's keys are.
func gpgFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "gpg-homedir", Usage: "Home directory of gpg; not used yet"},
		&cli.StringFlag{Name: "gpg-version", Usage: "Version of gpg: 1, 2, v1 or v2; not used yet", Validator: func(v string) error {
			if !slices.Contains([]string{"", "1", "2", "v1", "v2"}, v) {
				return fmt.Errorf("gpg version %q is none of 1, 2, v1, v2", v)
			}
			return nil
		}},
	}
}

// keyFlags name private keys.
func keyFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringSliceFlag{Name: "key", Usage: "Private `KEY` that opens the image: FILE, FILE:PASSWORD, FILE:pass=PASSWORD, FILE:file=PATH or FILE:fd=N (repeatable)"},
		&cli.StringSliceFlag{Name: "dec-recipient", Usage: "Certificate that belongs to a private key, as in pkcs7:`FILE`; not built yet"},
	}, gpgFlags()...)
}

// withKeys adds the key flags to a command, and has its action wrapped.
func withKeys(wrap func(cli.ActionFunc) cli.ActionFunc) func(*cli.Command) {
	return func(cmd *cli.Command) {
		skip := &cli.BoolFlag{Name: "skip-decrypt-auth", Usage: "Do not check that the given keys open the image, for nodes that have keys of their own"}
		cmd.Flags = slices.Concat(cmd.Flags, keyFlags(), []cli.Flag{skip})
		cmd.Action = wrap(cmd.Action)
	}
}

// keyring holds the keys that a command was given. It is made once per command, as
// --key may name a pipe.
type keyring struct {
	config encconfig.DecryptConfig
	given  bool // there are any
	check  bool // refuse what these keys do not open
}

func readKeys(cmd *cli.Command) (keyring, error) {
	args := parsehelpers.EncArgs{
		GPGHomedir:   cmd.String("gpg-homedir"),
		GPGVersion:   cmd.String("gpg-version"),
		Key:          cmd.StringSlice("key"),
		DecRecipient: cmd.StringSlice("dec-recipient"),
	}
	k := keyring{given: len(args.Key) > 0, check: !cmd.Bool("skip-decrypt-auth")}
	cc, err := parsehelpers.CreateDecryptCryptoConfig(args, nil)
	if cc.DecryptConfig != nil {
		k.config = *cc.DecryptConfig
	}
	return k, err
}

// authorize fails unless k opens every layer of the image for the platform.
func (k keyring) authorize(ctx context.Context, client *containerd.Client, img images.Image, platform platforms.MatchComparer) error {
	if !k.check {
		return nil
	}
	return encryption.CheckAuthorizationFor(ctx, client.ContentStore(), img.Target, &k.config, platform)
}

// unpack unpacks an image as ctr does, and sends the keys along to the node's decoder. Without any it
// still sends a payload, which tells the decoder about the layer, for the node's own keys to open it.
func (k keyring) unpack(ctx context.Context, client *containerd.Client, cmd *cli.Command, img images.Image, platform platforms.MatchComparer) error {
	if !cmd.Bool("debug") {
		// containerd's client logs what it then returns.
		defer func(level string) { _ = log.SetLevel(level) }(log.GetLevel().String())
		_ = log.SetLevel("warn")
	}
	payload := encryption.WithDecryptedUnpack(&imgcrypt.Payload{DecryptConfig: k.config})
	return leased(ctx, client, func(ctx context.Context) error {
		err := containerd.NewImageWithPlatform(client, img, platform).Unpack(ctx, cmd.String("snapshotter"),
			containerd.WithUnpackApplyOpts(diff.WithSyncFs(cmd.Bool("sync-fs")), payload))
		return encryption.ExplainUnpack(ctx, client.ContentStore(), img.Target, &k.config, platform, err)
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
