package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

// importer has ctr import without unpacking, and unpacks from here, since only a client can send keys
// along. ctr does not tell which names it has created or replaced, so it is made to label them; the label is
// removed again.
type importer struct {
	client *containerd.Client
	cmd    *cli.Command
	start  time.Time
	mark   string
	// labels are those that the existing images had before, where ctr keeps them.
	labels map[string]map[string]string
	// discard says that layers are not kept. ctr refuses that without unpacking.
	discard bool
}

func importWithKeys(action cli.ActionFunc) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		if cmd.Bool("no-unpack") || cmd.NArg() == 0 {
			return action(ctx, cmd)
		}
		keys, err := readKeys(cmd)
		if err != nil {
			return err
		}
		nctx, client, done, err := connect(ctx, cmd)
		if err != nil {
			return err
		}
		defer done()
		i := importer{client: client, cmd: cmd, start: time.Now(), mark: "imgcrypt.import/" + rand.Text()}
		if err := i.prepare(nctx); err != nil {
			return err
		}
		actionErr := action(ctx, cmd)
		imported, err := i.finish(nctx)
		if actionErr != nil || err != nil {
			return cmp.Or(actionErr, err)
		}
		return interruptible(nctx, func(ctx context.Context) error { return i.unpack(ctx, keys, imported) })
	}
}

// prepare sets ctr's flags.
func (i *importer) prepare(ctx context.Context) error {
	set := map[string]string{"label": i.mark + "=true", "no-unpack": "true"}
	if i.cmd.Bool("local") {
		if i.discard = i.cmd.Bool("discard-unpacked-layers"); i.discard {
			set["discard-unpacked-layers"] = "false"
		}
		if !i.cmd.IsSet("label") {
			before, err := i.client.ImageService().List(ctx)
			if err != nil {
				return err
			}
			i.labels = make(map[string]map[string]string)
			for _, img := range before {
				i.labels[img.Name] = img.Labels
			}
		}
	}
	for flag, value := range set {
		if err := i.cmd.Set(flag, value); err != nil {
			return err
		}
	}
	return nil
}

// finish returns the imported images, without the mark.
func (i *importer) finish(ctx context.Context) ([]images.Image, error) {
	store := i.client.ImageService()
	imported, err := store.List(ctx, fmt.Sprintf("labels.%q", i.mark))
	if err != nil {
		return nil, err
	}
	for n, img := range imported {
		delete(img.Labels, i.mark)
		if labels, ok := i.labels[img.Name]; ok {
			img.Labels = labels
		}
		if imported[n], err = store.Update(ctx, img, "labels"); err != nil {
			return nil, err
		}
	}
	return imported, nil
}

func (i *importer) unpack(ctx context.Context, keys keyring, imported []images.Image) error {
	local, out := i.cmd.Bool("local"), i.cmd.Root().Writer
	for _, img := range imported {
		wanted, err := i.platforms(ctx, img)
		if err != nil {
			return err
		}
		if local {
			fmt.Fprintf(out, "unpacking %s (%s)...", img.Name, img.Target.Digest)
		}
		for _, p := range wanted {
			if err := keys.open(ctx, i.client, i.cmd, img, p); err != nil {
				return err
			}
		}
		if i.discard {
			if err := i.releaseLayers(ctx, img); err != nil {
				return err
			}
		}
		if local {
			fmt.Fprintln(out, "done")
		}
	}
	return nil
}

// platforms are those that ctr unpacks: one, in local mode strictly that, otherwise with --all-platforms
// all of the operating system.
func (i *importer) platforms(ctx context.Context, img images.Image) ([]platforms.MatchComparer, error) {
	local, all := i.cmd.Bool("local"), i.cmd.Bool("all-platforms")
	if all && !local {
		found, err := images.Platforms(ctx, i.client.ContentStore(), img.Target)
		var wanted []platforms.MatchComparer
		for _, p := range found {
			if p.OS == platforms.DefaultSpec().OS {
				wanted = append(wanted, platforms.Only(p))
			}
		}
		return wanted, err
	}
	p, err := platformOf(i.cmd.String("platform"))
	if local {
		return []platforms.MatchComparer{platforms.OnlyStrict(p)}, err
	}
	return []platforms.MatchComparer{platforms.Only(p)}, err
}

// releaseLayers makes the manifests of this import refer to their layers no more, for the garbage collector.
func (i *importer) releaseLayers(ctx context.Context, img images.Image) error {
	cs := i.client.ContentStore()
	return images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if !images.IsManifestType(desc.MediaType) {
			return images.Children(ctx, cs, desc)
		}
		info, err := cs.Info(ctx, desc.Digest)
		switch {
		case errdefs.IsNotFound(err): // for another platform
			return nil, nil
		case err != nil || info.CreatedAt.Before(i.start):
			return nil, err
		}
		maps.DeleteFunc(info.Labels, func(label, _ string) bool {
			return strings.HasPrefix(label, "containerd.io/gc.ref.content.l.")
		})
		_, err = cs.Update(ctx, info, "labels")
		return nil, err
	}), img.Target)
}
