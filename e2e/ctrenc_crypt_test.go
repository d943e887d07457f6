package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testnode"
)

// row is a line of the table of layerinfo.
type row struct {
	index, digest, platform, size, encryption, recipients string
}

// layerinfo parses the table as scripts do, by its blanks.
func (n *node) layerinfo(t testing.TB, args ...string) []row {
	t.Helper()
	out := n.enc(append([]string{"images", "layerinfo"}, args...)...).OK(t).Stdout
	header, body, _ := strings.Cut(out, "\n")
	if got := strings.Join(strings.Fields(header), "  "); got != "#  DIGEST  PLATFORM  SIZE  ENCRYPTION  RECIPIENTS" {
		t.Errorf("header %q", header)
	}
	var rows []row
	for line := range strings.Lines(body) {
		f := append(strings.Fields(line), "", "")
		rows = append(rows, row{f[0], f[1], f[2], f[3], f[4], strings.TrimSpace(strings.Join(f[5:], " "))})
	}
	return rows
}

// encrypted returns which rows are encrypted, as "01" for a plain and an encrypted layer.
func encrypted(rows []row) string {
	var b strings.Builder
	for _, r := range rows {
		b.WriteByte("01"[min(len(r.encryption), 1)])
	}
	return b.String()
}

func TestSelectLayers(t *testing.T) {
	t.Parallel()
	n := startNode(t, testnode.Config{})
	keys := rsaKeys(t)
	const two = "example.test/app:two"
	n.load(t, testimage.Spec{Layers: testimage.Layers(3, testimage.Gzip), Salt: "one"}, plainName)
	n.load(t, testimage.Spec{Layers: testimage.Layers(2, testimage.Zstd), Salt: "two", Platforms: []string{"linux/amd64", "linux/arm64"}}, two)
	tests := []struct {
		name, image string
		flags       []string
		want        string
		fails       string
	}{
		{name: "all", image: plainName, want: "111"},
		{name: "first", image: plainName, flags: []string{"--layer", "0"}, want: "100"},
		{name: "top", image: plainName, flags: []string{"--layer", "-1"}, want: "001"},
		{name: "top, with equals sign", image: plainName, flags: []string{"--layer=-3"}, want: "100"},
		{name: "two", image: plainName, flags: []string{"--layer", "0", "--layer", "-1"}, want: "101"},
		{name: "none", image: plainName, flags: []string{"--layer", "3"}, fails: "nothing selected"},
		{name: "none below", image: plainName, flags: []string{"--layer", "-4"}, fails: "nothing selected"},
		{name: "one that is and one that is not", image: plainName, flags: []string{"--layer", "0", "--layer", "3"}, fails: "--layer 3: nothing selected"},
		{name: "all of two platforms", image: two, want: "1111"},
		{name: "all platforms", image: two, flags: []string{"--all-platforms"}, want: "1111"},
		{name: "a platform", image: two, flags: []string{"--platform", "linux/arm64"}, want: "0011"},
		{name: "two platforms", image: two, flags: []string{"--platform", "linux/arm64", "--platform", "linux/amd64"}, want: "1111"},
		{name: "platform and layer", image: two, flags: []string{"--platform", "linux/amd64", "--layer", "-1"}, want: "0100"},
		{name: "no platform", image: two, flags: []string{"--platform", "linux/riscv64"}, fails: "nothing selected"},
		{name: "a platform and none", image: two, flags: []string{"--platform", "linux/amd64", "--platform", "linux/riscv64"}, fails: "--platform linux/riscv64: nothing selected"},
		{name: "bad platform", image: two, flags: []string{"--platform", "%"}, fails: "%"},
		{name: "contradiction", image: two, flags: []string{"--platform", "linux/amd64", "--all-platforms"}, fails: "cannot specify both"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			target := "example.test/selected:" + strings.ReplaceAll(strings.ReplaceAll(test.name, " ", "-"), ",", "")
			args := slices.Concat([]string{"images", "encrypt", "--recipient", keys.recipient()}, test.flags, []string{test.image, target})
			r := n.enc(args...)
			n.leavesNothing(t)
			if test.fails != "" {
				refused(t, r, test.fails)
				if n.digest(t, target) != "" {
					t.Error("named something all the same")
				}
				return
			}
			r.OK(t)
			if got := encrypted(n.layerinfo(t, target)); got != test.want {
				t.Errorf("encrypted %s, want %s", got, test.want)
			}
			n.enc("images", "decrypt", "--key", keys.private, target).OK(t)
			if got, want := n.digest(t, target), n.digest(t, test.image); got != want {
				t.Errorf("decrypted %s, want %s", got, want)
			}
		})
	}
	t.Run("decrypt some", func(t *testing.T) {
		const target = "example.test/app:some"
		n.enc("images", "encrypt", "--recipient", keys.recipient(), two, target).OK(t)
		n.enc("images", "decrypt", "--key", keys.private, "--layer", "0", "--platform", "linux/arm64", target).OK(t)
		if got := encrypted(n.layerinfo(t, target)); got != "1101" {
			t.Errorf("encrypted %s", got)
		}
		if got := encrypted(n.layerinfo(t, "--platform", "linux/arm64", target)); got != "01" {
			t.Errorf("encrypted for arm64 %s", got)
		}
		if got := encrypted(n.layerinfo(t, "--layer", "-1", target)); got != "11" {
			t.Errorf("encrypted on top %s", got)
		}
		refused(t, n.enc("images", "decrypt", "--key", keys.private, "--layer", "7", target), "nothing selected")
		n.enc("images", "decrypt", "--key", keys.private, target).OK(t)
		if got, want := n.digest(t, target), n.digest(t, two); got != want {
			t.Errorf("decrypted %s, want %s", got, want)
		}
	})
}

