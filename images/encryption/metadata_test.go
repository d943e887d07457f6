package encryption_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
)

// node is the part of a containerd that keeps images, in this process.
type node struct {
	db     *metadata.DB
	cs     content.Store
	is     images.Store
	lm     leases.Manager
	client *containerd.Client
}

// newNode returns a node and a context for a namespace on it.
func newNode(tb testing.TB, platform string) (*node, context.Context) {
	tb.Helper()
	ctx := namespaces.WithNamespace(context.Background(), "test")
	backend, _ := newContent(tb)
	file, err := bbolt.Open(filepath.Join(tb.TempDir(), "meta.db"), 0o600, nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { file.Close() })
	db := metadata.NewDB(file, backend, nil)
	if err := db.Init(ctx); err != nil {
		tb.Fatal(err)
	}
	n := &node{db: db, cs: db.ContentStore(), is: metadata.NewImageStore(db), lm: metadata.NewLeaseManager(db)}
	n.client, err = containerd.New("", containerd.WithServices(
		containerd.WithContentStore(n.cs), containerd.WithImageStore(n.is), containerd.WithLeasesService(n.lm),
	), containerd.WithDefaultPlatform(platforms.OnlyStrict(platforms.MustParse(platform))))
	if err != nil {
		tb.Fatal(err)
	}
	return n, ctx
}

// lease returns a context in which everything is kept, and what ends that.
func (n *node) lease(tb testing.TB, ctx context.Context) (context.Context, func()) {
	tb.Helper()
	l, err := n.lm.Create(ctx, leases.WithRandomID())
	if err != nil {
		tb.Fatal(err)
	}
	return leases.WithLease(ctx, l.ID), func() {
		if err := n.lm.Delete(ctx, l); err != nil {
			tb.Error(err)
		}
	}
}

// add writes an image as containerd's own pull does, and names it.
func (n *node) add(tb testing.TB, ctx context.Context, name string, spec testimage.Spec) ocispec.Descriptor {
	tb.Helper()
	from, dir := newContent(tb)
	desc := writeImage(tb, dir, spec)
	leased, release := n.lease(tb, ctx)
	defer release()
	copyBlob := func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		ra, err := from.ReaderAt(ctx, desc)
		if err != nil {
			return nil, err
		}
		defer ra.Close()
		return nil, content.WriteBlob(ctx, n.cs, "copy-"+desc.Digest.String(), content.NewReader(ra), desc)
	}
	handler := images.Handlers(images.HandlerFunc(copyBlob), images.SetChildrenLabels(n.cs, images.ChildrenHandler(n.cs)))
	if err := images.Walk(leased, handler, desc); err != nil {
		tb.Fatal(err)
	}
	if _, err := n.is.Create(ctx, images.Image{Name: name, Target: desc}); err != nil {
		tb.Fatal(err)
	}
	return desc
}

