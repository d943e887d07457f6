package encryption_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/containerd/typeurl/v2"
	encconfig "github.com/containers/ocicrypt/config"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
	"imgcrypt/layer"
)

func sealedLayer(name string) ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerZstd + "+encrypted",
		Digest:    digest.FromString(name),
		Size:      7,
	}
}

// payloadIn returns what the stream processor with this id would get.
func payloadIn(t *testing.T, c *diff.ApplyConfig, id string) *imgcrypt.Payload {
	t.Helper()
	message, ok := c.ProcessorPayloads[id]
	if !ok {
		t.Fatalf("no payload for %s", id)
	}
	v, err := typeurl.UnmarshalAny(message)
	if err != nil {
		t.Fatal(err)
	}
	return v.(*imgcrypt.Payload)
}

func TestWithDecryptedUnpack(t *testing.T) {
	t.Parallel()
	desc := sealedLayer("layer")
	dc := encconfig.DecryptConfig{Parameters: map[string][][]byte{"privkeys": {[]byte("key")}}}
	for name, data := range map[string]*imgcrypt.Payload{"keys": {DecryptConfig: dc}, "nil": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			other, err := typeurl.MarshalAny(&imgcrypt.Payload{Descriptor: sealedLayer("other")})
			if err != nil {
				t.Fatal(err)
			}
			given := map[string]typeurl.Any{"another.processor": other}
			c := &diff.ApplyConfig{}
			for _, opt := range []diff.ApplyOpt{diff.WithPayloads(given), encryption.WithDecryptedUnpack(data)} {
				if err := opt(t.Context(), desc, c); err != nil {
					t.Fatal(err)
				}
			}
			want := &imgcrypt.Payload{Descriptor: desc}
			if data != nil {
				want.DecryptConfig = dc
			}
			for _, id := range imgcrypt.PayloadToolIDs {
				if diff := cmp.Diff(want, payloadIn(t, c, id)); diff != "" {
					t.Error(diff)
				}
			}
			if got := payloadIn(t, c, "another.processor"); got.Descriptor.Digest != digest.FromString("other") {
				t.Errorf("another processor's payload became %v", got)
			}
			if len(given) != 1 {
				t.Errorf("the caller's map became %v", slices.Collect(maps.Keys(given)))
			}
		})
	}
}

// Unpacks of several images share one payload and, with diff.WithPayloads, one map.
func TestWithDecryptedUnpackInParallel(t *testing.T) {
	t.Parallel()
	data := &imgcrypt.Payload{DecryptConfig: *newPair().opens()}
	shared := diff.WithPayloads(map[string]typeurl.Any{})
	opt := encryption.WithDecryptedUnpack(data)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			desc := sealedLayer(fmt.Sprint("layer", i))
			c := &diff.ApplyConfig{}
			for _, o := range []diff.ApplyOpt{shared, opt} {
				if err := o(context.Background(), desc, c); err != nil {
					t.Error(err)
				}
			}
			for _, id := range imgcrypt.PayloadToolIDs {
				if got := payloadIn(t, c, id); got.Descriptor.Digest != desc.Digest {
					t.Errorf("layer %d got the payload of %s", i, got.Descriptor.Digest)
				}
			}
		})
	}
	wg.Wait()
	if diff := cmp.Diff(ocispec.Descriptor{}, data.Descriptor); diff != "" {
		t.Error(diff)
	}
}

