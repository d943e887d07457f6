package encryption_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/containers/ocicrypt"
	encconfig "github.com/containers/ocicrypt/config"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
	"imgcrypt/layer"
)

// encrypt encrypts all of an image and checks that this changes it.
func encrypt(tb testing.TB, cs content.Store, desc ocispec.Descriptor, cc *encconfig.CryptoConfig) ocispec.Descriptor {
	tb.Helper()
	made, changed, err := encryption.EncryptImage(context.Background(), cs, desc, cc, nil)
	if err != nil {
		tb.Fatal(err)
	}
	if !changed || made.Digest == desc.Digest {
		tb.Fatal("unchanged")
	}
	return made
}

// layersOf returns the layers of all manifests of an image that are here.
func layersOf(tb testing.TB, cs content.Store, desc ocispec.Descriptor) []ocispec.Descriptor {
	tb.Helper()
	if !images.IsIndexType(desc.MediaType) {
		return readJSON[ocispec.Manifest](tb, cs, desc).Layers
	}
	var all []ocispec.Descriptor
	for _, entry := range readJSON[ocispec.Index](tb, cs, desc).Manifests {
		if _, err := cs.Info(context.Background(), entry.Digest); err == nil {
			all = append(all, layersOf(tb, cs, entry)...)
		}
	}
	return all
}

func countEncrypted(descs []ocispec.Descriptor) int {
	n := 0
	for _, desc := range descs {
		if encryption.IsEncryptedDiff(context.Background(), desc.MediaType) {
			n++
		}
	}
	return n
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	p := newPair()
	for name, spec := range map[string]testimage.Spec{
		"manifest":        {Layers: testimage.Layers(3, testimage.Gzip)},
		"large layer":     {Layers: []testimage.Layer{{Compression: testimage.None, RandomSize: 5<<20 + 3}}},
		"index":           {Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true, PlatformlessEntry: true},
		"Docker manifest": {Docker: true, Layers: testimage.Layers(2, testimage.Gzip)},
		"Docker list":     {Docker: true, Platforms: []string{"linux/amd64", "linux/arm64"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cs, dir := newContent(t)
			desc := writeImage(t, dir, spec)
			made := encrypt(t, cs, desc, p.encrypts())
			if !encryption.HasEncryptedLayer(t.Context(), layersOf(t, cs, made)) {
				t.Error("no layer is encrypted")
			}
			back, changed, err := encryption.DecryptImage(t.Context(), cs, made, p.decrypts(), nil)
			if err != nil || !changed {
				t.Fatal(changed, err)
			}
			if diff := cmp.Diff(desc, back); diff != "" {
				t.Error(diff)
			}
			checkNoIngests(t, cs)
		})
	}
}

// A store without labels cannot be given any, and needs none.
func TestStoreWithoutLabels(t *testing.T) {
	t.Parallel()
	p := newPair()
	dir := t.TempDir()
	image := writeImage(t, dir, testimage.Spec{})
	cs := must(local.NewStore(dir))
	sealed, changed, err := encryption.EncryptImage(t.Context(), cs, image, p.encrypts(), nil)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	again, changed, err := encryption.DecryptImage(t.Context(), cs, sealed, p.decrypts(), nil)
	if err != nil || !changed || again.Digest != image.Digest {
		t.Error(again.Digest, changed, err)
	}
}

func TestConverters(t *testing.T) {
	t.Parallel()
	p := newPair()
	cs, dir := newContent(t)
	desc := writeImage(t, dir, testimage.Spec{})
	encrypts := encryption.GetImageEncryptConverter(p.encrypts(), nil)
	decrypts := encryption.GetImageDecryptConverter(p.decrypts(), nil)
	made, err := encrypts(t.Context(), cs, desc)
	if err != nil || made == nil {
		t.Fatal(made, err)
	}
	back, err := decrypts(t.Context(), cs, *made)
	if err != nil || back == nil || back.Digest != desc.Digest {
		t.Fatal(back, err)
	}
	// Adding the same recipient again, and decrypting what is plain.
	if again, err := encrypts(t.Context(), cs, *made); again != nil || err != nil {
		t.Error(again, err)
	}
	if again, err := decrypts(t.Context(), cs, desc); again != nil || err != nil {
		t.Error(again, err)
	}
	refused := encryption.GetImageDecryptConverter(newPair().decrypts(), nil)
	if made, err := refused(t.Context(), cs, *made); made != nil || !errors.Is(err, keys.ErrNoKey) {
		t.Error(made, err)
	}
}