// collect collects garbage and returns what is left.
func (n *node) collect(tb testing.TB, ctx context.Context) []digest.Digest {
	tb.Helper()
	if _, err := n.db.GarbageCollect(ctx); err != nil {
		tb.Fatal(err)
	}
	var all []digest.Digest
	if err := n.cs.Walk(ctx, func(info content.Info) error { all = append(all, info.Digest); return nil }); err != nil {
		tb.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// reachable returns the blobs of an image.
func (n *node) reachable(tb testing.TB, ctx context.Context, desc ocispec.Descriptor) []digest.Digest {
	tb.Helper()
	seen := map[digest.Digest]bool{}
	note := func(_ context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		seen[desc.Digest] = true
		return nil, nil
	}
	if err := images.Walk(ctx, images.Handlers(images.HandlerFunc(note), images.ChildrenHandler(n.cs)), desc); err != nil {
		tb.Fatal(err)
	}
	return slices.Sorted(maps.Keys(seen))
}

func union(sets ...[]digest.Digest) []digest.Digest {
	all := slices.Concat(sets...)
	slices.Sort(all)
	return slices.Compact(all)
}

// The image lives as long as its lease or its name, and no longer.
func TestGarbageCollection(t *testing.T) {
	t.Parallel()
	for name, spec := range map[string]testimage.Spec{
		"manifest":    {Layers: testimage.Layers(12, testimage.Gzip)},
		"index":       {Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true},
		"Docker list": {Docker: true, Platforms: []string{"linux/amd64", "linux/arm64"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair()
			n, ctx := newNode(t, "linux/amd64")
			plain := n.add(t, ctx, "plain", spec)
			tags := encryption.NewTags(n.is)

			leased, release := n.lease(t, ctx)
			sealed, _, err := encryption.EncryptImage(leased, n.cs, plain, p.encrypts(), nil)
			if err != nil {
				t.Fatal(err)
			}
			all := union(n.reachable(t, ctx, plain), n.reachable(t, ctx, sealed))
			if diff := cmp.Diff(all, n.collect(t, ctx)); diff != "" {
				t.Error("leased", diff)
			}
			if err := tags.Tag(ctx, "sealed", sealed); err != nil {
				t.Fatal(err)
			}
			release()
			if diff := cmp.Diff(all, n.collect(t, ctx)); diff != "" {
				t.Error("named", diff)
			}
			if err := n.is.Delete(ctx, "plain"); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(n.reachable(t, ctx, sealed), n.collect(t, ctx)); diff != "" {
				t.Error("alone", diff)
			}

			leased, release = n.lease(t, ctx)
			back, _, err := encryption.DecryptImage(leased, n.cs, sealed, p.decrypts(), nil)
			if err != nil || back.Digest != plain.Digest {
				t.Fatal(back, err)
			}
			if err := tags.Tag(ctx, "sealed", back); err != nil {
				t.Fatal(err)
			}
			release()
			if diff := cmp.Diff(n.reachable(t, ctx, plain), n.collect(t, ctx)); diff != "" {
				t.Error("decrypted", diff)
			}
			if err := n.is.Delete(ctx, "sealed"); err != nil {
				t.Fatal(err)
			}
			if left := n.collect(t, ctx); len(left) > 0 {
				t.Error("left behind:", left)
			}
		})
	}
}

// A blob that is there already is kept by the lease as well, and by the manifests
// that are written above it.
func TestPresentBlobIsLeased(t *testing.T) {
	t.Parallel()
	n, ctx := newNode(t, "linux/amd64")
	s := encryption.NewStore(n.cs)
	leased, release := n.lease(t, ctx)
	ref, err := s.Put(leased, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig}, strings.NewReader("child"))
	if err != nil {
		t.Fatal(err)
	}
	data := "parent"
	for _, want := range []ocispec.Descriptor{{}, descOf([]byte(data))} {
		again, releaseAgain := n.lease(t, ctx)
		if _, err := s.Put(again, want, strings.NewReader(data), ref); err != nil {
			t.Fatal(err)
		}
		release()
		release = releaseAgain
		if got := n.collect(t, ctx); len(got) != 2 {
			t.Errorf("kept %v", got)
		}
	}
	release()
	if got := n.collect(t, ctx); len(got) > 0 {
		t.Errorf("kept %v", got)
	}
}

// What one namespace has, another gets without writing it, but not without having it.
func TestSharedBetweenNamespaces(t *testing.T) {
	t.Parallel()
	n, ctx := newNode(t, "linux/amd64")
	elsewhere := namespaces.WithNamespace(ctx, "elsewhere")
	s := encryption.NewStore(n.cs)
	for _, data := range []string{"", "data", strings.Repeat("data", 1<<20)} {
		want := descOf([]byte(data))
		for _, c := range []context.Context{ctx, elsewhere} {
			other := strings.Repeat("x", len(data))
			if _, err := s.Put(c, want, strings.NewReader(other)); data != "" && !errors.Is(err, imgcrypt.ErrMismatch) {
				t.Errorf("%d other bytes: %v", len(data), err)
			}
			got, err := s.Put(c, want, strings.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if statuses := must(n.cs.ListStatuses(c)); len(statuses) > 0 {
				t.Errorf("left behind: %v", statuses)
			}
			if info := must(n.cs.Info(c, want.Digest)); info.Size != want.Size {
				t.Errorf("%d bytes, want %d", info.Size, want.Size)
			}
		}
	}
}

func TestNothingIsLeftOfAFailedPut(t *testing.T) {
	t.Parallel()
	n, ctx := newNode(t, "linux/amd64")
	leased, release := n.lease(t, ctx)
	defer release()
	full := errors.New("full")
	for _, f := range []*faulty{{write: after(0, full)}, {commit: after(0, full)}} {
		f.Store = n.cs
		if _, err := encryption.NewStore(f).Put(leased, ocispec.Descriptor{}, strings.NewReader("data")); !errors.Is(err, full) {
			t.Error(err)
		}
		if statuses := must(n.cs.ListStatuses(ctx)); len(statuses) > 0 {
			t.Errorf("left behind: %v", statuses)
		}
	}
	if resources := must(n.lm.ListResources(ctx, leases.Lease{ID: must2(leases.FromContext(leased))})); len(resources) > 0 {
		t.Errorf("the lease keeps %v", resources)
	}
}

func must2[T any](v T, ok bool) T {
	if !ok {
		panic("not there")
	}
	return v
}

func TestTags(t *testing.T) {
	t.Parallel()
	n, ctx := newNode(t, "linux/amd64")
	tags := encryption.NewTags(n.is)
	first, second := descOf([]byte("first")), descOf([]byte("second"))
	if _, err := tags.Resolve(ctx, "name"); !errors.Is(err, imgcrypt.ErrNotFound) || !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if err := tags.Tag(ctx, "name", first); err != nil {
		t.Fatal(err)
	}
	set := map[string]string{"io.cri-containerd.image": "managed"}
	must(n.is.Update(ctx, images.Image{Name: "name", Labels: set}, "labels"))
	if err := tags.Tag(ctx, "name", second); err != nil {
		t.Fatal(err)
	}
	if got, err := tags.Resolve(ctx, "name"); err != nil || got.Digest != second.Digest {
		t.Error(got, err)
	}
	if diff := cmp.Diff(set, must(n.is.Get(ctx, "name")).Labels); diff != "" {
		t.Error(diff)
	}
	if err := tags.Tag(ctx, "", first); err == nil {
		t.Error("no name was accepted")
	}
}

func TestTagsInParallel(t *testing.T) {
	t.Parallel()
	n, ctx := newNode(t, "linux/amd64")
	tags := encryption.NewTags(n.is)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := tags.Tag(ctx, "name", descOf(fmt.Append(nil, i))); err != nil {
				t.Error(err)
			}
			if _, err := tags.Resolve(ctx, "name"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// rival creates each name just before somebody else does.
type rival struct {
	images.Store
}

func (r rival) Create(ctx context.Context, img images.Image) (images.Image, error) {
	img.Labels = map[string]string{"made.by": "rival"}
	img.Target = descOf([]byte("rival"))
	if _, err := r.Store.Create(ctx, img); err != nil {
		return img, err
	}
	return r.Store.Create(ctx, img)
}

func TestTagLosesARace(t *testing.T) {
	t.Parallel()
	n, ctx := newNode(t, "linux/amd64")
	desc := descOf([]byte("ours"))
	if err := encryption.NewTags(rival{n.is}).Tag(ctx, "name", desc); err != nil {
		t.Fatal(err)
	}
	img := must(n.is.Get(ctx, "name"))
	if img.Target.Digest != desc.Digest || img.Labels["made.by"] != "rival" {
		t.Errorf("got %v", img)
	}
}

func TestWithAuthorizationCheck(t *testing.T) {
	t.Parallel()
	p := newPair()
	n, ctx := newNode(t, "linux/arm64")
	plain := n.add(t, ctx, "plain", testimage.Spec{Platforms: []string{"linux/amd64", "linux/arm64"}, Layers: testimage.Layers(2, testimage.Gzip)})
	leased, release := n.lease(t, ctx)
	defer release()
	// Only the client's platform is encrypted.
	arm64 := func(desc ocispec.Descriptor) bool { return desc.Platform.Architecture == "arm64" }
	sealed, _, err := encryption.EncryptImage(leased, n.cs, plain, p.encrypts(), arm64)
	if err != nil {
		t.Fatal(err)
	}
	must(n.is.Create(ctx, images.Image{Name: "sealed", Target: sealed}))
	must(n.is.Create(ctx, images.Image{Name: "lost", Target: descOf([]byte("lost"))}))

	tests := []struct {
		image string
		keys  []pair
		want  error
	}{
		{"plain", nil, nil},
		{"sealed", []pair{p}, nil},
		{"sealed", nil, keys.ErrNoKey},
		{"sealed", []pair{newPair()}, keys.ErrNoKey},
		{"lost", []pair{p}, imgcrypt.ErrNotFound},
		{"no such image", []pair{p}, imgcrypt.ErrNotFound},
		{"", nil, nil},
	}
	for _, tt := range tests {
		opt := encryption.WithAuthorizationCheck(nil)
		if len(tt.keys) > 0 {
			opt = encryption.WithAuthorizationCheck(tt.keys[0].opens())
		}
		err := opt(ctx, n.client, &containers.Container{Image: tt.image})
		if tt.want == nil && err != nil {
			t.Errorf("%q: %v", tt.image, err)
		}
		if tt.want != nil {
			checkRefused(t, err, tt.want)
		}
	}
}

// containerd's own function that converts images, with its lease and its naming.
func TestConvert(t *testing.T) {
	t.Parallel()
	p := newPair()
	n, ctx := newNode(t, "linux/amd64")
	plain := n.add(t, ctx, "plain", testimage.Spec{Platforms: []string{"linux/amd64", "linux/arm64"}})
	convert := func(to, from string, f converter.ConvertFunc) *images.Image {
		t.Helper()
		img, err := converter.Convert(ctx, n.client, to, from, converter.WithIndexConvertFunc(f))
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	sealed := convert("sealed", "plain", encryption.GetImageEncryptConverter(p.encrypts(), nil))
	n.collect(t, ctx)
	if got := countEncrypted(n.layers(t, ctx, sealed.Target)); got != 2 {
		t.Errorf("%d layers are encrypted", got)
	}
	same := convert("same", "sealed", encryption.GetImageEncryptConverter(p.encrypts(), nil))
	if same.Target.Digest != sealed.Target.Digest {
		t.Error("adding the recipient again changed the image")
	}
	back := convert("back", "sealed", encryption.GetImageDecryptConverter(p.decrypts(), nil))
	if back.Target.Digest != plain.Digest {
		t.Error("it did not come back")
	}
	n.collect(t, ctx)
	n.reachable(t, ctx, back.Target)
}

func (n *node) layers(tb testing.TB, ctx context.Context, desc ocispec.Descriptor) []ocispec.Descriptor {
	tb.Helper()
	var layers []ocispec.Descriptor
	note := func(_ context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if images.IsLayerType(desc.MediaType) {
			layers = append(layers, desc)
		}
		return nil, nil
	}
	if err := images.Walk(ctx, images.Handlers(images.HandlerFunc(note), images.ChildrenHandler(n.cs)), desc); err != nil {
		tb.Fatal(err)
	}
	return layers
}
