package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

// markLabel begins the label by which the images of an import are found.
const markLabel = "imgcrypt.import/"

// importWithKeys has ctr import without unpacking, and unpacks from here, since only a client can send keys
// along. ctr does not say which names it has created or replaced, so it is made to label them; the label is
// removed again.
func importWithKeys(action cli.ActionFunc) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		if cmd.Bool("no-unpack") || cmd.NArg() == 0 {
			return action(ctx, cmd)
		}
		keys, err := readKeys(cmd)
		if err != nil {
			return err
		}
		cctx, client, done, err := connect(ctx, cmd)
		if err != nil {
			return err
		}
		defer done()
		i := importer{client: client, cmd: cmd, mark: markLabel + rand.Text(), start: time.Now()}
		if err := i.prepare(cctx); err != nil {
			return err
		}
		err = action(ctx, cmd)
		imported, ferr := i.finish(cctx)
		if err == nil {
			err = ferr
		}
		if err != nil {
			return err
		}
		return interruptible(cctx, func(ctx context.Context) error { return i.unpack(ctx, keys, imported) })
	}
}

// importer is one import.
type importer struct {
	client *containerd.Client
	cmd    *cli.Command
	mark   string
	start  time.Time
	// labels are those that the existing images had before, where the import keeps them.
	labels map[string]map[string]string
	// discard says that the layers are not kept. ctr refuses it without unpacking.
	discard bool
}

// prepare changes cmd's flags for ctr.
func (i *importer) prepare(ctx context.Context) error {
	if i.cmd.Bool("local") && !i.cmd.IsSet("label") {
		before, err := i.client.ImageService().List(ctx)
		if err != nil {
			return err
		}
		i.labels = make(map[string]map[string]string, len(before))
		for _, img := range before {
			i.labels[img.Name] = img.Labels
		}
	}
	flags := [][2]string{{"label", i.mark + "=true"}, {"no-unpack", "true"}}
	if i.cmd.Bool("local") && i.cmd.Bool("discard-unpacked-layers") {
		i.discard = true
		flags = append(flags, [2]string{"discard-unpacked-layers", "false"})
	}
	for _, f := range flags {
		if err := i.cmd.Set(f[0], f[1]); err != nil {
			return err
		}
	}
	return nil
}

// finish returns the imported images, their labels as they would be without the mark.
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
	platform, err := i.platform()
	if err != nil {
		return err
	}
	for _, img := range imported {
		if !i.cmd.Bool("local") {
			if err := keys.open(ctx, i.client, i.cmd, img, platform); err != nil {
				return err
			}
			continue
		}
		out := i.cmd.Root().Writer
		fmt.Fprintf(out, "unpacking %s (%s)...", img.Name, img.Target.Digest)
		if err := keys.openStrictly(ctx, i.client, i.cmd, img, platform); err != nil {
			fmt.Fprintln(out)
			return err
		}
		fmt.Fprintln(out, "done")
		if i.discard {
			if err := i.releaseLayers(ctx, img); err != nil {
				return err
			}
		}
	}
	return nil
}

// platform returns what an import unpacks. Locally, ctr is strict about variants.
func (i *importer) platform() (platforms.MatchComparer, error) {
	text := i.cmd.String("platform")
	if !i.cmd.Bool("local") {
		if i.cmd.Bool("all-platforms") {
			return platforms.Default(), nil
		}
		return platformOf(i.cmd)
	}
	if text == "" {
		return platforms.DefaultStrict(), nil
	}
	p, err := platforms.Parse(text)
	if err != nil {
		return nil, err
	}
	return platforms.OnlyStrict(p), nil
}

// releaseLayers has the garbage collector remove the layers of an image that was new to containerd.
func (i *importer) releaseLayers(ctx context.Context, img images.Image) error {
	cs := i.client.ContentStore()
	handler := func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		info, err := cs.Info(ctx, desc.Digest)
		if err != nil || !images.IsManifestType(desc.MediaType) || info.CreatedAt.Before(i.start) {
			return nil, err
		}
		var paths []string
		update := content.Info{Digest: desc.Digest, Labels: map[string]string{}}
		for label := range info.Labels {
			if strings.HasPrefix(label, "containerd.io/gc.ref.content.l.") {
				update.Labels[label] = ""
				paths = append(paths, "labels."+label)
			}
		}
		if len(paths) > 0 {
			_, err = cs.Update(ctx, update, paths...)
		}
		return nil, err
	}
	children := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if !images.IsIndexType(desc.MediaType) {
			return nil, nil
		}
		return images.Children(ctx, cs, desc)
	})
	return images.Walk(ctx, images.Handlers(images.HandlerFunc(handler), images.FilterPlatforms(children, platforms.All)), img.Target)
}
