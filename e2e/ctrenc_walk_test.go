package e2e

import (
	"testing"

	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testregistry"
)

// The walkthrough: encrypt, push, clean the node, pull, refused without the key, run with it.
func TestWalkthrough(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		registry, keys := testregistry.Start(t), rsaKeys(t)
		ref := registry.Ref("app:enc")
		n.load(t, runnable(t), plainName)

		t.Log(n.enc("images", "encrypt", "--recipient", keys.recipient(), plainName, ref).OK(t))
		t.Log(n.enc("images", "layerinfo", ref).OK(t))
		n.enc("images", "push", ref).OK(t)
		n.Clean(t)

		refused(t, n.enc("images", "pull", ref), "")
		n.leavesNothing(t)
		refused(t, n.run(nil, ref), "you are not authorized to use this image: ")
		n.leavesNothing(t)

		n.enc("images", "pull", "--key", keys.private, ref).OK(t)
		if r := n.run([]string{"--key", keys.private}, ref).OK(t); r.Stdout != hello {
			t.Errorf("got %s, want %q", r, hello)
		}
		refused(t, n.run(nil, ref), "you are not authorized to use this image: ")
		n.leavesNothing(t)
	})
}

// Whatever is not encrypted works as with ctr.
func TestPlainImage(t *testing.T) {
	t.Parallel()
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		registry := testregistry.Start(t)
		ref := registry.Ref("app:plain")
		file, desc := archive(t, runnable(t), plainName)

		n.enc("images", "import", file).OK(t)
		if got := n.digest(t, plainName); got != desc.Digest.String() {
			t.Errorf("imported %s, want %s", got, desc.Digest)
		}
		if n.snapshots(t) == 0 {
			t.Error("not unpacked")
		}
		n.enc("images", "tag", plainName, ref).OK(t)
		n.enc("images", "push", ref).OK(t)
		n.enc("images", "export", file+".out", ref).OK(t)
		n.Clean(t)
		n.enc("images", "pull", ref).OK(t)
		if n.snapshots(t) == 0 {
			t.Error("not unpacked")
		}
		n.Clean(t)
		n.enc("images", "pull", "--local", ref).OK(t)
		if r := n.run(nil, ref).OK(t); r.Stdout != hello {
			t.Errorf("got %s, want %q", r, hello)
		}
		if r := n.run(nil, ref, "/bin/sh", "-c", "exit 7"); r.Code != 7 || r.Stderr != "" {
			t.Errorf("want exit code 7 and nothing else: %s", r)
		}
		n.enc("containers", "create", ref, "created").OK(t)
		n.enc("containers", "rm", "created").OK(t)
		n.leavesNothing(t)
		n.Clean(t)
		n.enc("images", "import", file+".out").OK(t)
		n.run(nil, ref).OK(t)
	})
}
