package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"
)

// transferPlugin is the plugin type of the transfer service, which containerd has from 1.7 on.
const transferPlugin = "io.containerd.transfer.v1"

// localWithoutTransfer makes --local the default of a command where containerd has no transfer service.
// The command is asked before it does anything.
func localWithoutTransfer(cmd *cli.Command) {
	action := cmd.Action
	cmd.Action = func(ctx context.Context, cmd *cli.Command) error {
		if cmd.Bool("local") || cmd.NArg() == 0 {
			return action(ctx, cmd)
		}
		has, err := hasTransfer(ctx, cmd)
		if err != nil {
			return err
		}
		if !has {
			if err := cmd.Set("local", "true"); err != nil {
				return err
			}
		}
		return action(ctx, cmd)
	}
}

// alwaysLocal makes --local the default of a command. ctr's export by the transfer service may return before
// the end of the archive has been written, and writes its progress into an archive on standard output.
func alwaysLocal(cmd *cli.Command) {
	action := cmd.Action
	cmd.Action = func(ctx context.Context, cmd *cli.Command) error {
		if !cmd.IsSet("local") {
			if err := cmd.Set("local", "true"); err != nil {
				return err
			}
		}
		return action(ctx, cmd)
	}
}

func hasTransfer(ctx context.Context, cmd *cli.Command) (bool, error) {
	ctx, client, done, err := connect(ctx, cmd)
	if err != nil {
		return false, err
	}
	defer done()
	resp, err := client.IntrospectionService().Plugins(ctx, "type=="+transferPlugin)
	if err != nil {
		return false, fmt.Errorf("ask containerd for its plugins: %w", err)
	}
	for _, p := range resp.Plugins {
		if p.InitErr == nil {
			return true, nil
		}
	}
	return false, nil
}
