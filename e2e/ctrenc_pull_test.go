package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testregistry"
)

// pull, in both its modes, with and without keys. On containerd 1.6 there is only one mode, which nobody has to
// know.
func TestPull(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		registry, keys, wrong := testregistry.StartDebian(t), rsaKeys(t), rsaKeys(t)
		ref := registry.Ref("app:enc")
		n.load(t, runnable(t), plainName)
		n.enc("images", "encrypt", "--recipient", keys.recipient(), plainName, ref).OK(t)
		n.enc("images", "push", ref).OK(t)
		want := n.digest(t, ref)
		for _, mode := range []string{"--local=false", "--local"} {
			n.Clean(t)
			refused(t, n.enc("images", "pull", mode, ref), "no key")
			n.leavesNothing(t)
			refused(t, n.enc("images", "pull", mode, "--key", wrong.private, ref), unauthorized)
			n.leavesNothing(t)
			n.Clean(t)
			n.enc("images", "pull", mode, "--key", wrong.private, "--key", keys.private, "--label", "a=b,c", ref).OK(t)
			if got := n.digest(t, ref); got != want || n.snapshots(t) != 2 {
				t.Errorf("pulled %s, %d snapshots, want %s, 2", got, n.snapshots(t), want)
			}
			if r := n.enc("images", "ls", "name=="+ref); !strings.Contains(r.Stdout, "a=b,c") {
				t.Errorf("no label: %s", r)
			}
			n.leavesNothing(t)
			n.run([]string{"--key", keys.private}, ref).OK(t)
		}
		n.Clean(t)
		if r := n.enc("images", "pull", "--local", "--print-chainid", "--key", keys.private, ref).OK(t); !strings.Contains(r.Stdout, "image chain ID: sha256:") {
			t.Errorf("no chain id: %s", r)
		}
		refused(t, n.enc("images", "pull", registry.Ref("app:none")), "not found")
		refused(t, n.enc("images", "pull"), "please provide an image reference")
		refused(t, n.enc("images", "pull", "--key", t.TempDir()+"/none", ref), "no such file")
	})
}

// The flags that choose platforms mean what they mean in ctr.
func TestPullPlatforms(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		registry, keys := testregistry.Start(t), rsaKeys(t)
		ref := registry.Ref("two:enc")
		spec := runnable(t)
		spec.Platforms = []string{testimage.HostPlatform(), "linux/s390x"}
		n.load(t, spec, plainName)
		n.enc("images", "encrypt", "--recipient", keys.recipient(), plainName, ref).OK(t)
		n.enc("images", "push", ref).OK(t)
		key := []string{"--key", keys.private}
		for _, test := range []struct {
			flags     []string
			snapshots int
			layers    string
		}{
			{nil, 2, "11"},
			{[]string{"--platform", "linux/s390x"}, 2, "11"},
			// The lower layer is the same for both.
			{[]string{"--platform", "linux/s390x", "--platform", testimage.HostPlatform()}, 3, "1111"},
			{[]string{"--local", "--all-platforms"}, 3, "1111"},
		} {
			n.Clean(t)
			n.enc(slices.Concat([]string{"images", "pull"}, test.flags, key, []string{ref})...).OK(t)
			if got := n.snapshots(t); got != test.snapshots {
				t.Errorf("%v: %d snapshots, want %d", test.flags, got, test.snapshots)
			}
		}
		n.Clean(t)
		n.enc(slices.Concat([]string{"images", "pull", "--all-platforms"}, key, []string{ref})...).OK(t)
		n.enc("images", "decrypt", "--key", keys.private, ref).OK(t)

		// What was pulled for one platform decrypts without --platform.
		n.Clean(t)
		n.enc(slices.Concat([]string{"images", "pull"}, key, []string{ref})...).OK(t)
		n.enc("images", "decrypt", "--key", keys.private, ref, "opened").OK(t)
		n.run(nil, "opened").OK(t)
	})
}

func TestImport(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		keys, wrong := rsaKeys(t), rsaKeys(t)
		n.loadEncrypted(t, runnable(t), "--recipient", keys.recipient())
		want := n.digest(t, encName)
		file := filepath.Join(t.TempDir(), "encrypted.tar")
		n.enc("images", "export", file, encName).OK(t)
		for _, mode := range []string{"--local=false", "--local"} {
			t.Run(mode, func(t *testing.T) {
				n.Clean(t)
				refused(t, n.enc("images", "import", mode, file), "no key")
				n.leavesNothing(t)
				refused(t, n.enc("images", "import", mode, "--key", wrong.private, file), unauthorized)
				n.leavesNothing(t)
				n.Clean(t)
				n.enc("images", "import", mode, "--no-unpack", file).OK(t)
				if n.snapshots(t) != 0 || n.digest(t, encName) != want {
					t.Errorf("%d snapshots, %s", n.snapshots(t), n.digest(t, encName))
				}
				n.Clean(t)
				n.enc("images", "import", mode, "--key", keys.private, file).OK(t)
				if n.snapshots(t) != 2 || n.digest(t, encName) != want {
					t.Errorf("%d snapshots, %s", n.snapshots(t), n.digest(t, encName))
				}
				n.leavesNothing(t)
				n.run([]string{"--key", keys.private}, encName).OK(t)
				refused(t, n.enc("images", "import", mode, "--key", keys.private, "--discard-unpacked-layers", file), "cannot be combined")
			})
		}
	})
}

