package e2e

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testnode"
)

// imgcrypt runs imgcrypt on the node's containerd.
func (n *node) imgcrypt(t testing.TB, args ...string) testnode.Result {
	t.Helper()
	return n.Exec(context.Background(), testenv.Build(t, "./cmd/imgcrypt"), args...)
}

// Images go from a containerd to another place and back, encrypted and decrypted, and run.
func TestImgcryptOnContainerd(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		keys := rsaKeys(t)
		spec := runnable(t)
		spec.Platforms = []string{testimage.HostPlatform(), "linux/s390x"}
		plain := n.load(t, spec, plainName).Digest.String()
		layout := "oci:" + filepath.Join(t.TempDir(), "layout") + ":sealed"
		in := func(name string) string { return "containerd:" + name }
		n.imgcrypt(t, "encrypt", "-q", "-r", keys.recipient(), in(plainName), layout).OK(t)
		n.imgcrypt(t, "verify", "-q", "--require-encrypted", "-k", keys.private, layout).OK(t)
		n.imgcrypt(t, "recipients", "add", "-q", "-r", keys.recipient(), layout, in(encName)).OK(t)
		n.leavesNothing(t)
		if r := n.run([]string{"--key", keys.private}, encName).OK(t); r.Stdout != hello {
			t.Errorf("got %s", r)
		}
		r := n.imgcrypt(t, "decrypt", "-q", "--in-place", "-k", keys.private, in(encName)).OK(t)
		if got := n.digest(t, encName); got != plain || !strings.HasSuffix(strings.TrimSpace(r.Stdout), "@"+plain) {
			t.Errorf("decrypted to %s, want %s: %s", got, plain, r)
		}
		n.leavesNothing(t)
		if r := n.imgcrypt(t, "inspect", in("example.test/no:such")); r.Code != 1 || !strings.Contains(r.Stderr, "not found") {
			t.Errorf("got %s", r)
		}
		n.leavesNothing(t)
	})
}
