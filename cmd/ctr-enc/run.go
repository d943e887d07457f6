package main

import (
	"context"
	"fmt"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v3"
)

// imageOf returns the image that a command is about to unpack, or false where there is none, or where the
// arguments are not as they should be, for which ctr has its own words.
type imageOf func(ctx context.Context, client *containerd.Client, cmd *cli.Command) (images.Image, bool, error)

// ahead has the image of a command authorised and unpacked with the given keys before the command's own
// action, which then has nothing left to unpack.
func ahead(find imageOf) func(cli.ActionFunc) cli.ActionFunc {
	return func(action cli.ActionFunc) cli.ActionFunc {
		return func(ctx context.Context, cmd *cli.Command) error {
			err := interruptible(ctx, func(ctx context.Context) error { return prepare(ctx, cmd, find) })
			if err != nil {
				return err
			}
			return action(ctx, cmd)
		}
	}
}

func prepare(ctx context.Context, cmd *cli.Command, find imageOf) error {
	keys, err := readKeys(cmd)
	if err != nil {
		return err
	}
	p, err := platformOf(cmd.String("platform"))
	if err != nil {
		return err
	}
	ctx, client, done, err := connect(ctx, cmd)
	if err != nil {
		return err
	}
	defer done()
	img, ok, err := find(ctx, client, cmd)
	if err != nil || !ok {
		return err
	}
	if err := keys.authorize(ctx, client, img, platforms.Only(p)); err != nil {
		return err
	}
	return keys.unpack(ctx, client, cmd, img, platforms.Only(p))
}

// imageToRun is for `run` and `containers create`.
func imageToRun(ctx context.Context, client *containerd.Client, cmd *cli.Command) (images.Image, bool, error) {
	if cmd.IsSet("config") || cmd.Bool("rootfs") || cmd.NArg() < 2 {
		return images.Image{}, false, nil
	}
	return imageToMount(ctx, client, cmd)
}

func imageToMount(ctx context.Context, client *containerd.Client, cmd *cli.Command) (images.Image, bool, error) {
	if cmd.NArg() < 1 {
		return images.Image{}, false, nil
	}
	img, err := client.ImageService().Get(ctx, cmd.Args().First())
	return img, true, err
}

// imageToUnpack is for `snapshots unpack`, which is given a digest.
func imageToUnpack(ctx context.Context, client *containerd.Client, cmd *cli.Command) (images.Image, bool, error) {
	dgst, err := digest.Parse(cmd.Args().First())
	if err != nil {
		return images.Image{}, false, nil
	}
	found, err := client.ImageService().List(ctx, fmt.Sprintf("target.digest==%s", dgst))
	if err != nil || len(found) == 0 {
		return images.Image{}, false, err
	}
	return found[0], true, nil
}
