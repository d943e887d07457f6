package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"imgcrypt"
	"imgcrypt/internal/clikeys"
	"imgcrypt/internal/cliselect"
	"imgcrypt/internal/oneline"
	"imgcrypt/keys"
	"imgcrypt/store"
)

// job is one run of a command.
type job struct {
	cmd        *cli.Command
	places     *opener
	schemes    []keys.Scheme
	recipients []keys.Recipient
	// identities are the keys that were given, which are so many, and then those
	// that need no naming.
	identities []keys.Identity
	given      int
}

// flags returns those of a command that has places, with these of its own.
func flags(own ...cli.Flag) []cli.Flag {
	return append(own,
		&cli.IntFlag{Name: "jobs", Usage: "Work on `N` layers at the same time", Value: runtime.NumCPU(), Validator: func(n int) error {
			if n < 1 {
				return errors.New("at least 1")
			}
			return nil
		}},
		&cli.BoolFlag{Name: "json", Usage: "Print JSON"},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "Print no notes"},
	)
}

// keyFlags name private keys.
func keyFlags() []cli.Flag {
	list := clikeys.Flags()
	for _, f := range list {
		if key, ok := f.(*cli.StringSliceFlag); ok && key.Name == "key" {
			key.Aliases = []string{"k"}
		}
	}
	return list
}

func recipientFlag(usage string) cli.Flag {
	return &cli.StringSliceFlag{Name: "recipient", Aliases: []string{"r"}, Usage: usage}
}

// action returns the action of a command with at least and at most so many arguments.
func action(least, most int, do func(context.Context, *job) error) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		if n := cmd.NArg(); n < least || n > most {
			return usageError{fmt.Errorf("usage: %s %s", cmd.FullName(), cmd.ArgsUsage)}
		}
		j := &job{cmd: cmd, places: newOpener(cmd)}
		err := do(ctx, j)
		return errors.Join(err, j.places.close())
	}
}

// readKeys reads keys, and recipients if the command has any. It is done before any
// place is opened.
func (j *job) readKeys(ctx context.Context, recipients bool) error {
	parser, err := clikeys.Parser(j.cmd)
	if err != nil {
		return err
	}
	j.schemes = parser.Schemes
	if recipients {
		for _, text := range j.cmd.StringSlice("recipient") {
			r, err := parser.Recipient(ctx, text)
			if err != nil {
				return err
			}
			j.recipients = append(j.recipients, r)
		}
	}
	j.identities, j.given, err = clikeys.Identities(j.cmd, parser)
	return err
}

func (j *job) notify(n imgcrypt.Notice) { j.note(n.Text) }

func (j *job) note(text string) {
	if !j.cmd.Bool("quiet") {
		fmt.Fprintf(j.cmd.Root().ErrWriter, "%s: note: %s\n", name, oneline.Of(text))
	}
}

