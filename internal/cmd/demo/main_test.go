package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"imgcrypt/internal/testenv"
)

// process is the demo as it was started by a test, with a directory for temporary files of its own.
type process struct {
	*exec.Cmd
	temp           string
	stdout, stderr bytes.Buffer
}

// newProcess prepares a demo, which runs in dir; in this package's own if empty.
func newProcess(t *testing.T, dir string) *process {
	t.Helper()
	// Its name is short, for there will be sockets in it.
	temp, err := os.MkdirTemp("", "demo-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(temp) })
	p := &process{Cmd: exec.Command(testenv.Build(t, "./internal/cmd/demo")), temp: temp}
	p.Dir = dir
	p.Env = append(os.Environ(), "TMPDIR="+temp)
	p.Stdout, p.Stderr = &p.stdout, &p.stderr
	return p
}

// leavesNothing fails the test if a file, a process or a mount is left.
func (p *process) leavesNothing(t *testing.T) {
	t.Helper()
	files, err := os.ReadDir(p.temp)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		t.Errorf("left: %s", filepath.Join(p.temp, f.Name()))
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range processes {
		// Others end meanwhile.
		args, err := os.ReadFile(name)
		if err == nil && bytes.Contains(args, []byte(p.temp)) {
			t.Errorf("still running: %s: %q", name, args)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err == nil && bytes.Contains(mounts, []byte(p.temp)) {
		t.Errorf("still mounted below %s:\n%s", p.temp, mounts)
	}
}

// ends fails the test unless the demo came to its end as it should.
func (p *process) ends(t *testing.T) (output string) {
	t.Helper()
	if err := p.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, &p.stdout, &p.stderr)
	}
	output = p.stdout.String()
	lines := strings.Split(strings.TrimSuffix(output, "\n"), "\n")
	if last := lines[len(lines)-1]; last != greeting {
		t.Errorf("the last line is %q\n%s", last, output)
	}
	if p.stderr.Len() > 0 {
		t.Errorf("on standard error: %s", &p.stderr)
	}
	if strings.Contains(output, "\x1b") {
		t.Error("colours for what is no terminal")
	}
	p.leavesNothing(t)
	for _, namespace := range regexp.MustCompile(`CONTAINERD_NAMESPACE=(\S+)`).FindAllStringSubmatch(output, -1) {
		for _, pattern := range []string{"/sys/fs/cgroup/%s", "/sys/fs/cgroup/*/%s"} {
			if left, err := filepath.Glob(fmt.Sprintf(pattern, namespace[1])); err != nil || len(left) > 0 {
				t.Errorf("control groups left: %v, %v", left, err)
			}
		}
	}
	return output
}

func TestDemo(t *testing.T) {
	t.Parallel()
	testenv.Need(t, testenv.SuperUser, testenv.MountNamespace, testenv.Containerd24, testenv.Busybox, "runc", "openssl")
	output := newProcess(t, "").ends(t)
	for _, want := range []string{
		"$ ctr-enc images encrypt --recipient jwe:pub.pem ",
		"\nctr-enc: you are not authorized to use this image: ",
		": no key was given to open it",
		"$ ctr-enc run --rm --key key.pem ",
	} {
		if !strings.Contains(output, want) {
			t.Errorf("no %q in:\n%s", want, output)
		}
	}
	if strings.Contains(output, "\n! ") {
		t.Errorf("something is missing:\n%s", output)
	}
}

// A runc that may not start containers, as in some containers, costs only these.
func TestWithoutContainers(t *testing.T) {
	t.Parallel()
	testenv.Need(t, testenv.SuperUser, testenv.MountNamespace, testenv.Containerd24, testenv.Busybox, "runc", "openssl")
	runc, err := testenv.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(t.TempDir(), "runc")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := newProcess(t, "")
	p.Args = []string{"sh", "-c", `mount --bind "$1" "$2" && exec "$3"`, "sh", broken, runc, p.Path}
	p.Path = "/bin/sh"
	p.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	output := p.ends(t)
	for _, want := range []string{"! runc may not start containers here", "$ ctr-enc images mount --key key.pem "} {
		if !strings.Contains(output, want) {
			t.Errorf("no %q in:\n%s", want, output)
		}
	}
}

// Wherever it is stopped, nothing is left.
func TestStopped(t *testing.T) {
	t.Parallel()
	testenv.Need(t, testenv.SuperUser, testenv.MountNamespace, testenv.Containerd24, "runc", "openssl")
	for _, test := range []struct {
		at     string
		signal syscall.Signal
	}{
		{"# Building", syscall.SIGINT},
		{"$ openssl genrsa", syscall.SIGTERM},
		{"$ ctr-enc images push", syscall.SIGINT},
		{"$ ctr-enc images pull", syscall.SIGHUP},
		{"$ ctr-enc run --rm --key key.pem", syscall.SIGINT},
		{"$ ctr-enc images pull", syscall.SIGPIPE},
	} {
		t.Run(fmt.Sprintf("%v at %s", test.signal, test.at), func(t *testing.T) {
			t.Parallel()
			p := newProcess(t, "")
			p.Stdout = nil
			out, err := p.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, out, test.at)
			if test.signal == syscall.SIGPIPE {
				// What `make demo | head` does.
				out.Close()
			} else if err := p.Process.Signal(test.signal); err != nil {
				t.Fatal(err)
			}
			go io.Copy(io.Discard, out)
			var exit *exec.ExitError
			if err := p.Wait(); !errors.As(err, &exit) || exit.ExitCode() != exitInterrupted {
				t.Errorf("%v, want exit code %d; on standard error:\n%s", err, exitInterrupted, &p.stderr)
			}
			p.leavesNothing(t)
		})
	}
}

