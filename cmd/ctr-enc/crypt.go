package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
)

func encryptCommand() *cli.Command {
	flags := []cli.Flag{
		&cli.StringSliceFlag{
			Name:  "recipient",
			Usage: "`RECIPIENT` who can open the image, as in jwe:pub.pem; may be given several times",
		},
		&cli.BoolFlag{
			Name:  "all-platforms",
			Usage: "Encrypt for all platforms; this is the default",
		},
	}
	return newCommand("encrypt", "Encrypt an image for recipients", "<local> [<new name>]", slices.Concat(flags, selectFlags(), keyFlags()), encrypt,
		`Encrypt the layers of an image for the holders of the private keys that belong to
the recipients: all of them, unless --layer or --platform select some. The
result is named <new name>, or takes over the name of the image. Encrypting an
encrypted image adds the recipients, which needs a --key that opens it.

Recipients: jwe:FILE, a public key (RSA or EC; PEM, DER or JWK).`)
}

func decryptCommand() *cli.Command {
	return newCommand("decrypt", "Decrypt an image", "<local> [<new name>]", slices.Concat(selectFlags(), keyFlags()), decrypt,
		`Decrypt the encrypted layers of an image: all that are here, unless --layer or
--platform select some. The result is named <new name>, or takes over the name
of the image. It has the digest that the image had before it was encrypted, once
all of it is decrypted.`)
}

func newCommand(name, usage, args string, flags []cli.Flag, action cli.ActionFunc, description string) *cli.Command {
	return &cli.Command{
		Name:        name,
		Usage:       usage,
		ArgsUsage:   "[flags] " + args,
		Description: description,
		Flags:       flags,
		// A password may contain commas.
		DisableSliceFlagSeparator: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return interruptible(ctx, func(ctx context.Context) error { return action(ctx, cmd) })
		},
	}
}

// job is one run of encrypt, decrypt or layerinfo.
type job struct {
	cmd         *cli.Command
	local, name string
	parser      keys.Parser
	identities  []keys.Identity
	platforms   choices[*ocispec.Platform]
	layers      choices[imgcrypt.Layer]
}

func newJob(cmd *cli.Command) (*job, error) {
	j := &job{
		cmd:    cmd,
		local:  cmd.Args().First(),
		name:   cmd.Args().Get(1),
		parser: keys.Parser{Schemes: schemes.All(), Files: new(keys.Files)},
		layers: layerChoices(cmd),
	}
	if j.local == "" {
		return nil, fmt.Errorf("please provide the name of an image: %s %s", cmd.FullName(), cmd.ArgsUsage)
	}
	if most := strings.Count(cmd.ArgsUsage, "<"); cmd.NArg() > most {
		return nil, fmt.Errorf("too many arguments: %q", cmd.Args().Slice()[most:])
	}
	if j.name == "" {
		j.name = j.local
	}
	if len(cmd.StringSlice("dec-recipient")) > 0 {
		return nil, errors.New("--dec-recipient: pkcs7 is not built yet")
	}
	var err error
	if j.platforms, err = platformChoices(cmd); err != nil {
		return nil, err
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

func (j *job) selection() imgcrypt.Selection {
	return imgcrypt.Selection{Platform: j.platforms.pick(), Layer: j.layers.pick()}
}

// unused fails if a --platform or --layer chose nothing.
func (j *job) unused() error {
	return errors.Join(j.platforms.check(), j.layers.check())
}

func (j *job) notify(n imgcrypt.Notice) {
	fmt.Fprintf(j.cmd.Root().ErrWriter, "%s: note: %s\n", name, n.Text)
}

func encrypt(ctx context.Context, cmd *cli.Command) error {
	j, err := newJob(cmd)
	if err != nil {
		return err
	}
	if cmd.Bool("all-platforms") && len(j.platforms) > 0 {
		return errors.New("cannot specify both --platform and --all-platforms")
	}
	opts := imgcrypt.EncryptOptions{Identities: j.identities, Select: j.selection(), Notify: j.notify}
	for _, text := range cmd.StringSlice("recipient") {
		r, err := j.parser.Recipient(text)
		if err != nil {
			return err
		}
		opts.Recipients = append(opts.Recipients, r)
	}
	if len(opts.Recipients) == 0 {
		return errors.New("no recipient: give at least one --recipient, as in --recipient jwe:pub.pem")
	}
	return j.run(ctx, "all recipients can open it already",
		func(ctx context.Context, s imgcrypt.Store, root ocispec.Descriptor) (imgcrypt.Result, error) {
			return imgcrypt.Encrypt(ctx, s, root, opts)
		})
}

func decrypt(ctx context.Context, cmd *cli.Command) error {
	j, err := newJob(cmd)
	if err != nil {
		return err
	}
	opts := imgcrypt.DecryptOptions{
		Identities: j.identities,
		Select:     j.selection(),
		// What was pulled for one platform is decrypted for that one.
		KeepMissing: len(j.platforms) == 0,
		Notify:      j.notify,
	}
	return j.run(ctx, "nothing to decrypt",
		func(ctx context.Context, s imgcrypt.Store, root ocispec.Descriptor) (imgcrypt.Result, error) {
			return imgcrypt.Decrypt(ctx, s, root, opts)
		})
}

// run has work rewrite the image, names the result and says what was done; nothing is what it says where
// there was nothing to do.
func (j *job) run(ctx context.Context, nothing string, work func(context.Context, imgcrypt.Store, ocispec.Descriptor) (imgcrypt.Result, error)) error {
	ctx, client, done, err := connect(ctx, j.cmd)
	if err != nil {
		return err
	}
	defer done()
	var res imgcrypt.Result
	err = leased(ctx, client, func(ctx context.Context) (err error) {
		res, err = j.rewrite(ctx, client, work)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", j.local, err)
	}
	if res.Layers > 0 {
		nothing = fmt.Sprintf("%sed %d layers: %s", j.cmd.Name, res.Layers, res.Desc.Digest)
	}
	fmt.Fprintf(j.cmd.Root().Writer, "%s: %s\n", j.name, nothing)
	return nil
}

func (j *job) rewrite(ctx context.Context, client *containerd.Client, work func(context.Context, imgcrypt.Store, ocispec.Descriptor) (imgcrypt.Result, error)) (imgcrypt.Result, error) {
	tags := encryption.NewTags(client.ImageService())
	root, err := tags.Resolve(ctx, j.local)
	if err != nil {
		return imgcrypt.Result{}, err
	}
	res, err := work(ctx, encryption.NewStore(client.ContentStore()), root)
	var missing *imgcrypt.MissingError
	switch {
	case errors.As(err, &missing):
		return res, fmt.Errorf("%w (choose what is here with --platform)", err)
	case err != nil:
		return res, err
	}
	if err := j.unused(); err != nil {
		return res, err
	}
	return res, tags.Tag(ctx, j.name, res.Desc)
}
