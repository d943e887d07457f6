package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/internal/clikeys"
	"imgcrypt/internal/cliselect"
	"imgcrypt/internal/oneline"
	"imgcrypt/keys"
)

func encryptCommand() *cli.Command {
	flags := []cli.Flag{
		&cli.StringSliceFlag{Name: "recipient", Usage: "`RECIPIENT` who can open the image, as in jwe:pub.pem (repeatable)"},
		&cli.BoolFlag{Name: "all-platforms", Usage: "Encrypt for all platforms; this is the default"},
	}
	return newCommand("encrypt", "Encrypt an image for recipients", "<local> [<new name>]", slices.Concat(flags, cliselect.Flags(), clikeys.Flags()), encrypt,
		`Encrypt the layers of an image for the holders of the private keys that belong to
the recipients: all of them, unless --layer or --platform select some. The
result is named <new name>, or takes over the name of the image. Encrypting an
encrypted image adds the recipients, which needs a --key that opens it.

Recipients: jwe:FILE (public key), pkcs7:FILE (certificate), pgp:WHO or pgp:FILE,
pkcs11:FILE (public key or YAML), provider:NAME[:PARAMETER].`)
}

func decryptCommand() *cli.Command {
	return newCommand("decrypt", "Decrypt an image", "<local> [<new name>]", slices.Concat(cliselect.Flags(), clikeys.Flags()), decrypt,
		`Decrypt the encrypted layers of an image: all that are here, unless --layer or
--platform select some. The result is named <new name>, or takes over the name
of the image. Once all is decrypted, it has the digest that it had before.`)
}

func layerinfoCommand() *cli.Command {
	n := &cli.BoolFlag{Name: "n", Usage: "Show pgp recipients by key id, not by address"}
	return newCommand("layerinfo", "Show how the layers of an image are encrypted", "<local>", slices.Concat(cliselect.Flags(), clikeys.GPGFlags(), []cli.Flag{n}), layerinfo,
		"List the layers of an image, with the schemes that they are encrypted with and who can\n"+
			"open them, as far as the image tells. Platforms that are not here are left out.")
}

func newCommand(name, usage, args string, flags []cli.Flag, action func(context.Context, *job) error, description string) *cli.Command {
	return &cli.Command{
		Name: name, Usage: usage, ArgsUsage: "[flags] " + args, Description: description, Flags: flags,
		// A password may contain commas.
		DisableSliceFlagSeparator: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			j, err := newJob(ctx, cmd)
			if err != nil {
				return err
			}
			ctx, client, done, err := connect(ctx, cmd)
			if err != nil {
				return err
			}
			defer done()
			j.client, j.tags, j.store = client, encryption.NewTags(client.ImageService()), encryption.NewStore(client.ContentStore())
			return action(ctx, j)
		},
	}
}

// job is one run of encrypt, decrypt or layerinfo.
type job struct {
	cmd         *cli.Command
	local, name string
	schemes     []keys.Scheme
	recipients  []keys.Recipient
	identities  []keys.Identity
	client      *containerd.Client
	tags        imgcrypt.Tags
	store       imgcrypt.Store
}

// newJob reads arguments and keys, before there is a connection.
func newJob(ctx context.Context, cmd *cli.Command) (*job, error) {
	j := &job{cmd: cmd, local: cmd.Args().First(), name: cmp.Or(cmd.Args().Get(1), cmd.Args().First())}
	recipients := cmd.StringSlice("recipient")
	switch most := strings.Count(cmd.ArgsUsage, "<"); {
	case j.local == "" || cmd.NArg() > most:
		return nil, fmt.Errorf("usage: %s %s", cmd.FullName(), cmd.ArgsUsage)
	case cmd.Bool("all-platforms") && cmd.IsSet("platform"):
		return nil, errors.New("cannot specify both --platform and --all-platforms")
	case cmd.Name == "encrypt" && len(recipients) == 0:
		return nil, errors.New("no recipient: give at least one --recipient, as in --recipient jwe:pub.pem")
	}
	parser, err := clikeys.Parser(cmd)
	if err != nil {
		return nil, err
	}
	j.schemes = parser.Schemes
	for _, text := range recipients {
		r, err := parser.Recipient(ctx, text)
		if err != nil {
			return nil, err
		}
		j.recipients = append(j.recipients, r)
	}
	j.identities, _, err = clikeys.Identities(cmd, parser)
	return j, err
}

