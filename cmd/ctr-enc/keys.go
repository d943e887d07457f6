package main

import (
	"fmt"
	"slices"

	encconfig "github.com/containers/ocicrypt/config"
	"github.com/urfave/cli/v3"

	"imgcrypt/images/encryption/parsehelpers"
)

// gpgFlags are the flags that say where gpg's keys are.
func gpgFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name:  "gpg-homedir",
			Usage: "Home directory of gpg (default: gpg's own)",
		},
		&cli.StringFlag{
			Name:  "gpg-version",
			Usage: "Version of gpg: 1, 2, v1 or v2 (default: the one that is installed)",
			Validator: func(v string) error {
				if !slices.Contains([]string{"", "1", "2", "v1", "v2"}, v) {
					return fmt.Errorf("gpg version %q is none of 1, 2, v1, v2", v)
				}
				return nil
			},
		},
	}
}

// keyFlags are the flags that name private keys.
func keyFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringSliceFlag{
			Name:  "key",
			Usage: "Private `KEY` that opens the image: FILE, FILE:PASSWORD, FILE:pass=PASSWORD, FILE:file=PATH or FILE:fd=N; may be given several times",
		},
		&cli.StringSliceFlag{
			Name:  "dec-recipient",
			Usage: "Certificate (pkcs7:FILE) that belongs to a private key; may be given several times",
		},
	}, gpgFlags()...)
}

// withKeys adds the key flags to a command, and gives its action to wrap.
func withKeys(wrap func(cli.ActionFunc) cli.ActionFunc) func(*cli.Command) {
	return func(cmd *cli.Command) {
		skip := &cli.BoolFlag{
			Name:  "skip-decrypt-auth",
			Usage: "Do not check whether the given keys open the image, for nodes that have keys of their own",
		}
		cmd.Flags = slices.Concat(cmd.Flags, keyFlags(), []cli.Flag{skip})
		cmd.Action = wrap(cmd.Action)
	}
}

// keyring holds the keys that a command was given. It is made once per command, as
// --key may name a pipe.
type keyring struct {
	config encconfig.DecryptConfig
	// given says that there were any.
	given bool
	// check says that the image is refused if these keys do not open it.
	check bool
}

func readKeys(cmd *cli.Command) (keyring, error) {
	args := parsehelpers.EncArgs{
		GPGHomedir:   cmd.String("gpg-homedir"),
		GPGVersion:   cmd.String("gpg-version"),
		Key:          cmd.StringSlice("key"),
		DecRecipient: cmd.StringSlice("dec-recipient"),
	}
	cc, err := parsehelpers.CreateDecryptCryptoConfig(args, nil)
	if err != nil {
		return keyring{}, err
	}
	k := keyring{
		given: len(args.Key) > 0 || len(args.DecRecipient) > 0,
		check: !cmd.Bool("skip-decrypt-auth"),
	}
	if cc.DecryptConfig != nil {
		k.config = *cc.DecryptConfig
	}
	return k, nil
}