// Whatever is imported, names, labels and snapshots are those that ctr makes.
func TestImportAsCtr(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		testenv.Need(t, testenv.Containerd24)
		ctr := filepath.Join(testenv.CacheBin(), "ctr")
		spec := runnable(t)
		spec.Platforms = []string{testimage.HostPlatform(), "linux/s390x"}
		file, _ := archive(t, spec, plainName)
		for _, flags := range [][]string{
			nil, {"--label", "new=1,2"}, {"--digests"}, {"--index-name", "example.test/index:all"},
			{"--base-name", "example.test/app"}, {"--all-platforms"}, {"--platform", testimage.HostPlatform()},
			{"--no-unpack"}, {"--local"}, {"--local", "--label", "new=1,2"}, {"--local", "--digests"},
			{"--local", "--all-platforms"}, {"--local", "--discard-unpacked-layers"}, {"--local", "--no-unpack"},
		} {
			if n.Version() == testnode.V16 && !slices.Contains(flags, "--local") {
				continue
			}
			var got [2]string
			for i, program := range []string{n.ctrEnc, ctr} {
				n.Clean(t)
				n.Ctr("images", "import", "--no-unpack", file).OK(t)
				n.Ctr("images", "label", plainName, "old=1").OK(t)
				n.Exec(t.Context(), program, slices.Concat([]string{"images", "import"}, flags, []string{file})...).OK(t)
				n.collectGarbage(t)
				got[i] = n.state(t)
			}
			if got[0] != got[1] {
				t.Errorf("%v: got\n%s\nctr makes\n%s", flags, got[0], got[1])
			}
		}
	})
}

// Whatever is pulled, too, but not encrypted.
func TestPullAsCtr(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		testenv.Need(t, testenv.Containerd24)
		ctr := filepath.Join(testenv.CacheBin(), "ctr")
		registry := testregistry.Start(t)
		dir := filepath.Join(t.TempDir(), "layout")
		spec := runnable(t)
		spec.Platforms = []string{testimage.HostPlatform(), "linux/s390x"}
		push := func(spec testimage.Spec, name string) string {
			if _, err := spec.Write(dir, name); err != nil {
				t.Fatal(err)
			}
			return registry.Push(t, dir, name)
		}
		index, single := push(spec, "app:index"), push(runnable(t), "app:single")
		attested := push(testimage.Spec{Attestations: true, Docker: true}, "app:attested")
		artifact := push(testimage.Spec{
			Layers: []testimage.Layer{{MediaType: "application/vnd.example.chart.v1.tar+gzip"}}, ArtifactType: "application/vnd.example.chart",
		}, "app:artifact")
		for _, test := range [][]string{
			{index}, {single}, {attested}, {artifact}, {"--all-platforms", index}, {"--skip-metadata", index}, {"--label", "a=b", index},
			{"--platform", "linux/s390x", index}, {"--platform", "linux/s390x", "--platform", testimage.HostPlatform(), index},
			{"--platform", "linux/riscv64", index}, {"--platform", "linux/s390x", single}, {"--plain-http", single},
			{"--print-chainid", single}, {"--all-platforms", "--platform", "linux/s390x", index},
			{"--local", index}, {"--local", single}, {"--local", attested}, {"--local", artifact}, {"--local", "--all-platforms", "--print-chainid", single},
			{"--local", "--platform", "linux/s390x", "--skip-metadata", index}, {"--local", "--platform", "linux/riscv64", index},
		} {
			if n.Version() == testnode.V16 && test[0] != "--local" {
				continue
			}
			var got [2]string
			var results [2]testnode.Result
			for i, program := range []string{n.ctrEnc, ctr} {
				n.Clean(t)
				results[i] = n.Exec(t.Context(), program, slices.Concat([]string{"images", "pull"}, test)...)
				n.collectGarbage(t)
				got[i] = fmt.Sprintln("exit", results[i].Code) + n.state(t)
			}
			if got[0] != got[1] {
				t.Errorf("%v: got\n%s%s\nctr makes\n%s%s", test, got[0], results[0].Stderr, got[1], results[1].Stderr)
			}
		}
	})
}

// state describes images, blobs and snapshots without what depends on the time.
func (n *node) state(t testing.TB) string {
	t.Helper()
	ctx, client := namespaces.WithNamespace(t.Context(), n.Namespace()), n.Client(t)
	list, err := client.ImageService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, img := range list {
		delete(img.Labels, "containerd.io/gc.expire")
		fmt.Fprintln(&b, img.Name, img.Target.Digest, img.Labels)
	}
	for _, blob := range n.blobs(t) {
		fmt.Fprintln(&b, blob)
	}
	fmt.Fprintln(&b, n.snapshots(t), "snapshots")
	return b.String()
}