// Names are replaced in one step, whether or not they named something, and the labels of an image stay.
func TestNames(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		keys, plain := ecKeys(t), n.load(t, testimage.Spec{Salt: t.Name()}, plainName).Digest.String()
		const target, other = "example.test/app:target", "example.test/app:other"

		n.enc("images", "encrypt", "--recipient", keys.recipient(), plainName, target).OK(t)
		first := n.digest(t, target)
		if first == plain || n.digest(t, plainName) != plain {
			t.Errorf("%s and %s, was %s", first, n.digest(t, plainName), plain)
		}
		n.enc("images", "label", target, "kept=yes").OK(t)
		n.enc("images", "encrypt", "--recipient", keys.recipient(), plainName, target).OK(t)
		if second := n.digest(t, target); second == first || second == plain {
			t.Errorf("not replaced: %s", second)
		}
		if r := n.enc("images", "ls", "name=="+target).OK(t); !strings.Contains(r.Stdout, "kept=yes") {
			t.Errorf("label lost:\n%s", r)
		}
		n.enc("images", "decrypt", "--key", keys.private, target, other).OK(t)
		if n.digest(t, other) != plain {
			t.Error("not the original")
		}
		n.enc("images", "encrypt", "--recipient", keys.recipient(), other).OK(t)
		if n.digest(t, other) == plain {
			t.Error("not encrypted in place")
		}
		n.enc("images", "decrypt", "--key", keys.private, other).OK(t)
		if n.digest(t, other) != plain {
			t.Error("not decrypted in place")
		}

		// An image without encrypted layers needs no key, and no work.
		r := n.enc("images", "decrypt", plainName).OK(t)
		if !strings.Contains(r.Stdout, "nothing to decrypt") {
			t.Errorf("does not say so:\n%s", r)
		}
		n.enc("images", "decrypt", plainName, target).OK(t)
		if n.digest(t, target) != plain {
			t.Error("nothing to decrypt, and the new name is another image")
		}
		n.leavesNothing(t)
	})
}