func TestConfigurations(t *testing.T) {
	t.Parallel()
	cs, dir := newContent(t)
	desc := writeImage(t, dir, testimage.Spec{})
	for _, cc := range []*encconfig.CryptoConfig{nil, {}} {
		if _, _, err := encryption.EncryptImage(t.Context(), cs, desc, cc, nil); !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
	}
	if _, _, err := encryption.DecryptImage(t.Context(), cs, desc, nil, nil); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	// No recipients.
	cc := &encconfig.CryptoConfig{EncryptConfig: &encconfig.EncryptConfig{}}
	if _, _, err := encryption.EncryptImage(t.Context(), cs, desc, cc, nil); !errors.Is(err, keys.ErrNoRecipient) {
		t.Error(err)
	}
	// No keys, which a plain image does not need.
	if back, changed, err := encryption.DecryptImage(t.Context(), cs, desc, &encconfig.CryptoConfig{}, nil); changed || err != nil || back.Digest != desc.Digest {
		t.Error(back, changed, err)
	}
	made := encrypt(t, cs, desc, newPair().encrypts())
	if _, _, err := encryption.DecryptImage(t.Context(), cs, made, &encconfig.CryptoConfig{}, nil); !errors.Is(err, keys.ErrNoKey) {
		t.Error(err)
	}
}

// The keys for adding a recipient are those of the encryption's own configuration.
func TestAddRecipient(t *testing.T) {
	t.Parallel()
	a, b := newPair(), newPair()
	cs, dir := newContent(t)
	made := encrypt(t, cs, writeImage(t, dir, testimage.Spec{Layers: testimage.Layers(2, testimage.Zstd)}), a.encrypts())
	withoutKey := &encconfig.CryptoConfig{
		EncryptConfig: &encconfig.EncryptConfig{Parameters: map[string][][]byte{"pubkeys": {b.public}}},
		DecryptConfig: a.opens(),
	}
	if _, _, err := encryption.EncryptImage(t.Context(), cs, made, withoutKey, nil); !errors.Is(err, keys.ErrNoKey) {
		t.Error(err)
	}
	both := encrypt(t, cs, made, b.encrypts(a))
	for i, before := range layersOf(t, cs, made) {
		if after := layersOf(t, cs, both)[i]; after.Digest != before.Digest {
			t.Errorf("layer %d was encrypted anew", i)
		}
	}
	for _, p := range []pair{a, b} {
		if err := encryption.CheckAuthorization(t.Context(), cs, both, p.opens()); err != nil {
			t.Error(err)
		}
	}
}

func TestLayerFilter(t *testing.T) {
	t.Parallel()
	p := newPair()
	cs, dir := newContent(t)
	desc := writeImage(t, dir, testimage.Spec{
		Platforms:         []string{"linux/amd64", "linux/arm64"},
		Layers:            testimage.Layers(2, testimage.Gzip),
		PlatformlessEntry: true,
	})
	seen := map[string]int{}
	filter := func(desc ocispec.Descriptor) bool {
		name := platforms.Format(*desc.Platform)
		seen[name]++
		return name == "linux/arm64"
	}
	made, changed, err := encryption.EncryptImage(t.Context(), cs, desc, p.encrypts(), filter)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	for i, entry := range readJSON[ocispec.Index](t, cs, made).Manifests {
		want := 0
		if i == 1 {
			want = 2
		}
		if got := countEncrypted(layersOf(t, cs, entry)); got != want {
			t.Errorf("manifest %d has %d encrypted layers, want %d", i, got, want)
		}
	}
	for _, name := range []string{"linux/amd64", "linux/arm64", "linux/s390x"} {
		if seen[name] == 0 {
			t.Errorf("the filter saw %v", seen)
		}
	}
	// What nothing was chosen of must not be taken for encrypted.
	nothing := func(ocispec.Descriptor) bool { return false }
	if _, _, err := encryption.EncryptImage(t.Context(), cs, desc, p.encrypts(), nothing); !errors.Is(err, imgcrypt.ErrNothingSelected) {
		t.Error(err)
	}
}

// A filter that was written for containerd's imgcrypt dereferences the platform.
func TestLayerFilterGetsAPlatform(t *testing.T) {
	t.Parallel()
	cs, dir := newContent(t)
	manifest := readJSON[ocispec.Manifest](t, cs, writeImage(t, dir, testimage.Spec{}))
	config := must(testimage.PutBlob(dir, ocispec.MediaTypeImageConfig, []byte(`{"rootfs":{}}`)))
	manifest.Config = config
	desc := must(testimage.PutBlob(dir, ocispec.MediaTypeImageManifest, must(json.Marshal(manifest))))
	filter := func(desc ocispec.Descriptor) bool { return desc.Platform.OS == "" }
	if _, _, err := encryption.EncryptImage(t.Context(), cs, desc, newPair().encrypts(), filter); err != nil {
		t.Error(err)
	}
}