func TestUnpackOptionsAreAdded(t *testing.T) {
	t.Parallel()
	called := 0
	apply := func(context.Context, ocispec.Descriptor, *diff.ApplyConfig) error { called++; return nil }
	remote := &containerd.RemoteContext{UnpackOpts: []containerd.UnpackOpt{encryption.WithUnpackConfigApplyOpts(apply)}}
	more := []containerd.UnpackOpt{encryption.WithUnpackConfigApplyOpts(apply), encryption.WithUnpackConfigApplyOpts(apply)}
	if err := encryption.WithUnpackOpts(more)(nil, remote); err != nil {
		t.Fatal(err)
	}
	var uc containerd.UnpackConfig
	for _, opt := range remote.UnpackOpts {
		if err := opt(t.Context(), &uc); err != nil {
			t.Fatal(err)
		}
	}
	for _, opt := range uc.ApplyOpts {
		if err := opt(t.Context(), ocispec.Descriptor{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if called != 3 {
		t.Errorf("%d options were called, want 3", called)
	}
}

// What is sent opens the layer, and is neither the user's key nor a packet of the image.
func TestWithIdentities(t *testing.T) {
	t.Parallel()
	a, b := newPair(), newPair()
	cs, dir := newContent(t)
	desc := encrypt(t, cs, writeImage(t, dir, testimage.Spec{Layers: testimage.Layers(2, testimage.Gzip)}), a.encrypts())
	manifest := must(images.Manifest(t.Context(), cs, desc, platforms.All))
	ids := func(dc *encconfig.DecryptConfig) []keys.Identity { return must(encryption.Identities(dc)) }
	seen := map[string]bool{}
	for i, l := range manifest.Layers {
		before := maps.Clone(l.Annotations)
		c := &diff.ApplyConfig{}
		if err := encryption.WithIdentities(ids(a.opens(b)))(t.Context(), l, c); err != nil {
			t.Fatal(err)
		}
		for _, id := range imgcrypt.PayloadToolIDs {
			got := payloadIn(t, c, id)
			want, wantErr := keys.Open(t.Context(), ids(a.opens()), l.Annotations)
			secret, err := keys.Open(t.Context(), ids(&got.DecryptConfig), got.Descriptor.Annotations)
			if wantErr != nil || err != nil || secret != want {
				t.Errorf("layer %d does not open: %v, %v", i, wantErr, err)
			}
			if _, err := keys.Open(t.Context(), ids(a.opens()), got.Descriptor.Annotations); !errors.Is(err, keys.ErrNoKey) {
				t.Errorf("layer %d: the user's packets are sent: %v", i, err)
			}
			if got.Descriptor.Annotations[layer.PublicAnnotation] != l.Annotations[layer.PublicAnnotation] || got.Descriptor.Digest != l.Digest {
				t.Errorf("layer %d: the descriptor became %v", i, got.Descriptor)
			}
			for _, key := range got.DecryptConfig.Parameters["privkeys"] {
				if slices.ContainsFunc(a.opens().Parameters["privkeys"], func(own []byte) bool { return bytes.Contains(key, own) }) {
					t.Errorf("layer %d: the user's key is sent", i)
				}
				if id == imgcrypt.PayloadToolIDs[0] && seen[string(key)] {
					t.Errorf("layer %d: the key is that of another layer", i)
				}
				seen[string(key)] = true
			}
		}
		if diff := cmp.Diff(before, l.Annotations); diff != "" {
			t.Errorf("layer %d: the caller's annotations became %s", i, diff)
		}
	}
}

// What nobody here opens is left to the node.
func TestWithIdentitiesThatDoNotOpen(t *testing.T) {
	t.Parallel()
	a, b := newPair(), newPair()
	cs, dir := newContent(t)
	desc := encrypt(t, cs, writeImage(t, dir, testimage.Spec{}), a.encrypts())
	sealed := must(images.Manifest(t.Context(), cs, desc, platforms.All)).Layers[0]
	damaged := sealed
	damaged.Annotations = map[string]string{layer.KeysAnnotationPrefix + "jwe": "?"}
	plain := sealed
	plain.MediaType = layer.PlainMediaType(sealed.MediaType)
	for name, desc := range map[string]ocispec.Descriptor{"sealed": sealed, "damaged": damaged, "plain": plain} {
		c := &diff.ApplyConfig{}
		if err := encryption.WithIdentities(must(encryption.Identities(b.opens())))(t.Context(), desc, c); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&imgcrypt.Payload{Descriptor: desc}, payloadIn(t, c, imgcrypt.PayloadToolIDs[0])); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := encryption.WithIdentities(must(encryption.Identities(b.opens())))(ctx, sealed, &diff.ApplyConfig{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
