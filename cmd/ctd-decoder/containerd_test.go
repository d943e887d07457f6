package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/typeurl/v2"

	"imgcrypt"
	"imgcrypt/internal/testenv"
	"imgcrypt/layer"
)

// outcome is what containerd learns from a processor.
type outcome struct {
	plain []byte
	atEOF error // the failure that is known when the output has ended
	later error // the failure that is known once the process has been waited for
}

// asContainerd runs a decoder by containerd's own code, and asks it for the failure
// when containerd's applier does.
func asContainerd(ctx context.Context, t testing.TB, program, mode string, args []string, sealed io.Reader, payload *imgcrypt.Payload) outcome {
	t.Helper()
	var sent typeurl.Any
	if payload != nil {
		var err error
		if sent, err = typeurl.MarshalAny(payload); err != nil {
			t.Fatal(err)
		}
	}
	const mediaType = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
	p, err := diff.NewBinaryProcessor(ctx, mediaType, "application/vnd.oci.image.layer.v1.tar+gzip",
		diff.NewProcessorChain(mediaType, sealed), program, args, []string{modeEnv + "=" + mode}, sent)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var o outcome
	if o.plain, err = io.ReadAll(p); err != nil {
		t.Fatal(err)
	}
	o.atEOF = p.(interface{ Err() error }).Err()
	o.later = p.(interface{ Wait(context.Context) error }).Wait(context.WithoutCancel(ctx))
	return o
}

// failure is one way in which a decoder fails.
type failure struct {
	name    string
	args    []string
	sealed  []byte
	payload *imgcrypt.Payload
	says    string
}

func failures(t *testing.T) []failure {
	const big = 3*layer.Holdback + 100
	small, large := seal(t, 1000), seal(t, big)
	other := seal(t, 7)
	mac := func(n int) *imgcrypt.Payload {
		e := seal(t, 1000)
		e.desc.Annotations[layer.PublicAnnotation] = public64(t, make([]byte, n))
		return e.payload(e.private)
	}
	unreadable := seal(t, 1000)
	unreadable.desc.Annotations[layer.PublicAnnotation] = "%"
	return []failure{
		{"no payload", nil, small.sealed, nil, "containerd sent no payload"},
		{"usage", []string{"--no-such-option"}, small.sealed, small.payload(small.private), "no-such-option"},
		{"no key", nil, small.sealed, small.payload(), "no key was given"},
		{"wrong key", nil, large.sealed, large.payload(other.private), "does not open it"},
		{"malformed annotation", nil, small.sealed, unreadable.payload(small.private), "not base64"},
		{"MAC missing", nil, small.sealed, mac(0), "tampered"},
		{"MAC short", nil, small.sealed, mac(31), "tampered"},
		{"MAC wrong", nil, small.sealed, mac(32), "tampered"},
		{"small, bit flipped", nil, flip(small.sealed, 500), small.payload(small.private), "tampered"},
		{"large, first bit flipped", nil, flip(large.sealed, 0), large.payload(large.private), "tampered"},
		{"large, last bit flipped", nil, flip(large.sealed, big-1), large.payload(large.private), "tampered"},
		{"truncated", nil, large.sealed[:big-1], large.payload(large.private), "tampered"},
		{"extended", nil, append(bytes.Clone(large.sealed), 0), large.payload(large.private), "tampered"},
		{"empty", nil, nil, small.payload(small.private), "tampered"},
	}
}

// count runs a failing decoder many times at once, and returns in how many of the
// runs containerd would not have noticed.
func count(t *testing.T, program, mode string, f failure, runs int) (missed int) {
	t.Helper()
	var wg sync.WaitGroup
	var misses atomic.Int64
	slots := make(chan struct{}, 8)
	for range runs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			o := asContainerd(t.Context(), t, program, mode, f.args, bytes.NewReader(f.sealed), f.payload)
			if o.atEOF == nil {
				misses.Add(1)
			}
			if o.later == nil || !strings.Contains(o.later.Error(), f.says) ||
				strings.Count(o.later.Error(), "\n") != 1 || !strings.HasPrefix(o.later.Error(), "ctd-decoder: error: ") {
				t.Errorf("%s: containerd shows %v", f.name, o.later)
			}
			if len(f.sealed) <= layer.Holdback && mode != "no keeper" && !isTail(o.plain) {
				t.Errorf("%s: %d bytes were released", f.name, len(o.plain))
			}
		})
	}
	wg.Wait()
	return int(misses.Load())
}

// isTail says whether an output is the tail of nothing.
func isTail(out []byte) bool {
	const zeros = 1024
	return len(out) >= zeros+1024 && len(out) < zeros+3072 && bytes.Equal(out[:zeros], make([]byte, zeros))
}

// runs is how often each failure is tried.
func runs() int {
	if testing.Short() {
		return 20
	}
	return 60
}

// tolerable is in how many runs containerd may miss a failure when the machine is
// very busy. It is none on an idle one; and what containerd sees then is a tail, which
// count and TestForgedPrefix check in every run.
func tolerable(runs int) int { return 1 + runs/200 }

// When the output ends, containerd knows of the failure.
func TestContainerdKnowsAtTheEnd(t *testing.T) {
	t.Parallel()
	program := decoder(t)
	for _, f := range failures(t) {
		t.Run(f.name, func(t *testing.T) {
			if missed := count(t, program, "", f, runs()); missed > tolerable(runs()) {
				t.Errorf("missed in %d of %d runs", missed, runs())
			}
		})
	}
	noneLeft(t, program)
}

// The test above can fail: without the keeper, containerd misses failures.
func TestContainerdMissesWithoutKeeper(t *testing.T) {
	t.Parallel()
	self := executable(t)
	missed, tried := 0, 0
	for _, f := range failures(t) {
		n := count(t, self, "no keeper", f, runs()/10)
		t.Logf("%-26s missed in %d of %d runs", f.name, n, runs()/10)
		missed += n
		tried += runs() / 10
	}
	if missed == 0 {
		t.Errorf("none missed in %d runs: what the keeper is for does not show here", tried)
	}
}

// decoder builds the program, and returns a copy that only this test runs. The copy
// is made by another process: a file that this one held open for writing while
// another test starts a process could not be executed.
func decoder(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ctd-decoder")
	if out, err := exec.Command("cp", testenv.Build(t, "./cmd/ctd-decoder"), path).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return path
}

func executable(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return self
}

// processesOf counts the processes that run a program.
func processesOf(t *testing.T, program string) (n int) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		// Processes end while this looks at them.
		if target, err := os.Readlink(link); err == nil && target == program {
			n++
		}
	}
	return n
}

// noneLeft checks that all processes of a program end soon.
func noneLeft(t *testing.T, program string) {
	t.Helper()
	end := time.Now().Add(5 * time.Second)
	for processesOf(t, program) > 0 {
		if time.Now().After(end) {
			t.Fatalf("%d processes of %s are left", processesOf(t, program), program)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