// An image that was pulled for one platform encrypts, decrypts and comes back.
func TestPartialImage(t *testing.T) {
	t.Parallel()
	p := newPair()
	cs, dir := newContent(t)
	desc := writeImage(t, dir, testimage.Spec{Platforms: []string{"linux/amd64", "linux/arm64"}, Layers: testimage.Layers(2, testimage.Gzip)})
	absent := readJSON[ocispec.Index](t, cs, desc).Manifests[1]
	for _, l := range readJSON[ocispec.Manifest](t, cs, absent).Layers[1:] {
		remove(t, dir, l)
	}
	remove(t, dir, absent)
	made := encrypt(t, cs, desc, p.encrypts())
	entries := readJSON[ocispec.Index](t, cs, made).Manifests
	if diff := cmp.Diff(absent, entries[1]); diff != "" {
		t.Error(diff)
	}
	if got := countEncrypted(layersOf(t, cs, entries[0])); got != 2 {
		t.Errorf("%d layers are encrypted", got)
	}
	back, _, err := encryption.DecryptImage(t.Context(), cs, made, p.decrypts(), nil)
	if err != nil || back.Digest != desc.Digest {
		t.Error(back, err)
	}
	// A layer that has to be read and is missing is another matter.
	remove(t, dir, readJSON[ocispec.Manifest](t, cs, readJSON[ocispec.Index](t, cs, desc).Manifests[0]).Layers[0])
	if _, _, err := encryption.EncryptImage(t.Context(), cs, desc, newPair().encrypts(), nil); !errors.Is(err, imgcrypt.ErrNotFound) {
		t.Error(err)
	}
	remove(t, dir, desc)
	if _, _, err := encryption.EncryptImage(t.Context(), cs, desc, p.encrypts(), nil); !errors.Is(err, imgcrypt.ErrNotFound) {
		t.Error(err)
	}
}

// The config is used by both images, and its labels keep unpacked snapshots.
func TestConfigIsLeftAlone(t *testing.T) {
	t.Parallel()
	cs, dir := newContent(t)
	desc := writeImage(t, dir, testimage.Spec{Docker: true})
	config := readJSON[ocispec.Manifest](t, cs, desc).Config
	set := map[string]string{"containerd.io/gc.ref.snapshot.overlayfs": "sha256:1"}
	must(cs.Update(t.Context(), content.Info{Digest: config.Digest, Labels: set}))
	made := encrypt(t, cs, desc, newPair().encrypts())
	if got := readJSON[ocispec.Manifest](t, cs, made).Config.Digest; got != config.Digest {
		t.Errorf("config %s became %s", config.Digest, got)
	}
	if diff := cmp.Diff(set, must(cs.Info(t.Context(), config.Digest)).Labels); diff != "" {
		t.Error(diff)
	}
}

