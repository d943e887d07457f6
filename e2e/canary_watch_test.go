package e2e

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// watcher looks for secrets in the arguments and the environment of all processes of the machine.
type watcher struct {
	secrets *canaries
	// typed are the secrets that a user has written in the arguments of a program, by its name.
	typed map[string][]string

	stop func()

	mu    sync.Mutex
	seen  map[string]bool // programs
	leaks map[string]bool
}

// How often the watcher looks. A program of a few milliseconds may escape it once, but not always.
const (
	watchPause = 2 * time.Millisecond
	// settled is after what time a process is looked at more seldom: it has started what it will be.
	settled     = time.Second
	settledLook = 200 * time.Millisecond
)

// watch watches until stop is called or the test ends.
func watch(t testing.TB, secrets *canaries, typed map[string][]string) *watcher {
	t.Helper()
	w := &watcher{secrets: secrets, typed: typed, seen: make(map[string]bool), leaks: make(map[string]bool)}
	stop, done := make(chan struct{}), make(chan struct{})
	w.stop = sync.OnceFunc(func() { close(stop); <-done })
	t.Cleanup(w.stop)
	go func() {
		defer close(done)
		known := make(map[process]sighting)
		texts := make(map[uint64]bool)
		seed := maphash.MakeSeed()
		for {
			for _, p := range processes(t) {
				now := time.Now()
				s, ok := known[p]
				if !ok {
					s.first = now
				} else if now.Sub(s.first) > settled && now.Sub(s.last) < settledLook {
					continue
				}
				s.last = now
				known[p] = s
				w.look(p, seed, texts)
			}
			select {
			case <-stop:
				return
			case <-time.After(watchPause):
			}
		}
	}()
	return w
}

// sighting is when a process was seen. Its number may be another one's later, which then is looked at seldom too, but is.
type sighting struct{ first, last time.Time }

// look looks at one process, unless it looks as one did before.
func (w *watcher) look(p process, seed maphash.Seed, texts map[uint64]bool) {
	args, _ := os.ReadFile(filepath.Join(string(p), "cmdline"))
	environ, _ := os.ReadFile(filepath.Join(string(p), "environ"))
	if sum := maphash.Bytes(seed, slices.Concat(args, []byte{0, 0}, environ)); texts[sum] || len(args) == 0 {
		return
	} else {
		texts[sum] = true
	}
	argv0, _, _ := bytes.Cut(args, []byte{0})
	program := filepath.Base(string(argv0))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[program] = true
	for _, name := range w.secrets.in(args) {
		if !slices.Contains(w.typed[program], name) {
			w.leaks[fmt.Sprintf("%s in the arguments of %s", name, program)] = true
		}
	}
	for _, name := range w.secrets.in(environ) {
		w.leaks[fmt.Sprintf("%s in the environment of %s", name, program)] = true
	}
}

// missing returns which of the programs were not seen.
func (w *watcher) missing(programs ...string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(programs), func(name string) bool { return w.seen[name] })
}

// found returns what was found, sorted.
func (w *watcher) found() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for leak := range w.leaks {
		all = append(all, leak)
	}
	slices.Sort(all)
	return all
}

// A secret in arguments or environment is found, unless it is where a user wrote it.
func TestWatcher(t *testing.T) {
	t.Parallel()
	secrets := newCanaries()
	typed, leaked := secrets.word(t, "typed"), secrets.word(t, "leaked")
	w := watch(t, secrets, map[string][]string{"sh": {"typed"}})
	want := []string{"leaked in the arguments of sh", "leaked in the environment of sh", "typed in the environment of sh"}
	for _, c := range []struct{ arg, env string }{{typed, leaked}, {leaked, typed}} {
		cmd := exec.Command("sh", "-c", "read line", "sh", "--password="+c.arg)
		cmd.Env = []string{"PASSWORD=" + c.env}
		stdin, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer stdin.Close()
	}
	for deadline := time.Now().Add(10 * time.Second); !slices.Equal(w.found(), want); time.Sleep(watchPause) {
		if time.Now().After(deadline) {
			t.Fatalf("found %q", w.found())
		}
	}
	if missing := w.missing("sh", "no-such-program"); !slices.Equal(missing, []string{"no-such-program"}) {
		t.Errorf("not seen: %q", missing)
	}
}