func encrypt(ctx context.Context, j *job) error {
	return j.rewrite(ctx, "all recipients can open it already", func(ctx context.Context, root ocispec.Descriptor, chosen imgcrypt.Selection) (imgcrypt.Result, error) {
		return imgcrypt.Encrypt(ctx, j.store, root, imgcrypt.EncryptOptions{Recipients: j.recipients, Identities: j.identities, Select: chosen, Notify: j.notify})
	})
}

func decrypt(ctx context.Context, j *job) error {
	return j.rewrite(ctx, "nothing to decrypt", func(ctx context.Context, root ocispec.Descriptor, chosen imgcrypt.Selection) (imgcrypt.Result, error) {
		missing := chosen.Platform == nil // What was pulled for one platform is decrypted for that one.
		return imgcrypt.Decrypt(ctx, j.store, root, imgcrypt.DecryptOptions{Identities: j.identities, Select: chosen, KeepMissing: missing, Notify: j.notify})
	})
}

// rewrite has work rewrite the image, names the result and says what was done, or nothing where nothing was.
func (j *job) rewrite(ctx context.Context, nothing string, work func(context.Context, ocispec.Descriptor, imgcrypt.Selection) (imgcrypt.Result, error)) error {
	return leased(ctx, j.client, func(ctx context.Context) error {
		img, chosen, err := j.inspect(ctx)
		if err != nil {
			return err
		}
		res, err := work(ctx, img.Desc, chosen)
		if missing := new(imgcrypt.MissingError); errors.As(err, &missing) {
			err = fmt.Errorf("%w (choose what is here with --platform)", err)
		}
		if err == nil {
			err = j.tags.Tag(ctx, j.name, res.Desc)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", j.local, err)
		}
		if res.Layers > 0 {
			nothing = fmt.Sprintf("%sed layers: %d, now %s", j.cmd.Name, res.Layers, res.Desc.Digest)
		}
		_, err = fmt.Fprintf(j.cmd.Root().Writer, "%s: %s\n", j.name, nothing)
		return err
	})
}

func (j *job) notify(n imgcrypt.Notice) {
	fmt.Fprintf(j.cmd.Root().ErrWriter, "%s: note: %s\n", name, oneline.Of(n.Text))
}

// inspect returns what the image is, and what the flags choose of it. A flag that chooses nothing is an error.
func (j *job) inspect(ctx context.Context) (img imgcrypt.Image, chosen imgcrypt.Selection, err error) {
	root, err := j.tags.Resolve(ctx, j.local)
	if id, ok := leases.FromContext(ctx); ok && err == nil {
		// It stays until the work is done, with all that it refers to, whatever becomes of its name meanwhile.
		err = j.client.LeasesService().AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: root.Digest.String(), Type: "content"})
	}
	if err == nil {
		img, err = imgcrypt.Inspect(ctx, j.store, root, imgcrypt.InspectOptions{Schemes: j.schemes})
	}
	if err != nil {
		return img, chosen, err
	}
	chosen, err = cliselect.Selection(j.cmd, img)
	return img, chosen, err
}

func layerinfo(ctx context.Context, j *job) error {
	img, chosen, err := j.inspect(ctx)
	if err != nil {
		return err
	}
	// The parameters are those of containerd's imgcrypt, whose output scripts parse.
	w := tabwriter.NewWriter(j.cmd.Root().Writer, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "#\tDIGEST\tPLATFORM\tSIZE\tENCRYPTION\tRECIPIENTS\t")
	for _, m := range img.Manifests {
		if chosen.Platform != nil && !chosen.Platform(m.Platform) {
			continue
		}
		for _, l := range m.Layers {
			if chosen.Layer != nil && !chosen.Layer(imgcrypt.Layer{Index: l.Index, Count: len(m.Layers)}) {
				continue
			}
			var recipients []string
			for _, r := range l.Recipients {
				recipients = append(recipients, r.Name)
			}
			platform := oneline.Of(platforms.Format(*cmp.Or(m.Platform, &ocispec.Platform{})))
			fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\t%s\t\n", l.Index, l.Digest, platform, l.Size, strings.Join(l.Schemes, ","), strings.Join(recipients, ", "))
		}
	}
	return w.Flush()
}
