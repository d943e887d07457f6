package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/cmd/ctr/commands"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/dialer"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/urfave/cli/v3"
)

// connect connects as ctr does, but fails at once where nobody listens. The returned context carries namespace and timeout.
func connect(ctx context.Context, cmd *cli.Command) (context.Context, *containerd.Client, func(), error) {
	address, timeout := cmd.String("address"), cmd.Duration("connect-timeout")
	if timeout <= 0 {
		timeout = 10 * time.Second
	}
	if _, err := os.Stat(address); err != nil {
		return nil, nil, nil, fmt.Errorf("cannot access socket %s: %w", address, err)
	}
	dctx, stop := context.WithTimeout(ctx, timeout)
	defer stop()
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

// leased runs f under a lease, which keeps what f creates from being collected. If f fails, or the user
// interrupts it, what it created and nothing else refers to is removed before leased returns.
func leased(ctx context.Context, client *containerd.Client, f func(context.Context) error) error {
	ctx, _, err := client.WithLease(ctx)
	if err != nil {
		return err
	}
	id, _ := leases.FromContext(ctx)
	sctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(sctx, stop) // The second interrupt ends the process.
	var opts []leases.DeleteOpt
	if err = f(sctx); err != nil {
		opts = append(opts, leases.SynchronousDelete)
		if sctx.Err() != nil && ctx.Err() == nil {
			err = cli.Exit("interrupted", 130)
		}
	}
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if derr := client.LeasesService().Delete(dctx, leases.Lease{ID: id}, opts...); derr != nil && !errdefs.IsNotFound(derr) {
		err = errors.Join(err, fmt.Errorf("remove lease %s: %w", id, derr))
	}
	return err
}

// ahead has the image of a command authorised and unpacked with the given keys before the command's own
// action, which then has nothing left to unpack. The image is the one whose field is the first argument.
// With fewer than least arguments, or without an image, the action has its own words.
func ahead(least int, field string) func(cli.ActionFunc) cli.ActionFunc {
	return func(action cli.ActionFunc) cli.ActionFunc {
		return func(ctx context.Context, cmd *cli.Command) error {
			if cmd.NArg() >= least && !cmd.IsSet("config") && !cmd.Bool("rootfs") {
				if err := prepare(ctx, cmd, field, cmd.Args().First()); err != nil {
					return err
				}
			}
			return action(ctx, cmd)
		}
	}
}

func prepare(ctx context.Context, cmd *cli.Command, field, value string) error {
	keys, err := readKeys(cmd)
	if err != nil {
		return err
	}
	p, err := platforms.Parse(cmp.Or(cmd.String("platform"), platforms.DefaultString()))
	if err != nil {
		return err
	}
	ctx, client, done, err := connect(ctx, cmd)
	if err != nil {
		return err
	}
	defer done()
	found, err := client.ImageService().List(ctx, field+"=="+strconv.Quote(value))
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("image %q: %w", value, errdefs.ErrNotFound)
	}
	if err := keys.authorize(ctx, client, found[0], platforms.Only(p)); err != nil {
		return err
	}
	return keys.unpack(ctx, client, cmd, found[0], platforms.Only(p))
}

// preferLocal has a command work as with --local where containerd has no transfer service, as before 1.7. export
// always does: by the transfer service, ctr's may return before the end of the archive has been written, and writes its
// progress into an archive on standard output.
func preferLocal(cmd *cli.Command) {
	action := cmd.Action
	cmd.Action = func(ctx context.Context, cmd *cli.Command) error {
		if cmd.NArg() > 0 && !cmd.Bool("local") {
			nctx, client, done, err := connect(ctx, cmd)
			if err != nil {
				return err
			}
			found, err := client.IntrospectionService().Plugins(nctx, "type==io.containerd.transfer.v1")
			done()
			if err == nil && (len(found.Plugins) == 0 || cmd.Name == "export") {
				err = cmd.Set("local", "true")
			}
			if err == nil && cmd.Bool("local") && cmd.Name == "tag" {
				err = cmd.Set("force", "true") // as the transfer service does
			}
			if err != nil {
				return err
			}
		}
		return action(ctx, cmd)
	}
}
