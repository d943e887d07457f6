// Command testreport makes a report of what `go test -json` writes:
//
//	go test -json ./... | testreport [-strict]
//
// While the tests run it prints a line per package, and the whole output of every test that fails as soon as it has
// ended. At the end comes a table of the packages, what tests want to be seen, each skipped test with its reason, each
// failed one, and as the last line
//
//	12 passed, 0 failed, 3 skipped
//
// What a test wants to be seen it says, line by line, by t.Attr("report", line).
//
// A test with subtests is counted only where it fails or is skipped by itself. The exit code is 1 where a test
// failed, a package did not build, a test process ended without the end of its tests, or no test ran at all; with -strict,
// or with CI=true in the environment, also where a test was skipped.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv("CI") == "true"))
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer, strict bool) int {
	flags := flag.NewFlagSet("testreport", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.BoolVar(&strict, "strict", strict, "a skipped test is a failure (default with CI=true)")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "testreport: unexpected argument %q\n", flags.Arg(0))
		return 2
	}
	out := bufio.NewWriter(stdout)
	ok, err := report(stdin, out, strict)
	if err := errors.Join(err, out.Flush()); err != nil {
		fmt.Fprintf(stderr, "testreport: %v\n", err)
		return 1
	}
	if !ok {
		return 1
	}
	return 0
}

// report reads events to their end and says whether all is well.
func report(in io.Reader, out *bufio.Writer, strict bool) (ok bool, err error) {
	r := newReport(out)
	lines := bufio.NewReader(in)
	for {
		// A line may be of any length, and the last one lack its end.
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			r.line(line)
			if err := out.Flush(); err != nil {
				return false, err
			}
		}
		if errors.Is(err, io.EOF) {
			return r.finish(strict), nil
		}
		if err != nil {
			return false, err
		}
	}
}