// waitFor reads r up to a line that begins with text.
func waitFor(t *testing.T, r io.Reader, text string) {
	t.Helper()
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), text) {
			return
		}
	}
	t.Fatalf("it ended before it said %q", text)
}

// Without containerd, the library shows what it can, for an ordinary user too.
func TestWithoutContainerd(t *testing.T) {
	t.Parallel()
	testenv.Need(t, testenv.Busybox)
	// A module of this name without anything that was built for it.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module imgcrypt\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := newProcess(t, dir)
	if os.Geteuid() == 0 {
		readable(t, p)
		const nobody = 65534
		p.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		if err := os.Chown(p.temp, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	output := p.ends(t)
	for _, want := range []string{"! needs root: ", "! needs containerd-2.4: ", "# Without a key it is refused: ", "# It is the original again: "} {
		if !strings.Contains(output, want) {
			t.Errorf("no %q in:\n%s", want, output)
		}
	}
}

// readable gives the demo a place where everybody can read it and its directory.
func readable(t *testing.T, p *process) {
	t.Helper()
	place, err := os.MkdirTemp("", "demo-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(place) })
	if err := os.Chmod(place, 0o755); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{p.Path: "demo", filepath.Join(p.Dir, "go.mod"): "go.mod"} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(place, to), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.Path, p.Dir = filepath.Join(place, "demo"), place
}

// Where there is no busybox the image has a program of ours.
func TestHelloImage(t *testing.T) {
	t.Parallel()
	spec, err := helloImage()
	if err != nil {
		t.Fatal(err)
	}
	file := spec.Layers[0].Files[0]
	if "/"+file.Name != spec.Cmd[0] {
		t.Errorf("it runs %s and has %s", spec.Cmd[0], file.Name)
	}
	program := filepath.Join(t.TempDir(), "hello")
	if err := os.WriteFile(program, file.Body, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(program).Output()
	if err != nil || string(out) != greeting+"\n" {
		t.Errorf("it printed %q, %v", out, err)
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	p.Args = append(p.Args, "--help")
	var exit *exec.ExitError
	if err := p.Run(); !errors.As(err, &exit) || exit.ExitCode() != exitUsage || !strings.HasPrefix(p.stderr.String(), "usage: ") {
		t.Errorf("%v: %s", err, &p.stderr)
	}
}

func TestDigestible(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, out, want string }{
		{"nothing", "", ""},
		{"a line", "Hello World!\n", "Hello World!"},
		{"a table", "   #   DIGEST\n   0   sha256:0\n   1   sha256:1\n", "   #   DIGEST\n   0   sha256:0\n   1   sha256:1"},
		{
			"progress",
			"host/app:v1    \tpushing\t\nsha256:0\nPushing\telapsed: 0.0 s\t\n" +
				"host/app:v1    \tpushed\t\n└──layer (0)\tcomplete\t|\x1b[32m++\x1b[0m|\t\nsha256:0\nCompleted\telapsed: 0.1 s\t\n",
			"host/app:v1     pushed\nsha256:0\nCompleted elapsed: 0.1 s",
		},
	} {
		if got := digestible(test.out); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestQuote(t *testing.T) {
	t.Parallel()
	if got, want := quote([]string{"/bin/echo", "Hello World!", "it's"}), `/bin/echo 'Hello World!' 'it'\''s'`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
