package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/cmd/ctr/commands"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/dialer"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"imgcrypt"
	"imgcrypt/images/encryption"
)

// dialTimeout bounds the wait for a containerd that does not accept connections.
const dialTimeout = 10 * time.Second

// connect connects to the containerd that cmd's flags name. Unlike ctr's own function, it fails
// at once where nobody listens. The returned context carries namespace and timeout.
func connect(ctx context.Context, cmd *cli.Command) (context.Context, *containerd.Client, func(), error) {
	address, timeout := cmd.String("address"), cmd.Duration("connect-timeout")
	if timeout <= 0 {
		timeout = dialTimeout
	}
	if _, err := os.Stat(address); err != nil {
		return nil, nil, nil, fmt.Errorf("cannot access socket %s: %w", address, err)
	}
	dctx, cancelDial := context.WithTimeout(ctx, timeout)
	defer cancelDial()
	conn, err := dialer.ContextDialer(dctx, dialer.DialAddress(address))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("is containerd running? %w", err)
	}
	conn.Close()
	client, err := containerd.New(address, containerd.WithTimeout(timeout))
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := commands.AppContext(ctx, cmd)
	return ctx, client, func() { cancel(); client.Close() }, nil
}

// interruptible runs f with a context that the first interrupt ends, so that f can remove what it holds
// in containerd. The second one ends the process.
func interruptible(ctx context.Context, f func(context.Context) error) error {
	sctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(sctx, stop)
	err := f(sctx)
	if err != nil && sctx.Err() != nil && ctx.Err() == nil {
		return cli.Exit("interrupted", 130)
	}
	return err
}

// leased runs f under a lease, which keeps what f creates from being collected. If f
// fails, what it created and nothing else refers to is removed before leased returns.
func leased(ctx context.Context, client *containerd.Client, f func(context.Context) error) error {
	ctx, _, err := client.WithLease(ctx)
	if err != nil {
		return err
	}
	id, _ := leases.FromContext(ctx)
	err = f(ctx)
	var opts []leases.DeleteOpt
	if err != nil {
		opts = append(opts, leases.SynchronousDelete)
	}
	// Also where ctx was the reason to fail.
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if derr := client.LeasesService().Delete(dctx, leases.Lease{ID: id}, opts...); derr != nil && !errdefs.IsNotFound(derr) {
		err = errors.Join(err, fmt.Errorf("remove lease %s: %w", id, derr))
	}
	return err
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
	payload := encryption.WithDecryptedUnpack(&imgcrypt.Payload{DecryptConfig: k.config})
	if !cmd.Bool("debug") {
		// containerd's client logs what it then returns.
		before := log.GetLevel()
		if err := log.SetLevel("warn"); err != nil {
			return err
		}
		defer func() { _ = log.SetLevel(before.String()) }()
	}
	return leased(ctx, client, func(ctx context.Context) error {
		return containerd.NewImageWithPlatform(client, img, platform).Unpack(ctx, cmd.String("snapshotter"),
			containerd.WithUnpackApplyOpts(diff.WithSyncFs(cmd.Bool("sync-fs"))),
			encryption.WithUnpackConfigApplyOpts(payload))
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

// platformOf returns the platform that a flag names, by default that of the host.
func platformOf(flag string) (ocispec.Platform, error) {
	if flag == "" {
		return platforms.DefaultSpec(), nil
	}
	return platforms.Parse(flag)
}
