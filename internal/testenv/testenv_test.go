package testenv_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"imgcrypt/internal/testenv"
)

// recorder is a test that tells how Need ended it.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Helper()          {}
func (r *recorder) Skip(args ...any) { r.skipped = fmt.Sprint(args...); runtime.Goexit() }
func (r *recorder) Fatal(args ...any) {
	r.failed = fmt.Sprint(args...)
	runtime.Goexit()
}

func need(t *testing.T, requirements ...string) *recorder {
	t.Helper()
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		testenv.Need(r, requirements...)
	}()
	<-done
	return r
}

func TestNeed(t *testing.T) {
	const reason = "needs no-such-command: not on PATH"
	cases := []struct {
		ci              string
		requirements    []string
		skipped, failed string
	}{
		{"", nil, "", ""},
		{"", []string{"go"}, "", ""},
		{"", []string{"go", "no-such-command", "other"}, reason, ""},
		{"true", []string{"no-such-command"}, "", reason},
		{"true", []string{"go"}, "", ""},
		{"false", []string{"no-such-command"}, reason, ""},
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("CI=%s %q", c.ci, c.requirements), func(t *testing.T) {
			t.Setenv("CI", c.ci)
			if r := need(t, c.requirements...); r.skipped != c.skipped || r.failed != c.failed {
				t.Errorf("skipped %q, failed %q; want %q, %q", r.skipped, r.failed, c.skipped, c.failed)
			}
		})
	}
}

// Each special requirement is either met or says why not.
func TestMissing(t *testing.T) {
	t.Parallel()
	for _, r := range []string{testenv.SuperUser, testenv.MountNamespace, testenv.Containerd24, testenv.Containerd16, testenv.Busybox, testenv.SoftHSM, testenv.Cgo} {
		if err := testenv.Missing(r); err != nil && !strings.HasPrefix(err.Error(), "needs "+r+": ") {
			t.Errorf("%s: %v", r, err)
		}
	}
}

func TestRoot(t *testing.T) {
	t.Parallel()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if got := testenv.Root(); got != dir {
		t.Errorf("got %s, want %s", got, dir)
	}
}

// A command is built once, also by tests that ask at the same time, and runs.
func TestBuild(t *testing.T) {
	t.Parallel()
	var wait sync.WaitGroup
	paths := make([]string, 3)
	for i := range paths {
		wait.Go(func() { paths[i] = testenv.Build(t, "./internal/cmd/testreport") })
	}
	wait.Wait()
	if paths[0] != paths[1] || paths[1] != paths[2] {
		t.Errorf("built as %q", paths)
	}
	cmd := exec.Command(paths[0])
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err == nil || !strings.HasSuffix(string(out), "0 passed, 0 failed, 0 skipped\n") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := testenv.BuildCommand("./no/such/command"); err == nil || !strings.Contains(err.Error(), "no/such/command") {
		t.Errorf("building nothing: %v", err)
	}
}

func TestDaemon(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "sleep", "sh")
	cases := map[string]struct {
		command []string
		end     func(*testenv.Daemon) error
	}{
		"asked to end": {[]string{"sleep", "1000"}, (*testenv.Daemon).Terminate},
		"killed":       {[]string{"sleep", "1000"}, (*testenv.Daemon).Kill},
		"ended":        {[]string{"sh", "-c", "exit 1"}, func(d *testenv.Daemon) error { <-d.Ended(); return d.Terminate() }},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := testenv.StartDaemon(exec.Command(c.command[0], c.command[1:]...))
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if err := c.end(d); err != nil {
				t.Fatal(err)
			}
			if d.Pid() != 0 || time.Since(start) > 15*time.Second {
				t.Errorf("pid %d after %v", d.Pid(), time.Since(start))
			}
		})
	}
	if _, err := testenv.StartDaemon(exec.Command("/no/such/command")); !os.IsNotExist(err) {
		t.Errorf("starting nothing: %v", err)
	}
	var none *testenv.Daemon
	if none.Pid() != 0 || none.Terminate() != nil || none.Kill() != nil {
		t.Error("a nil daemon has not ended")
	}
}
