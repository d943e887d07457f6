package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testregistry"
)

const (
	encName      = "example.test/app:enc"
	unauthorized = "you are not authorized to use this image: "
)

// loadEncrypted puts an encrypted image, and nothing of its plain form, on the node.
func (n *node) loadEncrypted(t testing.TB, spec testimage.Spec, flags ...string) {
	t.Helper()
	n.load(t, spec, plainName)
	n.enc(slices.Concat([]string{"images", "encrypt"}, flags, []string{plainName, encName})...).OK(t)
	file := filepath.Join(t.TempDir(), "encrypted.tar")
	n.enc("images", "export", "--all-platforms", file, encName).OK(t)
	n.Clean(t)
	n.enc("images", "import", "--all-platforms", "--no-unpack", file).OK(t)
	if got := n.snapshots(t); got != 0 {
		t.Fatalf("%d snapshots, want none", got)
	}
}

// run and create refuse an image that the keys do not open, before anything is created, whether or not its
// snapshots are here.
func TestRefused(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		keys, wrong := rsaKeys(t), rsaKeys(t)
		n.loadEncrypted(t, runnable(t), "--recipient", keys.recipient())
		for _, state := range []string{"not unpacked", "unpacked"} {
			t.Run(state, func(t *testing.T) {
				before := n.snapshots(t)
				for _, flags := range [][]string{nil, {"--key", wrong.private}} {
					refused(t, n.run(flags, encName), unauthorized)
					refused(t, n.enc(slices.Concat([]string{"run", "-d"}, flags, []string{encName, "e2e"})...), unauthorized)
					refused(t, n.enc(slices.Concat([]string{"containers", "create"}, flags, []string{encName, "e2e"})...), unauthorized)
					refused(t, n.enc(slices.Concat([]string{"images", "mount"}, flags, []string{encName, t.TempDir()})...), unauthorized)
					refused(t, n.enc(slices.Concat([]string{"snapshots", "unpack"}, flags, []string{n.digest(t, encName)})...), unauthorized)
					n.leavesNothing(t)
				}
				if got := n.snapshots(t); got != before {
					t.Errorf("%d snapshots, %d before", got, before)
				}
			})
			if r := n.run([]string{"--key", wrong.private, "--key", keys.private}, encName).OK(t); r.Stdout != hello {
				t.Errorf("got %s", r)
			}
		}
	})
}

// The exit code of run is the container's, and arguments after the container's name are the container's.
func TestRun(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		keys := ecKeys(t)
		n.loadEncrypted(t, runnable(t), "--recipient", keys.recipient())
		r := n.run([]string{"--key", keys.private}, encName, "/bin/sh", "-c", "cat /etc/second; echo no >&2; exit 42", "--key", "--rm")
		if r.Code != 42 || r.Stdout != "second layer\n" || r.Stderr != "no\n" {
			t.Errorf("got %s", r)
		}
		n.leavesNothing(t)
		n.enc("containers", "create", "--key", keys.private, encName, "e2e").OK(t)
		r = n.enc("run", "--rm", "--key", keys.private, encName, "e2e")
		refused(t, r, "already exists")
		n.enc("containers", "rm", "e2e").OK(t)
		n.leavesNothing(t)

		// A pipe is read once, for the check and for all layers.
		shell := n.Command(t.Context(), "bash", "-c", `"$0" run --rm --key <(cat "$KEY") `+encName+" e2e", n.ctrEnc)
		shell.Env = append(shell.Env, "KEY="+keys.private)
		testnode.Capture(shell).OK(t)

		// What has no image needs no key.
		n.enc("run", "--rm", "--rootfs", t.TempDir(), "e2e", "/nothing").Fails(t)
		refused(t, n.enc("run"), "image ref must be provided")
		refused(t, n.enc("run", encName), "container id must be provided")
		refused(t, n.enc("run", "example.test/none", "e2e"), "not found")
	})
}

// Each layer has to open, not only the first.
func TestSecondLayerForAnother(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		keys, other := rsaKeys(t), rsaKeys(t)
		n.load(t, runnable(t), plainName)
		n.enc("images", "encrypt", "--layer", "0", "--recipient", keys.recipient(), plainName, "half").OK(t)
		n.enc("images", "encrypt", "--layer", "1", "--recipient", other.recipient(), "half", encName).OK(t)
		for _, key := range []keyPair{keys, other} {
			refused(t, n.run([]string{"--key", key.private}, encName), unauthorized)
		}
		n.leavesNothing(t)
		n.run([]string{"--key", other.private, "--key", keys.private}, encName).OK(t)

		// What counts is the platform that runs.
		spec := runnable(t)
		spec.Platforms = []string{testimage.HostPlatform(), "linux/s390x"}
		n.load(t, spec, "example.test/two:plain")
		n.enc("images", "encrypt", "--platform", "linux/s390x", "--recipient", keys.recipient(), "example.test/two:plain", "two").OK(t)
		n.run(nil, "two").OK(t)
		refused(t, n.run([]string{"--platform", "linux/s390x"}, "two"), unauthorized)
		n.leavesNothing(t)
	})
}

