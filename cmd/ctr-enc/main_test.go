package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/cmd/ctr/app"
	"github.com/urfave/cli/v3"
)

// asProgram makes this test binary ctr-enc.
const asProgram = "IMGCRYPT_TEST_CTR_ENC"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(run(append([]string{name}, os.Args[1:]...), os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// ctrEnc runs ctr-enc in an empty directory.
func ctrEnc(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.Command(exe, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = t.TempDir(), &out, &errs
	cmd.Env = append(os.Environ(), asProgram+"=1", "CONTAINERD_ADDRESS=none.sock")
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// The program calls itself ctr-enc, everywhere.
func TestHelp(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args string
		want []string
	}{
		{"--version", []string{`^ctr-enc github.com/containerd/containerd/v2 2\.\d+\.\d+\S* imgcrypt \S+\n$`}},
		{"--help", []string{`(?m)^   ctr-enc - containerd's ctr, for encrypted images too$`, `(?m)^   run `}},
		{"images --help", []string{`(?m)^   encrypt  `, `(?m)^   decrypt  `, `(?m)^   layerinfo  `, `(?m)^   pull  `}},
		{"images encrypt --help", []string{`ctr-enc images encrypt .*\[flags\] <local> \[<new name>\]`, `--recipient RECIPIENT`, `--layer N`}},
		{"run --help", []string{`--key KEY`, `--skip-decrypt-auth`, `--rm`}},
	} {
		stdout, stderr, code := ctrEnc(t, strings.Fields(test.args)...)
		if code != 0 || stderr != "" {
			t.Errorf("%s: exit code %d, %s", test.args, code, stderr)
		}
		for _, want := range append(test.want, `ctr-enc`) {
			if !regexp.MustCompile(want).MatchString(stdout) {
				t.Errorf("%s: no %q in\n%s", test.args, want, stdout)
			}
		}
		if regexp.MustCompile(`(?m)^\s*ctr\s`).MatchString(stdout) {
			t.Errorf("%s: calls itself ctr:\n%s", test.args, stdout)
		}
	}
}

// What is wrong with a command line is one line, exit code 1, and needs no containerd.
func TestUsageErrors(t *testing.T) {
	t.Parallel()
	noSocket := "cannot access socket none.sock: stat none.sock: no such file or directory"
	for _, test := range []struct{ args, want string }{
		{"images encrypt", "usage: ctr-enc images encrypt [flags] <local> [<new name>]"},
		{"images encrypt a b c", "usage: ctr-enc images encrypt [flags] <local> [<new name>]"},
		{"images encrypt a b", "no recipient: give at least one --recipient, as in --recipient jwe:pub.pem"},
		{"images encrypt --recipient pub.pem a b", "unknown scheme"},
		{"images encrypt --recipient rot13:pub.pem a b", "unknown scheme"},
		{"images encrypt --recipient jwe:none.pem a b", "none.pem: no such file or directory"},
		{"images encrypt --recipient jwe:none.pem --platform linux/amd64 --all-platforms a b", "cannot specify both --platform and --all-platforms"},
		{"images decrypt --key none.pem a", "key none.pem: no such file or directory"},
		{"images decrypt --gpg-version 3 a", `gpg version "3" is none of 1, 2, v1, v2`},
		{"images decrypt --dec-recipient pkcs7:none.pem a", "recipient pkcs7: none.pem: no such file or directory"},
		{"images layerinfo --layer x a", `invalid value "x" for flag -layer`},
		{"images layerinfo --bogus a", "flag provided but not defined: -bogus"},
		{"run --key none.pem a b", "none.pem: no such file or directory"},
		{"containers create --key none.pem a b", "none.pem: no such file or directory"},
		{"images mount --key none.pem a", "none.pem: no such file or directory"},
		{"snapshots unpack --key none.pem a", "none.pem: no such file or directory"},
		{"run --platform % a b", `"%"`},
		{"images layerinfo a", noSocket},
		{"images pull a", noSocket},
		{"images ls", noSocket},
	} {
		_, stderr, code := ctrEnc(t, strings.Fields(test.args)...)
		// The command line parser has its own opening.
		line := stderr
		if rest, ok := strings.CutPrefix(stderr, "Incorrect Usage: "); ok {
			_, line, _ = strings.Cut(rest, "\n\n")
		}
		if code != 1 || strings.Count(line, "\n") != 1 || !strings.HasPrefix(line, "ctr-enc: ") || !strings.Contains(line, test.want) {
			t.Errorf("%s: exit code %d, want 1 and %q, got\n%s", test.args, code, test.want, stderr)
		}
	}
}

// How a program ends that ctr-enc starts is not how ctr-enc ends.
func TestExitCodeOfOthers(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "gpg"), []byte("#!/bin/sh\nkill -9 $$\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("HOME", dir)
	_, stderr, code := ctrEnc(t, "images", "encrypt", "--gpg-version", "v2", "--recipient", "pgp:nobody@example.test", "a", "b")
	if code != 1 || !strings.Contains(stderr, "signal: killed") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// command returns the command at a path, as in "images pull".
func command(t *testing.T, root *cli.Command, path string) *cli.Command {
	t.Helper()
	cmd := root
	for _, name := range strings.Fields(path) {
		if cmd = cmd.Command(name); cmd == nil {
			t.Fatalf("no command %q", path)
		}
	}
	return cmd
}

func flagNames(cmd *cli.Command) []string {
	var names []string
	for _, f := range cmd.Flags {
		names = append(names, f.Names()...)
	}
	slices.Sort(names)
	return names
}

func TestFlags(t *testing.T) {
	root, ctr := tree(), app.New()
	for _, path := range []string{"run", "containers create", "images pull", "images import", "images mount", "snapshots unpack"} {
		ours, theirs := flagNames(command(t, root, path)), flagNames(command(t, ctr, path))
		want := slices.Sorted(slices.Values(slices.Concat(theirs, []string{"key", "dec-recipient", "gpg-homedir", "gpg-version", "skip-decrypt-auth"})))
		if !slices.Equal(ours, want) {
			t.Errorf("%s: flags %v, want %v", path, ours, want)
		}
	}
	for path, want := range map[string]string{
		"images encrypt":   "all-platforms dec-recipient gpg-homedir gpg-version key layer platform recipient",
		"images decrypt":   "dec-recipient gpg-homedir gpg-version key layer platform",
		"images layerinfo": "gpg-homedir gpg-version layer n platform",
	} {
		if got := strings.Join(flagNames(command(t, root, path)), " "); got != want {
			t.Errorf("%s: flags %s, want %s", path, got, want)
		}
	}
}

// No flag has the name of another one of the same command, and passwords with commas stay whole.
func TestCommands(t *testing.T) {
	var walk func(cmd *cli.Command, path string)
	walk = func(cmd *cli.Command, path string) {
		names := flagNames(cmd)
		if slices.Contains(names, "key") && !cmd.DisableSliceFlagSeparator {
			t.Errorf("%s splits flags at commas", path)
		}
		if len(slices.Compact(slices.Clone(names))) != len(names) {
			t.Errorf("%s has flags twice: %v", path, names)
		}
		for _, c := range cmd.Commands {
			walk(c, path+" "+c.Name)
		}
	}
	walk(tree(), name)
}

// ctr's own commands are what they were: a second tree has each flag and command once.
func TestEditCopies(t *testing.T) {
	before := flagNames(command(t, app.New(), "run"))
	first := len(command(t, tree(), "images").Commands)
	if second := len(command(t, tree(), "images").Commands); second != first {
		t.Errorf("%d commands, then %d", first, second)
	}
	if after := flagNames(command(t, app.New(), "run")); !slices.Equal(after, before) {
		t.Errorf("changed ctr's flags to %v", after)
	}
	if app.New().Command("images").Command("encrypt") != nil {
		t.Error("ctr itself has images encrypt")
	}
}
