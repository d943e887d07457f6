package e2e

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testnode"
)

// An image that is removed while it is being encrypted or decrypted, and collected, stays until that is done: what the
// new image shares with it, the config at least, would be missing otherwise.
func TestSourceIsHeld(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		keys, other := rsaKeys(t), ecKeys(t)
		spec := runnable(t)
		spec.Layers = append(spec.Layers, testimage.Layer{RandomSize: 96 << 20, Compression: testimage.None})
		plain := n.load(t, spec, plainName)

		n.withoutSource(t, plainName, "images", "encrypt", "--recipient", keys.recipient(), "--recipient", other.recipient(), plainName, "e2e.test/enc:1")
		n.withoutSource(t, "e2e.test/enc:1", "images", "decrypt", "--key", keys.private, "e2e.test/enc:1", "e2e.test/dec:1")
		if got := n.digest(t, "e2e.test/dec:1"); got != plain.Digest.String() {
			t.Errorf("decrypted to %s, want %s", got, plain.Digest)
		}
		if r := n.run(nil, "e2e.test/dec:1"); r.Stdout != hello {
			t.Errorf("what was decrypted does not run:\n%s", r)
		}
		n.leavesNothing(t)
	})
}

// withoutSource runs ctr-enc, and removes the image source as soon as the command holds it.
func (n *node) withoutSource(t *testing.T, source string, args ...string) {
	t.Helper()
	ctx := namespaces.WithNamespace(t.Context(), n.Namespace())
	service, root := n.Client(t).LeasesService(), n.digest(t, source)
	held := func() bool {
		all, err := service.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(all, func(l leases.Lease) bool {
			resources, _ := service.ListResources(ctx, l)
			return slices.Contains(resources, leases.Resource{ID: root, Type: "content"})
		})
	}
	done := make(chan testnode.Result, 1)
	go func() { done <- n.Exec(context.Background(), n.ctrEnc, args...) }()
	for !held() {
		select {
		case r := <-done:
			t.Fatalf("ended without having held %s:\n%s", source, r)
		case <-time.After(time.Millisecond):
		}
	}
	n.Ctr("images", "rm", "--sync", source).OK(t)
	(<-done).OK(t)
}