// A new recipient is added by whoever can open the image. The data of the layers stays as it is.
func TestAddRecipient(t *testing.T) {
	t.Parallel()
	n := startNode(t, testnode.Config{})
	first, second, third := rsaKeys(t), ecKeys(t), rsaKeys(t)
	spec := runnable(t)
	n.load(t, spec, plainName)
	const target = "example.test/app:enc"
	n.enc("images", "encrypt", "--recipient", first.recipient(), plainName, target).OK(t)
	before := n.layerinfo(t, target)

	refused(t, n.enc("images", "encrypt", "--recipient", second.recipient(), target), "no key")
	refused(t, n.enc("images", "encrypt", "--recipient", second.recipient(), "--key", second.private, target), "key")
	if got := n.layerinfo(t, target); !slices.Equal(got, before) {
		t.Errorf("changed to %v", got)
	}
	n.enc("images", "encrypt", "--recipient", second.recipient(), "--recipient", third.recipient(), "--key", first.private, target).OK(t)
	after := n.layerinfo(t, target)
	for i := range before {
		if after[i].digest != before[i].digest || after[i].size != before[i].size {
			t.Errorf("layer %d: was %v, is %v", i, before[i], after[i])
		}
		if got := strings.Split(after[i].recipients, ", "); len(got) != 3 || !slices.IsSorted(got) || !slices.Contains(got, before[i].recipients) {
			t.Errorf("layer %d: recipients %q", i, got)
		}
	}
	r := n.enc("images", "encrypt", "--recipient", second.recipient(), "--key", third.private, target).OK(t)
	if !strings.Contains(r.Stdout, "already") {
		t.Errorf("added once more:\n%s", r)
	}
	for _, k := range []keyPair{first, second, third} {
		if r := n.run([]string{"--key", k.private}, target).OK(t); r.Stdout != hello {
			t.Errorf("got %s", r)
		}
	}
}

func TestLayerinfo(t *testing.T) {
	t.Parallel()
	n := startNode(t, testnode.Config{})
	keys := rsaKeys(t)
	spec := testimage.Spec{Layers: testimage.Layers(2, testimage.Gzip), Platforms: []string{"linux/amd64", "linux/arm/v7"}, Attestations: true}
	dir := t.TempDir()
	file := filepath.Join(dir, "image.tar")
	desc, err := spec.Write(filepath.Join(dir, "layout"), plainName)
	if err != nil {
		t.Fatal(err)
	}
	if err := testimage.ArchiveFile(file, filepath.Join(dir, "layout")); err != nil {
		t.Fatal(err)
	}
	n.Ctr("images", "import", "--all-platforms", file).OK(t)

	var want []row
	var index ocispec.Index
	readJSON(t, filepath.Join(dir, "layout"), desc, &index)
	for _, m := range index.Manifests {
		var manifest ocispec.Manifest
		readJSON(t, filepath.Join(dir, "layout"), m, &manifest)
		platform := m.Platform.OS + "/" + m.Platform.Architecture
		if m.Platform.Variant != "" {
			platform += "/" + m.Platform.Variant
		}
		for i, l := range manifest.Layers {
			want = append(want, row{string(rune('0' + i)), l.Digest.String(), platform, itoa(l.Size), "", ""})
		}
	}
	if got := n.layerinfo(t, plainName); !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if got := n.layerinfo(t, "-n", "--platform", "linux/arm/v7", "--layer", "1", plainName); len(got) != 1 || got[0] != want[3] {
		t.Errorf("got %v, want %v", got, want[3])
	}

	n.enc("images", "encrypt", "--platform", "linux/amd64", "--recipient", keys.recipient(), plainName).OK(t)
	for i, r := range n.layerinfo(t, plainName) {
		if (r.encryption == "jwe" && len(r.recipients) == 43) != (i < 2) || r.platform != want[i].platform || r.size != want[i].size {
			t.Errorf("row %d: %v", i, r)
		}
	}

	// Right-aligned, by three blanks at least, with the same columns in every row.
	lines := strings.Split(strings.TrimSuffix(n.enc("images", "layerinfo", plainName).Stdout, "\n"), "\n")
	for _, line := range lines {
		if len(line) != len(lines[0]) || !strings.HasPrefix(line, "   ") {
			t.Errorf("not aligned: %q", line)
		}
	}
	refused(t, n.enc("images", "layerinfo", "--layer", "9", plainName), "nothing selected")
	refused(t, n.enc("images", "layerinfo", "example.test/none"), "example.test/none", "not found")
	refused(t, n.enc("images", "layerinfo"), "usage: ctr-enc images layerinfo [flags] <local>")
	refused(t, n.enc("images", "layerinfo", plainName, "more"), "usage: ")
}

