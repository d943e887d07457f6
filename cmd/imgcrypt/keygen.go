package main

import (
	"context"
	"errors"

	"github.com/urfave/cli/v3"
)

func keygenCommand() *cli.Command {
	return &cli.Command{
		Name: "keygen", Usage: "Make a key pair", ArgsUsage: "NAME",
		Description: `Write a private key to NAME.pem, which only its owner can read, and its public half to
NAME.pub.pem. No file is overwritten. What is printed is what -r takes, and the
key's thumbprint, by which inspect names it.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "type", Usage: "ec (P-256) or rsa (3072 bits)", Value: "ec", Validator: func(v string) error {
				if v != "ec" && v != "rsa" {
					return errors.New("type is ec or rsa")
				}
				return nil
			}},
			&cli.StringFlag{Name: "password-file", Usage: "Encrypt the private key with the password in `FILE`"},
		},
		Action: keygen,
	}
}

func keygen(_ context.Context, cmd *cli.Command) error {
	if cmd.NArg() != 1 {
		return usageError{errors.New("usage: " + cmd.FullName() + " " + cmd.ArgsUsage)}
	}
	pair, err := newPair(cmd.String("type"), cmd.String("password-file"))
	if err != nil {
		return err
	}
	return pair.write(cmd.Args().First(), cmd.Root().Writer)
}
