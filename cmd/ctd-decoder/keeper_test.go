//go:build linux

package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imgcrypt"
	"imgcrypt/internal/testenv"
	"imgcrypt/layer"
)

// payloadPipe is a pipe with a payload in it, ended.
func payloadPipe(t testing.TB, p *imgcrypt.Payload) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if _, err := w.Write(marshal(t, p)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return r
}

func TestContainerdGetsTheLayer(t *testing.T) {
	t.Parallel()
	program := decoder(t)
	for _, size := range []int{0, 1, 1000, layer.Holdback, 5*layer.Holdback + 1} {
		e := seal(t, size)
		o := asContainerd(t.Context(), t, program, "", nil, bytes.NewReader(e.sealed), e.payload(e.private))
		if o.atEOF != nil || o.later != nil || !bytes.Equal(o.plain, e.plain) {
			t.Errorf("%d bytes: got %d bytes, %v, %v", size, len(o.plain), o.atEOF, o.later)
		}
	}
	// A process that succeeded takes its keeper along.
	if n := processesOf(t, program); n > 0 {
		t.Errorf("%d processes are left", n)
	}
}

// slowReader stops in the middle, and ends when the context does.
type slowReader struct {
	ctx    context.Context
	data   io.Reader
	paused chan<- struct{}
	once   sync.Once
}

func (r *slowReader) Read(p []byte) (int, error) {
	if n, err := r.data.Read(p); err == nil {
		return n, nil
	}
	r.once.Do(func() { close(r.paused) })
	<-r.ctx.Done()
	return 0, io.EOF
}

// A decoder that the kernel kills is a failure that containerd knows when the
// output ends.
func TestContainerdKnowsOfAKill(t *testing.T) {
	t.Parallel()
	program := decoder(t)
	e := seal(t, 3*layer.Holdback+100)
	missed := 0
	for range runs() / 10 {
		ctx, kill := context.WithCancel(t.Context())
		paused := make(chan struct{})
		sealed := &slowReader{ctx: ctx, data: bytes.NewReader(e.sealed[:2*layer.Holdback+100]), paused: paused}
		go func() {
			<-paused
			time.Sleep(10 * time.Millisecond)
			kill() // containerd's exec.CommandContext sends SIGKILL
		}()
		o := asContainerd(ctx, t, program, "", nil, sealed, e.payload(e.private))
		kill()
		if o.later == nil {
			t.Error("a kill is no failure")
		}
		if o.atEOF == nil {
			missed++
		}
	}
	if missed > tolerable(runs()/10) {
		t.Errorf("missed in %d of %d runs", missed, runs()/10)
	}
	noneLeft(t, program)
}

// Whatever ends the process from inside is known too, and tells no secret.
func TestContainerdKnowsOfPanics(t *testing.T) {
	t.Parallel()
	self := executable(t)
	e := seal(t, 1000)
	for mode, says := range map[string]string{
		"panic": "ctd-decoder: error: internal error: *errors.errorString at main_test.go:",
		"crash": "panic: crash",
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			missed := 0
			for range runs() / 10 {
				o := asContainerd(t.Context(), t, self, mode, nil, strings.NewReader(""), e.payload(e.private))
				if o.later == nil || !strings.Contains(o.later.Error(), says) || strings.Contains(o.later.Error(), secretText) {
					t.Fatalf("containerd shows %v", o.later)
				}
				if o.atEOF == nil {
					missed++
				}
			}
			if missed > tolerable(runs()/10) {
				t.Errorf("missed in %d of %d runs", missed, runs()/10)
			}
		})
	}
}

// Without a keeper nothing is decrypted, and the output is no layer.
func TestNoKeeperNoLayer(t *testing.T) {
	t.Parallel()
	self := executable(t)
	e := seal(t, 3*layer.Holdback)
	for mode, says := range map[string]string{
		"keeper cannot start": "start the process that keeps standard output open",
		"keeper ends at once": "the process that keeps standard output open did not start",
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			o := asContainerd(t.Context(), t, self, mode, nil, bytes.NewReader(e.sealed), e.payload(e.private))
			if o.later == nil || !strings.Contains(o.later.Error(), says) {
				t.Errorf("got %v", o.later)
			}
			if !isTail(o.plain) {
				t.Errorf("the output has %d bytes", len(o.plain))
			}
		})
	}
}

