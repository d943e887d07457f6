package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"imgcrypt"
	"imgcrypt/internal/testnode"
)

// markEnv is a variable that providers, and what they start, inherit, so that they are found.
const markEnv = "IMGCRYPT_TEST_MARK"

// leavesNoProcess fails the test if a process with the mark is there, or does not go away at once.
func leavesNoProcess(t *testing.T, mark string) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		left = left[:0]
		for _, p := range processes(t) {
			if slices.Contains(p.environ(), markEnv+"="+mark) {
				left = append(left, strings.Join(p.args(), " "))
			}
		}
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("processes are left: %q", left)
}

// process is one that was there a moment ago.
type process string // its directory

func processes(t testing.TB) []process {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	all := make([]process, len(dirs))
	for i, dir := range dirs {
		all[i] = process(dir)
	}
	return all
}

func (p process) args() []string    { return p.list("cmdline") }
func (p process) environ() []string { return p.list("environ") }

// list returns nothing for a process that is gone.
func (p process) list(name string) []string {
	data, err := os.ReadFile(filepath.Join(string(p), name))
	if err != nil || len(data) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
}

// together runs commands at the same time.
func together(commands map[string]func() testnode.Result) map[string]testnode.Result {
	var mu sync.Mutex
	var wg sync.WaitGroup
	results := make(map[string]testnode.Result)
	for name, command := range commands {
		wg.Go(func() {
			r := command()
			mu.Lock()
			defer mu.Unlock()
			results[name] = r
		})
	}
	wg.Wait()
	return results
}

// decode runs ctd-decoder as containerd would, with a payload on file descriptor 3.
func decode(t testing.TB, program string, env []string, payload, sealed []byte, args ...string) testnode.Result {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.ExtraFiles, cmd.Env = bytes.NewReader(sealed), []*os.File{r}, append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, env...)
	sent := make(chan error, 1)
	go func() {
		_, err := w.Write(payload)
		sent <- err
		w.Close()
	}()
	result := testnode.Capture(cmd)
	r.Close()
	<-sent
	return result
}

// payloadOf is what a client sends.
func payloadOf(t testing.TB, p imgcrypt.Payload) []byte {
	t.Helper()
	return anyOf(t, marshal(t, p))
}

// anyOf is a payload of this JSON.
func anyOf(t testing.TB, value []byte) []byte {
	t.Helper()
	data, err := proto.Marshal(&anypb.Any{TypeUrl: imgcrypt.PayloadURI, Value: value})
	if err != nil {
		t.Fatal(err)
	}
	return data
}
