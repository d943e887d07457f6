package encryption_test

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/images/encryption"
	"imgcrypt/internal/testimage"
)

// containerd labels what it pulls by the function that is asked here.
func TestLabelsAreContainerds(t *testing.T) {
	t.Parallel()
	specs := map[string]testimage.Spec{
		"OCI":         {Layers: testimage.Layers(12, testimage.Zstd), ArtifactType: "application/x"},
		"Docker":      {Docker: true, Layers: testimage.Layers(3, testimage.Gzip)},
		"index":       {Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true},
		"Docker list": {Docker: true, Platforms: []string{"linux/amd64", "linux/arm64"}},
	}
	for name, spec := range specs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			theirs, dir := newContent(t)
			desc := writeImage(t, dir, spec)
			var refs []ocispec.Descriptor
			collect := func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
				var err error
				refs, err = images.Children(ctx, theirs, desc)
				return refs, err
			}
			if _, err := images.SetChildrenLabels(theirs, collect).Handle(t.Context(), desc); err != nil {
				t.Fatal(err)
			}
			want := must(theirs.Info(t.Context(), desc.Digest)).Labels

			data := readBlob(t, theirs, desc)
			for _, present := range []bool{false, true} {
				ours, oursDir := newContent(t)
				const other = "containerd.io/gc.ref.snapshot.overlayfs"
				expected := want
				if present {
					must(testimage.PutBlob(oursDir, "text/plain", data))
					must(ours.Update(t.Context(), content.Info{Digest: desc.Digest, Labels: map[string]string{other: "chain"}}))
					expected = map[string]string{other: "chain"}
					for key, value := range want {
						expected[key] = value
					}
				}
				if _, err := encryption.NewStore(ours).Put(t.Context(), desc, bytes.NewReader(data), refs...); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(expected, must(ours.Info(t.Context(), desc.Digest)).Labels); diff != "" {
					t.Errorf("present %v: %s", present, diff)
				}
			}
		})
	}
}

// An annotation in a manifest must not make containerd's function take one of its
// layers for a referrer.
func TestLabelsIgnoreAnnotations(t *testing.T) {
	t.Parallel()
	cs, _ := newContent(t)
	ref := descOf([]byte("layer"))
	ref.MediaType = ocispec.MediaTypeImageLayerGzip + "+encrypted"
	ref.Annotations = map[string]string{images.AnnotationManifestSubject: "x"}
	got, err := encryption.NewStore(cs).Put(t.Context(), ocispec.Descriptor{}, strings.NewReader("manifest"), ref)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"containerd.io/gc.ref.content.l.0": ref.Digest.String()}
	if diff := cmp.Diff(want, must(cs.Info(t.Context(), got.Digest)).Labels); diff != "" {
		t.Error(diff)
	}
}