// startFailing starts a decoder that fails, with nobody who waits for it yet.
func startFailing(t *testing.T, program string, env ...string) (cmd *exec.Cmd, stdout io.ReadCloser) {
	t.Helper()
	cmd = exec.Command(program)
	cmd.Env = env
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, stdout
}

// A program that reads to the end before it waits for its child gets to the end, if
// late; as containerd it gets nothing that it could use.
func TestKeeperHasALimit(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		env  []string
		good func([]byte) bool
	}{
		"containerd":    {[]string{mediaTypeEnv + "=any"}, isTail},
		"somebody else": {nil, func(out []byte) bool { return len(out) == 0 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			program := decoder(t)
			cmd, stdout := startFailing(t, program, tt.env...)
			start := time.Now()
			got, err := io.ReadAll(stdout)
			if err != nil || !tt.good(got) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if took := time.Since(start); took < holdLimit || took > holdLimit+5*time.Second {
				t.Errorf("took %v, want %v", took, holdLimit)
			}
			if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != exitFailure {
				t.Errorf("got %v", err)
			}
			noneLeft(t, program)
		})
	}
}

// A keeper whose reader went away, as when containerd is killed, goes too.
func TestKeeperOfNobody(t *testing.T) {
	t.Parallel()
	program := decoder(t)
	cmd, stdout := startFailing(t, program)
	time.Sleep(100 * time.Millisecond)
	start := time.Now()
	stdout.Close()
	// The decoder is not reaped yet, so the keeper would stay to its limit.
	noneLeft(t, program)
	if took := time.Since(start); took > holdLimit/2 {
		t.Errorf("took %v", took)
	}
	_ = cmd.Wait()
}

// A reader that goes away in the middle is told nothing, and leaves nothing behind.
func TestReaderGoesAway(t *testing.T) {
	t.Parallel()
	program := decoder(t)
	e := seal(t, 3*layer.Holdback)
	cmd := exec.Command(program)
	cmd.Stdin = bytes.NewReader(e.sealed)
	cmd.ExtraFiles = []*os.File{payloadPipe(t, e.payload(e.private))}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stdout, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	stdout.Close()
	if err := cmd.Wait(); err == nil {
		t.Error("it succeeded")
	}
	if stderr.Len() > 0 {
		t.Errorf("stderr: %s", &stderr)
	}
	noneLeft(t, program)
}

// A decoder that is asked to stop says so.
func TestTerminated(t *testing.T) {
	t.Parallel()
	program := decoder(t)
	e := seal(t, 3*layer.Holdback)
	cmd := exec.Command(program)
	stdin, err := cmd.StdinPipe() // never closed
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{payloadPipe(t, e.payload(e.private))}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// All but what stays in the pipe was read when this returns.
	if _, err := stdin.Write(e.sealed[:layer.Holdback]); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != exitInterrupted || stderr.String() != "ctd-decoder: error: stopped by a signal\n" {
		t.Errorf("exit code %d, stderr %q", got, stderr.String())
	}
	if stdout.Len() > 0 {
		t.Errorf("%d bytes were released", stdout.Len())
	}
	noneLeft(t, program)
}

// What is not a pipe needs no keeper.
func TestOutputToFile(t *testing.T) {
	t.Parallel()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	e := seal(t, 1000)
	cmd := exec.Command(testenv.Build(t, "./cmd/ctd-decoder"))
	cmd.Stdin = bytes.NewReader(e.sealed)
	cmd.Stdout = file
	cmd.ExtraFiles = []*os.File{payloadPipe(t, e.payload(e.private))}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file.Name()); err != nil || !bytes.Equal(got, e.plain) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	keep, err := keepOpen(file, func() (string, error) { return "/nonexistent", nil }, true)
	if err != nil || keep != (noKeeper{}) {
		t.Errorf("got %v, %v", keep, err)
	}
}
