package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
)

// selectFlags are the flags that choose layers.
func selectFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntSliceFlag{
			Name:  "layer",
			Usage: "Number `N` of a layer, from 0 or, negative, from the top; may be given several times (default: all layers)",
		},
		&cli.StringSliceFlag{
			Name:  "platform",
			Usage: "Platform of the layers; may be given several times (default: all platforms)",
		},
	}
}

func encryptCommand() *cli.Command {
	return &cli.Command{
		Name:      "encrypt",
		Usage:     "Encrypt an image for recipients",
		ArgsUsage: "[flags] <local> [<new name>]",
		Description: `Encrypt the layers of an image that is here, for the holders of the private keys
that belong to the recipients. All layers for all platforms are encrypted
unless --layer or --platform say otherwise.

The result is named <new name>, or takes over the name of the image. Encrypting
an encrypted image adds the recipients, which needs a --key that opens it.

Recipients: jwe:FILE, a public key (RSA or EC; PEM, DER or JWK).
`,
		Flags: slices.Concat([]cli.Flag{
			&cli.StringSliceFlag{
				Name:  "recipient",
				Usage: "`RECIPIENT` who can open the image, as in jwe:pub.pem; may be given several times",
			},
			&cli.BoolFlag{
				Name:  "all-platforms",
				Usage: "Encrypt for all platforms; this is the default",
			},
		}, selectFlags(), keyFlags()),
		DisableSliceFlagSeparator: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return interruptible(ctx, func(ctx context.Context) error { return encrypt(ctx, cmd) })
		},
	}
}

func decryptCommand() *cli.Command {
	return &cli.Command{
		Name:      "decrypt",
		Usage:     "Decrypt an image",
		ArgsUsage: "[flags] <local> [<new name>]",
		Description: `Decrypt the layers of an image that is here. All layers that are encrypted, for
all platforms that are here, are decrypted unless --layer or --platform say
otherwise.

The result is named <new name>, or takes over the name of the image. Once all of
an image is decrypted, it has the digest that it had before it was encrypted.
`,
		Flags:                     slices.Concat(selectFlags(), keyFlags()),
		DisableSliceFlagSeparator: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return interruptible(ctx, func(ctx context.Context) error { return decrypt(ctx, cmd) })
		},
	}
}

func encrypt(ctx context.Context, cmd *cli.Command) error {
	job, err := newJob(cmd)
	if err != nil {
		return err
	}
	if cmd.Bool("all-platforms") && len(job.platforms) > 0 {
		return errors.New("cannot specify both --platform and --all-platforms")
	}
	var recipients []keys.Recipient
	for _, text := range cmd.StringSlice("recipient") {
		r, err := job.parser.Recipient(text)
		if err != nil {
			return err
		}
		recipients = append(recipients, r)
	}
	if len(recipients) == 0 {
		return errors.New("no recipient: give at least one --recipient, as in --recipient jwe:pub.pem")
	}
	return job.run(ctx, "encrypted", "all recipients can open it already",
		func(ctx context.Context, s imgcrypt.Store, root ocispec.Descriptor) (imgcrypt.Result, error) {
			return imgcrypt.Encrypt(ctx, s, root, imgcrypt.EncryptOptions{
				Recipients: recipients,
				Identities: job.identities,
				Select:     job.selection(),
				Notify:     job.notify,
			})
		})
}

func decrypt(ctx context.Context, cmd *cli.Command) error {
	job, err := newJob(cmd)
	if err != nil {
		return err
	}
	return job.run(ctx, "decrypted", "nothing to decrypt",
		func(ctx context.Context, s imgcrypt.Store, root ocispec.Descriptor) (imgcrypt.Result, error) {
			return imgcrypt.Decrypt(ctx, s, root, imgcrypt.DecryptOptions{
				Identities:  job.identities,
				Select:      job.selection(),
				KeepMissing: len(job.platforms) == 0,
				Notify:      job.notify,
			})
		})
}

// job is one run of encrypt or decrypt.
type job struct {
	cmd        *cli.Command
	local, new string
	parser     keys.Parser
	identities []keys.Identity
	platforms  []platformFlag
	layers     []layerFlag
}

// platformFlag and layerFlag are one --platform and one --layer, and whether anything fitted.
type platformFlag struct {
	text string
	platforms.Matcher
	used bool
}

type layerFlag struct {
	number int
	used   bool
}

