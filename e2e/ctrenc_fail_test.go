package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/images/encryption"
	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testregistry"
	"imgcrypt/layer"
)

// A run that is interrupted removes what it has written; one that is killed leaves it to the garbage
// collector, once its lease is over. The names are what they were, and the next run works.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		keys := rsaKeys(t)
		large := testimage.Spec{Layers: []testimage.Layer{{Compression: testimage.None}, {RandomSize: 256 << 20, Compression: testimage.None}}}
		n.load(t, large, plainName)
		n.collectGarbage(t)
		before := n.blobs(t)
		encrypt := []string{"images", "encrypt", "--recipient", keys.recipient(), plainName, encName}
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
			ctx, interrupt := context.WithCancel(t.Context())
			cmd := n.Command(ctx, n.ctrEnc, encrypt...)
			cmd.Cancel = func() error { return cmd.Process.Signal(sig) }
			cmd.WaitDelay = time.Minute // before it is killed after all
			go func() {
				defer interrupt()
				// As soon as the first layer is there, the second is being written.
				for deadline := time.Now().Add(time.Minute); ctx.Err() == nil && len(n.blobs(t)) == len(before) && time.Now().Before(deadline); {
					time.Sleep(time.Millisecond)
				}
			}()
			r := testnode.Capture(cmd)
			interrupt()
			if sig == syscall.SIGKILL {
				if r.Err == nil {
					t.Fatalf("was to be killed: %s", r)
				}
				n.removeLeases(t)
			} else if r.Code != 130 || r.Stderr != "ctr-enc: interrupted\n" {
				t.Errorf("%v: got %s", sig, r)
			}
			n.leavesNothing(t)
			n.collectGarbage(t)
			if got := n.blobs(t); !slices.Equal(got, before) {
				t.Errorf("%v: left blobs: %d, were %d", sig, len(got), len(before))
			}
			if n.digest(t, encName) != "" {
				t.Errorf("%v: named something", sig)
			}
		}
		n.enc(encrypt...).OK(t)
		n.enc("images", "decrypt", "--key", keys.private, encName).OK(t)
		if n.digest(t, encName) != n.digest(t, plainName) {
			t.Error("not the original")
		}
	})
}

// removeLeases does what containerd does with leases after their time.
func (n *node) removeLeases(t testing.TB) {
	t.Helper()
	for line := range strings.Lines(n.Ctr("leases", "ls", "-q").OK(t).Stdout) {
		n.Ctr("leases", "delete", "--sync", strings.TrimSpace(line)).OK(t)
	}
}

// Without a containerd each command says so in one line, without a wait.
func TestNoContainerd(t *testing.T) {
	t.Parallel()
	ctrEnc := testenv.Build(t, "./cmd/ctr-enc")
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	listener.Close()
	keys := rsaKeys(t)
	for _, address := range []string{filepath.Join(dir, "none.sock"), dead} {
		for _, args := range [][]string{
			{"images", "encrypt", "--recipient", keys.recipient(), "a", "b"},
			{"images", "decrypt", "--key", keys.private, "a"},
			{"images", "layerinfo", "a"},
			{"images", "pull", "a"},
			{"images", "push", "a"},
			{"images", "tag", "a", "b"},
			{"images", "import", "a"},
			{"images", "mount", "a"},
			{"snapshots", "unpack", "sha256:" + strings.Repeat("0", 64)},
			{"run", "a", "b"},
			{"containers", "create", "a", "b"},
		} {
			start := time.Now()
			refused(t, testnode.Capture(exec.Command(ctrEnc, append([]string{"--address", address}, args...)...)), address)
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("%v: took %v", args, took)
			}
		}
	}
}

