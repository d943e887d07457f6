// Command imgcrypt-pkcs11 uses keys on tokens (PKCS #11) for the other programs. They start it for each
// operation and find it beside themselves, or else on PATH. It is not for people: it takes no arguments, reads a
// request on standard input and writes an answer to standard output, both JSON, see package internal/tokenproto.
//
// It is a program of its own because a token is reached through its vendor's shared library. Loading one takes cgo,
// which the other programs do without, and such libraries crash, hang, print to standard output, and are configured by
// environment variables.
package main

import (
	"fmt"
	"io"
	"os"

	"imgcrypt/internal/tokenproto"
	"imgcrypt/internal/version"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run returns the exit code: 0 if an answer was given, be it a failure, 1 if none, 2 for arguments that it does
// not take.
func run(args []string, stdin, stdout, stderr *os.File) int {
	switch {
	case len(args) == 0:
	case len(args) == 1 && args[0] == "--version":
		fmt.Fprintf(stdout, "%s %s\n", tokenproto.Program, version.String())
		return 0
	default:
		fmt.Fprintf(stderr, "%s: it takes no arguments: ctr-enc, ctd-decoder and the like start it\n", tokenproto.Program)
		return 2
	}
	if err := serve(stdin, stdout); err != nil {
		return failed(stderr, err)
	}
	return 0
}

func failed(stderr io.Writer, err error) int {
	fmt.Fprintf(stderr, "%s: %v\n", tokenproto.Program, err)
	return 1
}
