// Package clikeys is what commands have in common that take keys: their flags, what
// these mean, and how errors about keys are shown.
package clikeys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"imgcrypt/internal/oneline"
	"imgcrypt/keys"
	"imgcrypt/keys/pgp"
	"imgcrypt/keys/schemes"
)

// GPGFlags say where gpg's keys are.
func GPGFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "gpg-homedir", Usage: "Home `DIRECTORY` of gpg, if not its default"},
		&cli.StringFlag{Name: "gpg-version", Usage: "`VERSION` of gpg: 1, 2, v1 or v2 (default: the one that is installed)", Validator: func(v string) error {
			if !slices.Contains([]string{"", "1", "2", "v1", "v2"}, v) {
				return fmt.Errorf("gpg version %q is none of 1, 2, v1, v2", v)
			}
			return nil
		}},
	}
}

// Flags name private keys, and what belongs to them.
func Flags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringSliceFlag{Name: "key", Usage: "Private `KEY` that opens the image: FILE, FILE:PASSWORD, FILE:pass=PASSWORD, FILE:file=PATH, FILE:fd=N or provider:NAME[:PARAMETER] (repeatable; default: gpg's keyring)"},
		&cli.StringSliceFlag{Name: "dec-recipient", Usage: "Certificate that belongs to a private key, as in pkcs7:`FILE` (repeatable)"},
	}, GPGFlags()...)
}

// Parser returns what reads recipients and keys, as a command's flags and the
// environment want it. Its warnings go to the command's standard error.
func Parser(cmd *cli.Command) (*keys.Parser, error) {
	o, err := schemes.FromEnvironment(os.Getenv)
	if err != nil {
		return nil, err
	}
	o.PGP = pgp.Config{Homedir: cmd.String("gpg-homedir"), UseKeyring: true, ShowAddresses: !cmd.Bool("n")}
	if v := strings.TrimPrefix(cmd.String("gpg-version"), "v"); v != "" {
		o.PGP.Version = "v" + v
	}
	if dir := o.PGP.Homedir; dir != "" {
		// gpg itself says something else in each of its commands.
		if info, err := os.Stat(dir); err != nil {
			return nil, fmt.Errorf("--gpg-homedir: %w", err)
		} else if !info.IsDir() {
			return nil, fmt.Errorf("--gpg-homedir: %s is no directory", dir)
		}
	}
	return &keys.Parser{Schemes: schemes.All(o), Files: new(keys.Files), Warn: func(err error) {
		fmt.Fprintf(cmd.Root().ErrWriter, "%s: warning: %s\n", cmd.Root().Name, oneline.Of(err.Error()))
	}}, nil
}

// Identities returns the keys that a command was given, and then those that need no
// naming. given is the number of the former.
func Identities(cmd *cli.Command, parser *keys.Parser) (ids []keys.Identity, given int, err error) {
	ids, err = parser.Identities(cmd.StringSlice("key"), cmd.StringSlice("dec-recipient"))
	return append(ids, keys.Fallbacks(parser.Schemes, ids)...), len(ids), err
}

// Report writes an error of the program name to w, as one line; where it lists something,
// such as the keys that do not open a layer, with a line for each.
func Report(w io.Writer, name string, err error) {
	lines := []string{err.Error()} // containerd quotes several of a decoder
	if errors.Is(err, keys.ErrNoKey) || strings.Contains(lines[0], "\n  ") {
		lines = strings.Split(lines[0], "\n")
	}
	prefix := name + ": "
	for _, line := range lines {
		if line = oneline.Of(line); line != "" {
			fmt.Fprintf(w, "%s%s\n", prefix, line)
			prefix = "  "
		}
	}
}