// A full disk is an error that says so, and nothing is named or left behind.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{RootSize: 64 << 20}, func(t *testing.T, n *node) {
		keys := rsaKeys(t)
		file, _ := archive(t, testimage.Spec{Layers: []testimage.Layer{{RandomSize: 24 << 20}}}, plainName)
		n.enc("images", "import", "--no-unpack", file).OK(t)
		filler := filepath.Join(n.Dir(), "root", "filler")
		if err := os.WriteFile(filler, make([]byte, 24<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, n.enc("images", "encrypt", "--recipient", keys.recipient(), plainName, encName), "no space left")
		if n.digest(t, encName) != "" {
			t.Error("named something")
		}
		n.leavesNothing(t)
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		n.enc("images", "encrypt", "--recipient", keys.recipient(), plainName, encName).OK(t)
	})
}

// Against a containerd without transfer service, the commands work as they do with one.
func TestWithoutTransferService(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		registry := testregistry.StartDebian(t)
		file, desc := archive(t, runnable(t), plainName)
		want := desc.Digest.String()
		n.enc("images", "import", file).OK(t)
		ref := registry.Ref("app:v1")
		n.enc("images", "tag", plainName, ref, registry.Ref("app:v2")).OK(t)
		n.enc("images", "tag", plainName, ref).OK(t)
		n.enc("images", "push", ref).OK(t)
		n.enc("images", "push", registry.Ref("app:v3"), plainName).OK(t)
		n.enc("images", "export", file+".out", ref).OK(t)
		if r := n.Exec(t.Context(), n.ctrEnc, "images", "export", "-", ref).OK(t); len(r.Stdout) < 1<<20 {
			t.Errorf("%d bytes on standard output", len(r.Stdout))
		}
		n.Clean(t)
		n.enc("images", "pull", registry.Ref("app:v3")).OK(t)
		stdin, err := os.Open(file + ".out")
		if err != nil {
			t.Fatal(err)
		}
		defer stdin.Close()
		cmd := n.Command(t.Context(), n.ctrEnc, "images", "import", "-")
		cmd.Stdin = stdin
		testnode.Capture(cmd).OK(t)
		if a, b := n.digest(t, ref), n.digest(t, registry.Ref("app:v3")); a != want || b != want {
			t.Errorf("got %s, %s, want %s", a, b, want)
		}
	})
}

// What a tampered layer leads to is said where the user sees it, and nothing of it stays.
func TestTampered(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		keys := rsaKeys(t)
		n.loadEncrypted(t, runnable(t), "--recipient", keys.recipient())
		n.tamper(t, encName)
		for range 5 {
			for _, args := range [][]string{
				{"run", "--rm", "--key", keys.private, encName, "e2e"},
				{"snapshots", "unpack", "--key", keys.private, n.digest(t, encName)},
				{"images", "decrypt", "--key", keys.private, encName, "opened"},
			} {
				refused(t, n.enc(args...), "tampered")
				n.leavesNothing(t)
			}
			n.collectGarbage(t)
			if got := n.snapshots(t); got != 0 {
				t.Errorf("%d snapshots", got)
			}
			if n.digest(t, "opened") != "" {
				t.Error("named something")
			}
		}
	})
}

// tamper replaces the MAC of the first layer of an image of one manifest.
func (n *node) tamper(t testing.TB, name string) {
	t.Helper()
	ctx, client := namespaces.WithNamespace(t.Context(), n.Namespace()), n.Client(t)
	img, err := client.ImageService().Get(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := content.ReadBlob(ctx, client.ContentStore(), img.Target)
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	if m.Layers[0].Annotations[layer.PublicAnnotation], err = layer.MarshalPublic(layer.Public{MAC: make([]byte, 32)}); err != nil {
		t.Fatal(err)
	}
	if data, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: m.MediaType}
	desc, err = encryption.NewStore(client.ContentStore()).Put(ctx, desc, bytes.NewReader(data), append([]ocispec.Descriptor{m.Config}, m.Layers...)...)
	if err == nil {
		err = encryption.NewTags(client.ImageService()).Tag(ctx, name, desc)
	}
	if err != nil {
		t.Fatal(err)
	}
}
