package main

import (
	"context"
	"errors"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"imgcrypt"
	"imgcrypt/internal/cliselect"
	"imgcrypt/keys/schemes"
)

func recipientsCommand() *cli.Command {
	sub := func(name, usage, description string, own []cli.Flag, do func(context.Context, *job) error) *cli.Command {
		return &cli.Command{
			Name: name, Usage: usage, Description: description, ArgsUsage: "-r RECIPIENT… IMAGE [DST]",
			Flags: flags(slices.Concat(own, cliselect.Flags())...), Action: action(1, 2, do),
		}
	}
	who := recipientFlag("`RECIPIENT`, as in jwe:pub.pem (repeatable)")
	return &cli.Command{
		Name: "recipients", Usage: "Manage who can open an image", ArgsUsage: "add|remove|set",
		Description: `Change who can open an encrypted image. No layer is read or sent, only manifests are.`,
		Commands: []*cli.Command{
			sub("add", "Add recipients", "Adding one who is there already changes nothing.",
				append([]cli.Flag{who}, keyFlags()...), addRecipients),
			sub("remove", "Remove recipients",
				`RECIPIENT is what inspect shows of one: an id, an address, issuer and serial. No key is
needed. Whoever was removed and kept the old image, or its keys, can still open that
one, and these layers: imgcrypt encrypt --rekey encrypts them anew.`,
				[]cli.Flag{recipientFlag("`RECIPIENT` as inspect shows it (repeatable)")}, removeRecipients),
			sub("set", "Replace all recipients", "These are the only recipients afterwards. For who is removed, see remove.",
				append([]cli.Flag{who}, keyFlags()...), setRecipients),
		},
		Action: func(_ context.Context, cmd *cli.Command) error {
			return usageError{errors.New("recipients takes add, remove or set")}
		},
	}
}

func addRecipients(ctx context.Context, j *job) error { return j.encryptFor(ctx, false) }

func setRecipients(ctx context.Context, j *job) error { return j.encryptFor(ctx, true) }

// encryptFor adds recipients to encrypted layers, or replaces theirs. Plain layers stay.
func (j *job) encryptFor(ctx context.Context, replace bool) error {
	if err := j.readKeys(ctx, true); err != nil {
		return err
	}
	if len(j.recipients) == 0 {
		return usageError{errors.New("no recipient: give at least one -r, as in -r jwe:pub.pem")}
	}
	_, _, _, err := j.rewrite(ctx, true, func(ctx context.Context, s imgcrypt.Store, root ocispec.Descriptor, chosen imgcrypt.Selection) (imgcrypt.Result, error) {
		if err := j.needsEncrypted(ctx, s, root); err != nil {
			return imgcrypt.Result{}, err
		}
		return imgcrypt.Encrypt(ctx, s, root, imgcrypt.EncryptOptions{
			Recipients: j.recipients, Identities: j.identities, Select: onlyEncrypted(chosen), Replace: replace, Notify: func(imgcrypt.Notice) {},
		})
	})
	return err
}

func removeRecipients(ctx context.Context, j *job) error {
	names := j.cmd.StringSlice("recipient")
	if len(names) == 0 {
		return usageError{errors.New("no recipient: give at least one -r, as inspect shows it")}
	}
	if err := j.readKeys(ctx, false); err != nil {
		return err
	}
	_, _, _, err := j.rewrite(ctx, true, func(ctx context.Context, s imgcrypt.Store, root ocispec.Descriptor, chosen imgcrypt.Selection) (imgcrypt.Result, error) {
		if err := j.needsEncrypted(ctx, s, root); err != nil {
			return imgcrypt.Result{}, err
		}
		o := imgcrypt.RemoveOptions{Schemes: j.schemes, Select: chosen, Notify: j.notify, Remove: func(r imgcrypt.Recipient) bool {
			return slices.Contains(names, r.Name) || slices.Contains(names, r.Scheme+" "+r.Name) || slices.Contains(names, r.Scheme) && r.Name == "["+r.Scheme+"]"
		}}
		res, err := imgcrypt.RemoveRecipients(ctx, s, root, o)
		if err == nil && res.Layers == 0 {
			// Where the keyring knows an address, the key's id is a name as good.
			o.Schemes = schemes.All(schemes.Options{})
			res, err = imgcrypt.RemoveRecipients(ctx, s, root, o)
		}
		if err == nil && res.Layers == 0 {
			err = errNobody
		}
		return res, err
	})
	return err
}

var (
	errNobody = errors.New("nobody is called so among its recipients")
	errPlain  = errors.New("no layer of it is encrypted")
)

// needsEncrypted returns an error for an image without any encrypted layer.
func (j *job) needsEncrypted(ctx context.Context, s imgcrypt.Store, root ocispec.Descriptor) error {
	img, err := imgcrypt.Inspect(ctx, s, root, imgcrypt.InspectOptions{})
	if err != nil {
		return err
	}
	for _, m := range img.Manifests {
		if slices.ContainsFunc(m.Layers, func(l imgcrypt.LayerInfo) bool { return l.Encrypted }) {
			return nil
		}
	}
	return errPlain
}

// onlyEncrypted leaves plain layers out of a selection.
func onlyEncrypted(chosen imgcrypt.Selection) imgcrypt.Selection {
	also := chosen.Layer
	chosen.Layer = func(l imgcrypt.Layer) bool { return l.Encrypted() && (also == nil || also(l)) }
	return chosen
}