// Wherever the disk fills up, nothing half-written is left and the image is as before.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	p := newPair()
	cs, dir := newContent(t)
	spec := testimage.Spec{Platforms: []string{"linux/amd64", "linux/arm64"}, Layers: []testimage.Layer{{Compression: testimage.None, RandomSize: 2 << 20}}}
	desc := writeImage(t, dir, spec)
	before := blobs(t, cs)
	full := fmt.Errorf("write: %w", syscall.ENOSPC)
	var made ocispec.Descriptor
	for n := 0; ; n++ {
		var err error
		made, _, err = encryption.EncryptImage(t.Context(), &faulty{Store: cs, write: locked(after(n, full))}, desc, p.encrypts(), nil)
		checkNoIngests(t, cs)
		if err == nil {
			if n < 5 {
				t.Errorf("encrypted with %d writes", n)
			}
			break
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	for blob := range before {
		if !blobs(t, cs)[blob] {
			t.Errorf("lost %s", blob)
		}
	}
	back, _, err := encryption.DecryptImage(t.Context(), cs, made, p.decrypts(), nil)
	if err != nil || back.Digest != desc.Digest {
		t.Error(back, err)
	}
}

func locked(f func() error) func() error {
	var mu sync.Mutex
	return func() error {
		mu.Lock()
		defer mu.Unlock()
		return f()
	}
}

// What ocicrypt encrypts, DecryptLayer decrypts, and the other way round.
func TestDecryptLayer(t *testing.T) {
	t.Parallel()
	p := newPair()
	cs, dir := newContent(t)
	plain := writeImage(t, dir, testimage.Spec{Layers: []testimage.Layer{{Compression: testimage.Zstd, RandomSize: 3 << 20}}})
	want := layersOf(t, cs, plain)[0]
	sealed := layersOf(t, cs, foreign(t, cs, dir, plain, &p))[0]
	sealed.Platform = &ocispec.Platform{OS: "linux", Architecture: "riscv64"}
	data := readBlob(t, cs, sealed)

	desc, r, hint, err := encryption.DecryptLayer(p.opens(), bytes.NewReader(data), sealed, false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ocispec.Descriptor{MediaType: want.MediaType, Platform: sealed.Platform}, desc); diff != "" {
		t.Error(diff)
	}
	if hint != want.Digest {
		t.Errorf("digest %s, want %s", hint, want.Digest)
	}
	if got := must(io.ReadAll(r)); !bytes.Equal(got, readBlob(t, cs, want)) {
		t.Error("other bytes")
	}

	ours := layersOf(t, cs, encrypt(t, cs, plain, p.encrypts()))[0]
	// ocicrypt returns a digest too, which is always empty.
	r, _, err = ocicrypt.DecryptLayer(p.opens(), bytes.NewReader(readBlob(t, cs, ours)), ours, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := must(io.ReadAll(r)); !bytes.Equal(got, readBlob(t, cs, want)) {
		t.Error("other bytes")
	}
}

func TestDecryptLayerUnwrapOnly(t *testing.T) {
	t.Parallel()
	p := newPair()
	cs, dir := newContent(t)
	sealed := layersOf(t, cs, foreign(t, cs, dir, writeImage(t, dir, testimage.Spec{}), &p))[0]
	desc, r, hint, err := encryption.DecryptLayer(p.opens(), nil, sealed, true)
	if diff := cmp.Diff(ocispec.Descriptor{}, desc); diff != "" || r != nil || hint != "" || err != nil {
		t.Error(desc, r, hint, err)
	}
	if _, _, _, err := encryption.DecryptLayer(newPair().opens(), nil, sealed, true); !errors.Is(err, keys.ErrNoKey) {
		t.Error(err)
	}
	if _, _, _, err := encryption.DecryptLayer(nil, nil, sealed, true); !errors.Is(err, keys.ErrNoKey) {
		t.Error(err)
	}
	plain := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer}
	if _, _, _, err := encryption.DecryptLayer(p.opens(), nil, plain, true); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

func TestTampered(t *testing.T) {
	t.Parallel()
	p := newPair()
	cs, dir := newContent(t)
	image := foreign(t, cs, dir, writeImage(t, dir, testimage.Spec{}), &p)
	sealed := layersOf(t, cs, image)[0]
	good := readBlob(t, cs, sealed)
	flip := func(i int) []byte {
		data := bytes.Clone(good)
		data[i] ^= 1
		return data
	}
	for name, data := range map[string][]byte{
		"first byte":  flip(0),
		"middle byte": flip(len(good) / 2),
		"last byte":   flip(len(good) - 1),
		"shorter":     good[:len(good)-1],
		"longer":      append(bytes.Clone(good), 0),
		"empty":       {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, r, _, err := encryption.DecryptLayer(p.opens(), bytes.NewReader(data), sealed, false)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, r); n > 0 || !errors.Is(err, layer.ErrTampered) {
				t.Errorf("%d bytes and %v", n, err)
			}
			// With every digest made to fit, as a forger does.
			forged := must(testimage.PutBlob(dir, sealed.MediaType, data))
			forged.Annotations = sealed.Annotations
			manifest := readJSON[ocispec.Manifest](t, cs, image)
			manifest.Layers = []ocispec.Descriptor{forged}
			desc := must(testimage.PutBlob(dir, image.MediaType, must(json.Marshal(manifest))))
			_, _, err = encryption.DecryptImage(t.Context(), cs, desc, p.decrypts(), nil)
			if !errors.Is(err, layer.ErrTampered) {
				t.Error(err)
			}
			failed := errors.New("unexpected EOF")
			explain := func(desc ocispec.Descriptor, dc *encconfig.DecryptConfig, failed error) error {
				return encryption.ExplainUnpack(t.Context(), cs, desc, must(encryption.Identities(dc)), platforms.All, failed)
			}
			if err := explain(desc, p.opens(), failed); !errors.Is(err, layer.ErrTampered) || !errors.Is(err, failed) {
				t.Errorf("not explained: %v", err)
			}
			for name, err := range map[string]error{
				"no failure": explain(desc, p.opens(), nil),
				"no key":     explain(desc, nil, failed),
				"no damage":  explain(image, p.opens(), failed),
				"no image":   explain(ocispec.Descriptor{MediaType: image.MediaType, Digest: sealed.Digest}, p.opens(), failed),
			} {
				if name == "no failure" && err != nil || name != "no failure" && err != failed {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	checkNoIngests(t, cs)
}