func newJob(cmd *cli.Command) (*job, error) {
	j := &job{cmd: cmd, parser: keys.Parser{Schemes: schemes.All(), Files: new(keys.Files)}}
	j.local, j.new = cmd.Args().First(), cmd.Args().Get(1)
	switch {
	case j.local == "":
		return nil, fmt.Errorf("please provide the name of an image to %s", cmd.Name)
	case cmd.NArg() > 2:
		return nil, fmt.Errorf("too many arguments: %s", strings.Join(cmd.Args().Slice()[2:], " "))
	case j.new == "":
		j.new = j.local
	}
	for _, text := range cmd.StringSlice("platform") {
		p, err := platforms.Parse(text)
		if err != nil {
			return nil, err
		}
		j.platforms = append(j.platforms, platformFlag{text: text, Matcher: platforms.NewMatcher(p)})
	}
	for _, number := range cmd.IntSlice("layer") {
		j.layers = append(j.layers, layerFlag{number: number})
	}
	if len(cmd.StringSlice("dec-recipient")) > 0 {
		return nil, errors.New("--dec-recipient: pkcs7 is not built yet")
	}
	for _, text := range cmd.StringSlice("key") {
		id, err := j.parser.Identity(text)
		if err != nil {
			return nil, err
		}
		j.identities = append(j.identities, id)
	}
	return j, nil
}

// selection is what the flags chose; it remembers what was used.
func (j *job) selection() imgcrypt.Selection {
	var s imgcrypt.Selection
	if len(j.platforms) > 0 {
		s.Platform = func(p *ocispec.Platform) bool {
			return anyOf(j.platforms, func(f *platformFlag) bool {
				f.used = f.used || p != nil && f.Match(*p)
				return p != nil && f.Match(*p)
			})
		}
	}
	if len(j.layers) > 0 {
		s.Layer = func(l imgcrypt.Layer) bool {
			return anyOf(j.layers, func(f *layerFlag) bool {
				fits := f.number == l.Index || f.number == l.Index-l.Count
				f.used = f.used || fits
				return fits
			})
		}
	}
	return s
}

// anyOf asks about every flag, as each has to remember that it was used.
func anyOf[T any](flags []T, fits func(*T) bool) bool {
	found := false
	for i := range flags {
		found = fits(&flags[i]) || found
	}
	return found
}

// unused fails if a flag chose nothing.
func (j *job) unused() error {
	for _, f := range j.platforms {
		if !f.used {
			return fmt.Errorf("--platform %s: %w", f.text, imgcrypt.ErrNothingSelected)
		}
	}
	for _, f := range j.layers {
		if !f.used {
			return fmt.Errorf("--layer %d: %w", f.number, imgcrypt.ErrNothingSelected)
		}
	}
	return nil
}

func (j *job) notify(n imgcrypt.Notice) {
	fmt.Fprintf(j.cmd.Root().ErrWriter, "%s: note: %s\n", name, n.Text)
}

// run has work rewrite the image, names the result, and says what happened; nothing is what is said
// where there was nothing to do.
func (j *job) run(ctx context.Context, did, nothing string, work func(context.Context, imgcrypt.Store, ocispec.Descriptor) (imgcrypt.Result, error)) error {
	ctx, client, done, err := connect(ctx, j.cmd)
	if err != nil {
		return err
	}
	defer done()
	var res imgcrypt.Result
	err = leased(ctx, client, func(ctx context.Context) error {
		img, err := client.ImageService().Get(ctx, j.local)
		if err != nil {
			return err
		}
		res, err = work(ctx, encryption.NewStore(client.ContentStore()), img.Target)
		if err != nil {
			return hint(err)
		}
		if err := j.unused(); err != nil {
			return err
		}
		img.Target = res.Desc
		return j.tag(ctx, client, img)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", j.local, err)
	}
	out := j.cmd.Root().Writer
	if res.Layers == 0 {
		fmt.Fprintf(out, "%s: %s\n", j.local, nothing)
	} else {
		fmt.Fprintf(out, "%s: %s %d layers of %s\n", j.new, did, res.Layers, j.local)
	}
	return nil
}

// tag names the result in one step. A new name gets the labels of the image, an existing one keeps its own.
func (j *job) tag(ctx context.Context, client *containerd.Client, img images.Image) error {
	img.Name = j.new
	store := client.ImageService()
	for {
		_, err := store.Update(ctx, img, "target")
		if !errdefs.IsNotFound(err) {
			return err
		}
		_, err = store.Create(ctx, img)
		if !errdefs.IsAlreadyExists(err) {
			return err
		}
	}
}

// hint says what to do about a platform that is not here.
func hint(err error) error {
	var missing *imgcrypt.MissingError
	if errors.As(err, &missing) {
		return fmt.Errorf("%w (select what is here with --platform)", err)
	}
	return err
}