// print writes what a command found, as JSON.
func (j *job) print(v any) error {
	e := json.NewEncoder(j.cmd.Root().Writer)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// image opens the first argument's place and reads which manifests and layers are there.
func (j *job) image(ctx context.Context, write bool) (*place, imgcrypt.Image, imgcrypt.Selection, error) {
	var img imgcrypt.Image
	p, err := j.places.place(ctx, j.cmd.Args().First(), write)
	if err != nil {
		return nil, img, imgcrypt.Selection{}, err
	}
	root, err := p.resolve(ctx)
	if err != nil {
		return nil, img, imgcrypt.Selection{}, err
	}
	if img, err = imgcrypt.Inspect(ctx, p, root, imgcrypt.InspectOptions{Schemes: j.schemes}); err != nil {
		return nil, img, imgcrypt.Selection{}, fmt.Errorf("%s: %w", p, err)
	}
	chosen, err := cliselect.Selection(j.cmd, img)
	return p, img, chosen, err
}

// outcome is what a command that rewrites an image prints as JSON.
type outcome struct {
	Name   string        `json:"name"`
	Digest digest.Digest `json:"digest"`
	// Layers counts those that were worked on.
	Layers int `json:"layers"`
}

// work rewrites an image in a store, as far as it is chosen.
type work func(context.Context, imgcrypt.Store, ocispec.Descriptor, imgcrypt.Selection) (imgcrypt.Result, error)

// rewrite has work rewrite the image of the first argument, and names the result what
// the second argument says, or as the image was named. If always is not set, an image in
// which nothing was to do is not written.
func (j *job) rewrite(ctx context.Context, always bool, do work) (before, after ocispec.Descriptor, dst *place, err error) {
	inPlace := j.cmd.NArg() < 2
	if !inPlace {
		if dst, err = j.places.place(ctx, j.cmd.Args().Get(1), true); err != nil {
			return before, after, nil, err
		}
	}
	src, img, chosen, err := j.image(ctx, inPlace)
	if err != nil {
		return before, after, nil, err
	}
	before = img.Desc
	if inPlace {
		dst = src
		if namer, ok := src.Store.(interface {
			Name(context.Context, string) (string, error)
		}); ok {
			if dst.ref, err = namer.Name(ctx, src.ref); err != nil {
				return before, after, nil, fmt.Errorf("%s: %w", src, err)
			}
		}
	}
	if !always && !inPlace && dst.key == src.key && dst.ref == src.ref {
		return before, after, nil, usageError{fmt.Errorf("%s: SRC and DST are the same; --in-place says that this is meant", dst)}
	}
	if digest.Digest(dst.ref).Validate() == nil {
		return before, after, nil, usageError{fmt.Errorf("%s: the result needs a name, and this is a digest", dst)}
	}
	var s imgcrypt.Store = src
	var transfer *store.Transfer
	if dst.key != src.key {
		transfer = store.NewTransfer(src, dst, store.TransferOptions{Jobs: j.cmd.Int("jobs")})
		s = transfer
	}
	res, err := do(ctx, s, before, chosen)
	if err != nil {
		return before, after, nil, fmt.Errorf("%s: %w", src, err)
	}
	after = res.Desc
	if res.Layers == 0 && !always {
		return before, after, dst, errNothing
	}
	if transfer != nil && after.Digest == before.Digest {
		err = transfer.Copy(ctx, before)
	}
	if err == nil {
		err = dst.Tag(ctx, dst.ref, after)
	}
	if err != nil {
		return before, after, nil, fmt.Errorf("%s: %w", dst, err)
	}
	if j.cmd.Bool("json") {
		err = j.print(outcome{Name: dst.name(after), Digest: after.Digest, Layers: res.Layers})
	} else {
		_, err = fmt.Fprintln(j.cmd.Root().Writer, dst.name(after))
	}
	return before, after, dst, err
}

// replaced says, or has the registry see to it, that the image before after can no more
// be had.
func (j *job) replaced(ctx context.Context, before, after ocispec.Descriptor, dst *place) error {
	if j.cmd.NArg() > 1 || before.Digest == after.Digest {
		return nil
	}
	deleter, ok := dst.Store.(interface {
		Delete(context.Context, ocispec.Descriptor) error
	})
	switch {
	case !ok:
		return nil
	case j.cmd.Bool("delete-plain"):
		return j.deletePlain(ctx, before, after, dst, deleter.Delete)
	}
	j.note(fmt.Sprintf("the image as it was stays to be had as %s@%s until the registry deletes it", dst.prefix, before.Digest))
	return nil
}

// deletePlain deletes the image before and those of its manifests that after has not.
func (j *job) deletePlain(ctx context.Context, before, after ocispec.Descriptor, dst *place, remove func(context.Context, ocispec.Descriptor) error) error {
	stays := map[digest.Digest]bool{after.Digest: true}
	now, err := imgcrypt.Inspect(ctx, dst, after, imgcrypt.InspectOptions{})
	if err != nil {
		return err
	}
	for _, m := range now.Manifests {
		stays[m.Desc.Digest] = true
	}
	was, err := imgcrypt.Inspect(ctx, dst, before, imgcrypt.InspectOptions{})
	if err != nil {
		return err
	}
	gone := []ocispec.Descriptor{before}
	for _, m := range was.Manifests {
		if m.Desc.Digest != before.Digest && !m.Missing {
			gone = append(gone, m.Desc)
		}
	}
	for _, desc := range gone {
		if stays[desc.Digest] {
			continue
		}
		stays[desc.Digest] = true // once
		if err := remove(ctx, desc); err != nil {
			return fmt.Errorf("the image is encrypted, but %s@%s was not deleted: %w", dst.prefix, desc.Digest, err)
		}
	}
	j.note(fmt.Sprintf("%s@%s and its manifests are deleted, under whatever names; the registry keeps their layers until it collects garbage", dst.prefix, before.Digest))
	return nil
}

// hintFor says what may help where an error alone does not.
func hintFor(err error) string {
	var missing *imgcrypt.MissingError
	switch {
	case errors.Is(err, errNothing):
		return "no layer is encrypted, or none of those that were chosen"
	case errors.Is(err, errNobody):
		return "imgcrypt inspect shows who there is, and by which names"
	case errors.Is(err, errPlain):
		return "imgcrypt encrypt encrypts it"
	case errors.Is(err, imgcrypt.ErrLastRecipient):
		return "add another recipient first, or replace all with: imgcrypt recipients set"
	case errors.Is(err, imgcrypt.ErrSharedPacket):
		return "name those who shall stay with: imgcrypt recipients set"
	case errors.As(err, &missing):
		return "choose what is there with --platform"
	}
	return ""
}