func itoa(n int64) string {
	data, _ := json.Marshal(n)
	return string(data)
}

func readJSON(t testing.TB, dir string, desc ocispec.Descriptor, v any) {
	t.Helper()
	data, err := testimage.Blob(dir, desc)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What encryption writes hangs together for the garbage collector, and what it replaced is collected.
func TestGarbageCollection(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		keys := rsaKeys(t)
		n.load(t, testimage.Spec{Layers: testimage.Layers(2, testimage.Gzip), Platforms: []string{"linux/amd64", "linux/arm64"}}, plainName)
		n.collectGarbage(t)
		plain := n.blobs(t)
		const target = "example.test/app:enc"
		n.enc("images", "encrypt", "--recipient", keys.recipient(), plainName, target).OK(t)
		n.collectGarbage(t)
		both := n.blobs(t)
		// An index, two manifests, three layers: the lower one is the same for both platforms.
		if got := len(both) - len(plain); got != 6 {
			t.Errorf("%d new blobs, want 6", got)
		}
		n.enc("images", "rm", "--sync", plainName).OK(t)
		n.enc("images", "check").OK(t)
		n.enc("images", "decrypt", "--key", keys.private, target, plainName).OK(t)
		n.enc("images", "rm", "--sync", target).OK(t)
		n.collectGarbage(t)
		if got := n.blobs(t); !slices.Equal(got, plain) {
			t.Errorf("%d blobs after the way back, %d before:\n%v\n%v", len(got), len(plain), got, plain)
		}
	})
}

