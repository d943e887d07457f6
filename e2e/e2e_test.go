// Package e2e tests the programs of this module as users meet them: real containerds, the one that is new and the
// one that Debian has, real registries, runc, openssl and skopeo.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testnode"
)

func TestMain(m *testing.M) {
	if isOcicrypt() {
		os.Exit(ocicryptMain())
	}
	testnode.Main(m)
}

// plainName is the name that images have before they are encrypted.
const plainName = "example.test/app:plain"

// hello is what testimage.Runnable prints.
const hello = "Hello World!\n"

// node is a containerd with our decoder, and ctr-enc to go with it.
type node struct {
	*testnode.Node
	ctrEnc string
	env    []string // of ctr-enc
}

// startNode starts a containerd until the end of the test. cfg.DecoderPath is ours if empty.
func startNode(t testing.TB, cfg testnode.Config) *node {
	t.Helper()
	testenv.Need(t, testenv.Busybox)
	if cfg.DecoderPath == "" {
		cfg.DecoderPath = testenv.Build(t, "./cmd/ctd-decoder")
	}
	return &node{Node: testnode.Start(t, cfg), ctrEnc: testenv.Build(t, "./cmd/ctr-enc")}
}

// onEach runs a test on a new node of every containerd.
func onEach(t *testing.T, cfg testnode.Config, test func(t *testing.T, n *node)) {
	t.Helper()
	for _, version := range testnode.Versions() {
		t.Run("containerd "+string(version), func(t *testing.T) {
			t.Parallel()
			cfg := cfg
			cfg.Version = version
			test(t, startNode(t, cfg))
		})
	}
}

// enc runs ctr-enc.
func (n *node) enc(args ...string) testnode.Result {
	return n.ExecEnv(context.Background(), n.env, n.ctrEnc, args...)
}

// with is the same node for somebody with these variables in the environment of ctr-enc.
func (n *node) with(env []string) *node { return &node{Node: n.Node, ctrEnc: n.ctrEnc, env: env} }

// run runs an image in a container that is removed again, with flags before the image.
func (n *node) run(flags []string, image string, command ...string) testnode.Result {
	args := slices.Concat([]string{"run", "--rm"}, flags, []string{image, "e2e"}, command)
	return n.enc(args...)
}

// load imports an image as ctr does, unpacked, and returns its descriptor.
func (n *node) load(t testing.TB, spec testimage.Spec, name string) ocispec.Descriptor {
	t.Helper()
	file, desc := archive(t, spec, name)
	n.Ctr("images", "import", "--all-platforms", file).OK(t)
	return desc
}

// digest returns the digest that name has, "" if there is no such image.
func (n *node) digest(t testing.TB, name string) string {
	t.Helper()
	for line := range strings.Lines(n.Ctr("images", "ls").OK(t).Stdout) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == name {
			return f[2]
		}
	}
	return ""
}

// leftovers lists what a command that failed must not leave: containers, leases, unfinished
// ingests, active snapshots.
func (n *node) leftovers(t testing.TB) []string {
	t.Helper()
	ctx, client := namespaces.WithNamespace(t.Context(), n.Namespace()), n.Client(t)
	var left []string
	containers, err := client.Containers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers {
		left = append(left, "container "+c.ID())
	}
	leases, err := client.LeasesService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases {
		left = append(left, "lease "+l.ID)
	}
	ingests, err := client.ContentStore().ListStatuses(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range ingests {
		left = append(left, "ingest "+i.Ref)
	}
	err = client.SnapshotService(n.Snapshotter()).Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			left = append(left, fmt.Sprintf("%s snapshot %s", info.Kind, info.Name))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// leavesNothing fails the test if there are leftovers.
func (n *node) leavesNothing(t testing.TB) {
	t.Helper()
	if left := n.leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// snapshots counts the committed snapshots.
func (n *node) snapshots(t testing.TB) int {
	t.Helper()
	ctx, count := namespaces.WithNamespace(t.Context(), n.Namespace()), 0
	err := n.Client(t).SnapshotService(n.Snapshotter()).Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			count++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// refused fails the test unless the command failed with exit code 1 and one line, "ctr-enc: …" with all of
// want in it.
func refused(t testing.TB, r testnode.Result, want ...string) {
	t.Helper()
	if r.Code != 1 {
		t.Errorf("exit code %d, want 1:\n%s", r.Code, r)
	}
	var lines []string
	for line := range strings.Lines(r.Stderr) {
		// ctr itself logs what it thinks of a registry without TLS.
		if !strings.HasPrefix(line, "time=") && !strings.HasPrefix(line, "ctr-enc: note: ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	if len(lines) != 1 || !strings.HasPrefix(lines[0], "ctr-enc: ") {
		t.Errorf("want one line on stderr:\n%s", r)
		return
	}
	for _, w := range want {
		if !strings.Contains(lines[0], w) {
			t.Errorf("%q does not say %q", lines[0], w)
		}
	}
}

// runnable is an image whose command prints hello, with a second layer on top.
func runnable(t testing.TB) testimage.Spec {
	t.Helper()
	spec, err := testimage.Runnable()
	if err != nil {
		t.Fatal(err)
	}
	spec.Layers = append(spec.Layers, testimage.Layer{Files: []testimage.File{{Name: "etc/second", Body: []byte("second layer\n")}}})
	spec.Salt = t.Name()
	return spec
}

// archive writes an image as a tar that `images import` reads.
func archive(t testing.TB, spec testimage.Spec, name string) (file string, desc ocispec.Descriptor) {
	t.Helper()
	dir := t.TempDir()
	desc, err := spec.Write(filepath.Join(dir, "layout"), name)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "image.tar")
	if err := testimage.ArchiveFile(file, filepath.Join(dir, "layout")); err != nil {
		t.Fatal(err)
	}
	return file, desc
}

// keyPair is a pair of key files as openssl writes them.
type keyPair struct {
	private, public string
}

// rsaKeys makes an RSA key pair.
func rsaKeys(t testing.TB) keyPair { return opensslKeys(t, "RSA", "rsa_keygen_bits:2048") }

// ecKeys makes a P-256 key pair.
func ecKeys(t testing.TB) keyPair { return opensslKeys(t, "EC", "ec_paramgen_curve:P-256") }

func opensslKeys(t testing.TB, algorithm, option string) keyPair {
	t.Helper()
	testenv.Need(t, "openssl")
	dir := t.TempDir()
	k := keyPair{private: filepath.Join(dir, "key.pem"), public: filepath.Join(dir, "pub.pem")}
	openssl(t, "genpkey", "-quiet", "-algorithm", algorithm, "-pkeyopt", option, "-out", k.private)
	openssl(t, "pkey", "-in", k.private, "-pubout", "-out", k.public)
	return k
}

func openssl(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// recipient is what --recipient takes.
func (k keyPair) recipient() string { return "jwe:" + k.public }
