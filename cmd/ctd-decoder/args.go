package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
)

const helpText = `ctd-decoder decrypts one layer for containerd, which starts it as a stream processor.

Usage: ctd-decoder [--decryption-keys-path DIR]

  --decryption-keys-path DIR  try the keys in the files below DIR after those that
                              containerd's client sent; a DIR that does not exist
                              is an empty one
  --version                   print the version
  --help                      print this

The ciphertext comes on standard input, the plain bytes go to standard output. The
payload with the layer's descriptor comes on file descriptor 3, on Windows from the
named pipe in STREAM_PROCESSOR_PIPE. On failure there is one line on standard error.

Exit codes: 0 ok, 1 failure, 2 usage, 10 no key opens it, 11 tampered.
`

// holdArg makes this program the keeper of another one's standard output. Its two
// values are the other one's process id and whether to spoil. It is no option for
// people.
const holdArg = "--hold-stdout-for"

type options struct {
	keysPath string
	help     bool
	version  bool
	holdFor  int
	spoil    bool
}

// usageError is about the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() + " (see ctd-decoder --help)" }

func (e *usageError) Unwrap() error { return e.err }

// parseArgs reads the command line. Its error is a [*usageError].
func parseArgs(args []string) (options, error) {
	var opts options
	if len(args) == 3 && args[0] == holdArg {
		pid, err := strconv.Atoi(args[1])
		if spoil, err2 := strconv.ParseBool(args[2]); err == nil && err2 == nil && pid > 0 {
			return options{holdFor: pid, spoil: spoil}, nil
		}
	}
	set := flag.NewFlagSet("ctd-decoder", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&opts.keysPath, "decryption-keys-path", "", "")
	set.BoolVar(&opts.version, "version", false, "")
	err := set.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return options{help: true}, nil
	case err != nil:
		return opts, &usageError{err}
	case set.NArg() > 0:
		return opts, &usageError{fmt.Errorf("unexpected argument %q", set.Arg(0))}
	}
	return opts, nil
}
