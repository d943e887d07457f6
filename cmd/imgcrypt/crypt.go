package main

import (
	"context"
	"errors"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"imgcrypt"
	"imgcrypt/internal/cliselect"
)

func encryptCommand() *cli.Command {
	return &cli.Command{
		Name: "encrypt", Usage: "Encrypt an image for recipients", ArgsUsage: "-r RECIPIENT… SRC [DST]",
		Description: `Encrypt the layers of the image SRC, and name the result DST: all layers of all
platforms, unless --layer or --platform choose some. Without DST the result takes
over the name of the image. In another place than SRC, DST gets what is not
encrypted, too. Encrypting an encrypted image adds the recipients, which needs a
--key that opens it.

Recipients: jwe:FILE (public key), pkcs7:FILE (certificate), pgp:WHO or pgp:FILE,
pkcs11:FILE (public key or YAML), provider:NAME[:PARAMETER].

Who could open the image before, and kept it, can open that one for ever. --rekey
encrypts the layers of an encrypted image anew, with new keys, for the recipients
alone.`,
		Flags: flags(slices.Concat([]cli.Flag{
			recipientFlag("`RECIPIENT` who can open the image, as in jwe:pub.pem (repeatable)"),
			&cli.BoolFlag{Name: "rekey", Usage: "Encrypt encrypted layers anew, with new keys"},
			&cli.BoolFlag{Name: "delete-plain", Usage: "Have the registry delete the image that the result replaces"},
		}, keyFlags(), cliselect.Flags())...),
		Action: action(1, 2, encrypt),
	}
}

func encrypt(ctx context.Context, j *job) error {
	if err := j.readKeys(ctx, true); err != nil {
		return err
	}
	if len(j.recipients) == 0 {
		return usageError{errors.New("no recipient: give at least one -r, as in -r jwe:pub.pem")}
	}
	if j.cmd.Bool("delete-plain") && j.cmd.NArg() > 1 {
		return usageError{errors.New("--delete-plain deletes what the result replaces: leave out DST")}
	}
	before, after, dst, err := j.rewrite(ctx, true, func(ctx context.Context, s imgcrypt.Store, root ocispec.Descriptor, chosen imgcrypt.Selection) (imgcrypt.Result, error) {
		return imgcrypt.Encrypt(ctx, s, root, imgcrypt.EncryptOptions{
			Recipients: j.recipients, Identities: j.identities, Select: chosen,
			Rekey: j.cmd.Bool("rekey"), Jobs: j.cmd.Int("jobs"), Notify: j.notify,
		})
	})
	if err != nil {
		return err
	}
	return j.replaced(ctx, before, after, dst)
}

func decryptCommand() *cli.Command {
	return &cli.Command{
		Name: "decrypt", Usage: "Decrypt an image", ArgsUsage: "[-k KEY…] SRC DST",
		Description: `Decrypt the encrypted layers of the image SRC, and name the result DST: all of
them, unless --layer or --platform choose some. Once all is decrypted, it has the
digest that it had before it was encrypted. Lest somebody publishes it by a slip,
the result only takes over the name of SRC with --in-place.`,
		Flags: flags(slices.Concat([]cli.Flag{
			&cli.BoolFlag{Name: "in-place", Usage: "Give the result the name of SRC"},
		}, keyFlags(), cliselect.Flags())...),
		Action: action(1, 2, decrypt),
	}
}

func decrypt(ctx context.Context, j *job) error {
	if inPlace := j.cmd.Bool("in-place"); inPlace == (j.cmd.NArg() == 2) {
		return usageError{errors.New("give either DST or --in-place")}
	}
	if err := j.readKeys(ctx, false); err != nil {
		return err
	}
	_, _, _, err := j.rewrite(ctx, false, func(ctx context.Context, s imgcrypt.Store, root ocispec.Descriptor, chosen imgcrypt.Selection) (imgcrypt.Result, error) {
		return imgcrypt.Decrypt(ctx, s, root, imgcrypt.DecryptOptions{
			Identities: j.identities, Select: chosen, Jobs: j.cmd.Int("jobs"), Notify: j.notify,
		})
	})
	return err
}
