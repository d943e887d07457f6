package testnode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Client connects to the node until the end of the test, in the node's namespace.
func (n *Node) Client(t testing.TB) *client.Client {
	t.Helper()
	c, err := n.connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (n *Node) connect() (*client.Client, error) {
	return client.New(n.Address(), client.WithDefaultNamespace(n.Namespace()), client.WithTimeout(startTimeout))
}

// Clean makes the node as good as new: no containers, images, snapshots, leases and content in any
// namespace, on the disk neither. Without it a layer with the same chain id from an earlier test hides that
// nothing was decrypted. The test fails where anything is left.
func (n *Node) Clean(t testing.TB) {
	t.Helper()
	if err := n.CleanUp(context.Background()); err != nil {
		t.Fatalf("clean containerd %s: %v", n.cfg.Version, err)
	}
}

// CleanUp is Clean for programs that are no tests.
func (n *Node) CleanUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c, err := n.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	spaces, err := c.NamespaceService().List(ctx)
	if err != nil {
		return err
	}
	for _, ns := range spaces {
		if err := n.cleanNamespace(namespaces.WithNamespace(ctx, ns), c); err != nil {
			return fmt.Errorf("namespace %s: %w", ns, err)
		}
	}
	return n.collectGarbage(namespaces.WithNamespace(ctx, n.Namespace()), c)
}

// cleanNamespace removes what refers to something before what it refers to.
func (n *Node) cleanNamespace(ctx context.Context, c *client.Client) error {
	steps := []func(context.Context, *client.Client) error{
		removeContainers, removeImages, removeLeases, n.removeSnapshots, removeContent,
	}
	for _, step := range steps {
		if err := step(ctx, c); err != nil {
			return err
		}
	}
	return n.waitForShims()
}

func removeContainers(ctx context.Context, c *client.Client) error {
	containers, err := c.Containers(ctx)
	if err != nil {
		return err
	}
	for _, container := range containers {
		task, err := container.Task(ctx, nil)
		if err == nil {
			_, err = task.Delete(ctx, client.WithProcessKill)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("task %s: %w", container.ID(), err)
		}
		if err := container.Delete(ctx); err != nil {
			return fmt.Errorf("container %s: %w", container.ID(), err)
		}
	}
	return nil
}

func removeImages(ctx context.Context, c *client.Client) error {
	list, err := c.ImageService().List(ctx)
	if err != nil {
		return err
	}
	for _, image := range list {
		if err := c.ImageService().Delete(ctx, image.Name, images.SynchronousDelete()); err != nil {
			return fmt.Errorf("image %s: %w", image.Name, err)
		}
	}
	return nil
}

func removeLeases(ctx context.Context, c *client.Client) error {
	list, err := c.LeasesService().List(ctx)
	if err != nil {
		return err
	}
	for _, lease := range list {
		if err := c.LeasesService().Delete(ctx, lease, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("lease %s: %w", lease.ID, err)
		}
	}
	return nil
}

// removeSnapshots removes the snapshots that have no children until there are none.
func (n *Node) removeSnapshots(ctx context.Context, c *client.Client) error {
	sn := c.SnapshotService(n.snapshotter)
	for {
		parents := make(map[string]bool)
		var names []string
		err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			names = append(names, info.Name)
			parents[info.Parent] = true
			return nil
		})
		if err != nil || len(names) == 0 {
			return err
		}
		for _, name := range names {
			if parents[name] {
				continue
			}
			if err := sn.Remove(ctx, name); err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("snapshot %s: %w", name, err)
			}
		}
	}
}

func removeContent(ctx context.Context, c *client.Client) error {
	cs := c.ContentStore()
	ingests, err := cs.ListStatuses(ctx)
	if err != nil {
		return err
	}
	for _, ingest := range ingests {
		if err := cs.Abort(ctx, ingest.Ref); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("ingest %s: %w", ingest.Ref, err)
		}
	}
	var blobs []digest.Digest
	err = cs.Walk(ctx, func(info content.Info) error {
		blobs = append(blobs, info.Digest)
		return nil
	})
	if err != nil {
		return err
	}
	for _, blob := range blobs {
		if err := cs.Delete(ctx, blob); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("blob %s: %w", blob, err)
		}
	}
	return nil
}

// collectGarbage has containerd remove from its disk what its database does not know any more, and checks that
// nothing is left there.
func (n *Node) collectGarbage(ctx context.Context, c *client.Client) error {
	for {
		// Deleting a lease synchronously is the way to ask for a garbage collection and wait for its end.
		lease, err := c.LeasesService().Create(ctx, leases.WithRandomID())
		if err != nil {
			return err
		}
		if err := c.LeasesService().Delete(ctx, lease, leases.SynchronousDelete); err != nil {
			return err
		}
		left, err := n.onDisk()
		if err != nil || len(left) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("left on the disk: %v", left)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// onDisk lists the blobs, unfinished downloads and snapshots that the node's directory holds.
func (n *Node) onDisk() ([]string, error) {
	var left []string
	for _, pattern := range []string{
		"io.containerd.content.v1.content/blobs/*/*",
		"io.containerd.content.v1.content/ingest/*",
		"io.containerd.snapshotter.v1." + n.snapshotter + "/snapshots/*",
	} {
		found, err := filepath.Glob(filepath.Join(n.rootDir(), pattern))
		if err != nil {
			return nil, err
		}
		left = append(left, found...)
	}
	mounts, err := mountsBelow(n.path("state"))
	if err != nil {
		return nil, err
	}
	return append(left, mounts...), nil
}

// Committed reports whether the node's disk holds the blob.
func (n *Node) Committed(blob digest.Digest) (bool, error) {
	path := filepath.Join(n.rootDir(), "io.containerd.content.v1.content/blobs", blob.Algorithm().String(), blob.Encoded())
	_, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