// blobs lists the digests of all blobs, sorted.
func (n *node) blobs(t testing.TB) []digest.Digest {
	t.Helper()
	var blobs []digest.Digest
	ctx := namespaces.WithNamespace(t.Context(), n.Namespace())
	err := n.Client(t).ContentStore().Walk(ctx, func(info content.Info) error {
		blobs = append(blobs, info.Digest)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(blobs)
	return blobs
}

// collectGarbage has containerd collect garbage, and waits for the end.
func (n *node) collectGarbage(t testing.TB) {
	t.Helper()
	ctx, service := namespaces.WithNamespace(t.Context(), n.Namespace()), n.Client(t).LeasesService()
	l, err := service.Create(ctx, leases.WithRandomID())
	if err == nil {
		err = service.Delete(ctx, l, leases.SynchronousDelete)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What the operation reads has to be here.
func TestMissingPlatform(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		keys := rsaKeys(t)
		spec := testimage.Spec{Layers: testimage.Layers(2, testimage.Gzip), Platforms: []string{testimage.HostPlatform(), "linux/s390x"}}
		file, _ := archive(t, spec, plainName)
		n.enc("images", "import", "--local", "--platform", testimage.HostPlatform(), file).OK(t)
		n.removeOther(t, plainName)

		refused(t, n.enc("images", "encrypt", "--recipient", keys.recipient(), plainName), "linux/s390x", "--platform")
		n.leavesNothing(t)
		r := n.enc("images", "encrypt", "--platform", testimage.HostPlatform(), "--recipient", keys.recipient(), plainName, "enc").OK(t)
		if !strings.Contains(r.Stderr, "note: ") || !strings.Contains(r.Stderr, "linux/s390x") {
			t.Errorf("does not say what stays readable:\n%s", r)
		}
		if got := encrypted(n.layerinfo(t, "enc")); got != "11" {
			t.Errorf("encrypted %s", got)
		}
		refused(t, n.enc("images", "decrypt", "--key", keys.private, "--platform", "linux/s390x", "enc"), "linux/s390x")
		n.enc("images", "decrypt", "--key", keys.private, "enc").OK(t)
		if got, want := n.digest(t, "enc"), n.digest(t, plainName); got != want {
			t.Errorf("decrypted %s, want %s", got, want)
		}
	})
}

// removeOther removes the blobs of an image that are for other platforms.
func (n *node) removeOther(t testing.TB, name string) {
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
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		t.Fatal(err)
	}
	for _, m := range index.Manifests {
		if m.Platform.OS+"/"+m.Platform.Architecture == testimage.HostPlatform() {
			continue
		}
		if err := client.ContentStore().Delete(ctx, m.Digest); err != nil && !strings.Contains(err.Error(), "not found") {
			t.Fatal(err)
		}
	}
}

// Keys with passwords, in all their spellings, and a pipe for a key.
func TestKeyFlags(t *testing.T) {
	t.Parallel()
	n := startNode(t, testnode.Config{})
	keys := rsaKeys(t)
	dir := t.TempDir()
	const password = "a,b:c=d"
	locked, passwordFile := filepath.Join(dir, "locked.pem"), filepath.Join(dir, "password")
	openssl(t, "pkcs8", "-topk8", "-in", keys.private, "-passout", "pass:"+password, "-out", locked)
	if err := os.WriteFile(passwordFile, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const target = "example.test/app:enc"
	n.load(t, testimage.Spec{Layers: testimage.Layers(12, testimage.Gzip)}, plainName)
	n.enc("images", "encrypt", "--recipient", keys.recipient(), plainName, target).OK(t)
	for _, key := range []string{
		locked + ":" + password, locked + ":pass=" + password, locked + ":file=" + passwordFile,
	} {
		n.enc("images", "decrypt", "--key", key, target, "opened").OK(t)
	}
	n.enc("images", "rm", "--sync", plainName).OK(t)
	n.enc("images", "rm", "--sync", "opened").OK(t)
	for _, test := range []struct{ key, want string }{
		{locked, "password"}, {locked + ":wrong", "password"}, {locked + ":file=" + dir + "/none", "none"},
		{dir + "/none", "no such file"}, {dir, "directory"}, {keys.public, "public"},
		{locked + ":fd=99", "99"},
	} {
		for _, command := range [][]string{{"images", "decrypt", "--key", test.key, target}, {"run", "--rm", "--key", test.key, target, "e2e"}} {
			r := n.enc(command...)
			refused(t, r, test.want)
			if strings.Contains(r.Stderr, password) {
				t.Errorf("shows the password: %s", r.Stderr)
			}
			n.leavesNothing(t)
		}
	}
	for _, test := range []struct{ recipient, want string }{
		{"pub.pem", "scheme"}, {"rot13:pub.pem", "unknown scheme"}, {"jwe:", "jwe"}, {"jwe:" + dir + "/none", "no such file"},
		{"jwe:" + keys.private, "private"}, {"jwe:" + passwordFile, "key"},
	} {
		refused(t, n.enc("images", "encrypt", "--recipient", test.recipient, target, "other"), test.want)
	}
	shell := n.Command(t.Context(), "bash", "-c", `"$0" "$@" --key <(cat "$KEY") --key <(cat "$KEY") `+target, n.ctrEnc, "images", "decrypt")
	shell.Env = append(shell.Env, "KEY="+keys.private)
	testnode.Capture(shell).OK(t)
	if got := encrypted(n.layerinfo(t, target)); got != strings.Repeat("0", 12) {
		t.Errorf("encrypted %s", got)
	}
}