// A node that has the key needs none from the user, who has to skip the client's check.
func TestNodeKeys(t *testing.T) {
	t.Parallel()
	keys, wrong := rsaKeys(t), rsaKeys(t)
	onEach(t, testnode.Config{KeysDir: filepath.Dir(keys.private)}, func(t *testing.T, n *node) {
		n.loadEncrypted(t, runnable(t), "--recipient", keys.recipient())
		refused(t, n.run(nil, encName), unauthorized)
		if r := n.run([]string{"--skip-decrypt-auth"}, encName).OK(t); r.Stdout != hello {
			t.Errorf("got %s", r)
		}
		file := filepath.Join(t.TempDir(), "encrypted.tar")
		n.enc("images", "export", file, encName).OK(t)
		for _, mode := range []string{"--local", "--local=false"} {
			n.Clean(t)
			n.enc("images", "import", mode, file).OK(t)
			if n.snapshots(t) == 0 {
				t.Error("not unpacked")
			}
			n.Clean(t)
			refused(t, n.enc("images", "import", mode, "--key", wrong.private, file), unauthorized)
			n.enc("images", "import", mode, "--key", wrong.private, "--skip-decrypt-auth", file).OK(t)
			n.leavesNothing(t)
		}
	})
}

// Without a key that the node accepts, unpacking fails, leaves nothing behind, and works the next time.
func TestUnpackFails(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		keys := rsaKeys(t)
		n.loadEncrypted(t, runnable(t), "--recipient", keys.recipient())
		for range 2 {
			refused(t, n.run([]string{"--skip-decrypt-auth"}, encName), "ctd-decoder: error: ", "no key")
			n.leavesNothing(t)
			n.collectGarbage(t)
			if got := n.snapshots(t); got != 0 {
				t.Errorf("%d snapshots left", got)
			}
		}
		n.run([]string{"--key", keys.private}, encName).OK(t)
	})
}

func TestMountAndUnpack(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		keys := rsaKeys(t)
		n.loadEncrypted(t, runnable(t), "--recipient", keys.recipient())
		n.enc("snapshots", "unpack", "--key", keys.private, n.digest(t, encName)).OK(t)
		if n.snapshots(t) != 2 {
			t.Error("not unpacked")
		}
		dir := t.TempDir()
		n.enc("images", "mount", "--key", keys.private, encName, dir).OK(t)
		got, err := os.ReadFile(filepath.Join(dir, "etc/second"))
		n.enc("images", "unmount", "--rm", dir).OK(t)
		if err != nil || string(got) != "second layer\n" {
			t.Errorf("read %q, %v", got, err)
		}
		refused(t, n.enc("snapshots", "unpack", "--key", keys.private, "sha256:"+strings.Repeat("0", 64)), "not found")
	})
}

// Commands that need the same image at the same time do not get into each other's way.
func TestSameImageAtOnce(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		registry, keys := testregistry.StartDebian(t), rsaKeys(t)
		ref := registry.Ref("app:enc")
		n.loadEncrypted(t, runnable(t), "--recipient", keys.recipient())
		file := filepath.Join(t.TempDir(), "encrypted.tar")
		n.enc("images", "export", file, encName).OK(t)
		n.enc("images", "push", ref, encName).OK(t)
		for _, args := range [][]string{
			{"run", "--rm", "--key", keys.private, encName},
			{"images", "decrypt", "--key", keys.private, encName, "opened"},
			{"images", "encrypt", "--recipient", keys.recipient(), "opened", "again"},
			{"images", "import", "--key", keys.private, file},
			{"images", "import", "--local", "--key", keys.private, file},
			{"images", "pull", "--key", keys.private, ref},
			{"images", "pull", "--local", "--key", keys.private, ref},
		} {
			if args[1] == "import" || args[1] == "pull" {
				n.Clean(t)
			}
			var wg sync.WaitGroup
			results := make([]testnode.Result, 4)
			for i := range results {
				own := slices.Clone(args)
				if args[0] == "run" {
					own = append(own, fmt.Sprint("e2e", i))
				}
				wg.Go(func() { results[i] = n.enc(own...) })
			}
			wg.Wait()
			for _, r := range results {
				if r.Code != 0 || args[0] == "run" && r.Stdout != hello {
					t.Errorf("got %s", r)
				}
			}
			if got := n.snapshots(t); got != 2 {
				t.Errorf("%v: %d snapshots, want 2", args, got)
			}
			// import marks what it brings as its own until it has unpacked it.
			if r := n.Ctr("images", "ls").OK(t); strings.Contains(r.Stdout, "imgcrypt.import") {
				t.Errorf("%v: marked: %s", args, r)
			}
			n.leavesNothing(t)
		}
	})
}
