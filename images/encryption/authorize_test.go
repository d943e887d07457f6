package encryption_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	encconfig "github.com/containers/ocicrypt/config"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
	"imgcrypt/layer"
)

// checkRefused checks that err refuses an image, because of want.
func checkRefused(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
		return
	}
	if !strings.HasPrefix(err.Error(), "you are not authorized to use this image: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %q", err)
	}
	t.Log(err)
}

func TestEveryLayerIsAuthorized(t *testing.T) {
	t.Parallel()
	a, b := newPair(), newPair()
	cs, dir := newContent(t)
	plain := writeImage(t, dir, testimage.Spec{Layers: testimage.Layers(3, testimage.Gzip)})
	junk := &encconfig.DecryptConfig{Parameters: map[string][][]byte{"privkeys": {[]byte("junk")}}}
	tests := []struct {
		name   string
		sealed []*pair
		dc     *encconfig.DecryptConfig
		want   error
	}{
		{"nothing encrypted, no keys", nil, nil, nil},
		{"nothing encrypted, a key that is none", nil, junk, nil},
		{"all encrypted", []*pair{&a, &a, &a}, a.opens(), nil},
		{"all encrypted, key among others", []*pair{&a, &a, &a}, b.opens(a), nil},
		{"only the last encrypted", []*pair{nil, nil, &a}, a.opens(), nil},
		{"no keys", []*pair{&a, nil, nil}, nil, keys.ErrNoKey},
		{"empty configuration", []*pair{&a, nil, nil}, &encconfig.DecryptConfig{}, keys.ErrNoKey},
		{"other key", []*pair{&a, &a, &a}, b.opens(), keys.ErrNoKey},
		{"second layer for another key", []*pair{&a, &b, &a}, a.opens(), keys.ErrNoKey},
		{"last layer for another key", []*pair{&a, nil, &b}, a.opens(), keys.ErrNoKey},
		{"layers for different keys, both here", []*pair{&a, nil, &b}, a.opens(b), nil},
		{"a key that is none", []*pair{nil, &a, nil}, junk, keys.ErrNoKey},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			desc := foreign(t, cs, dir, plain, tt.sealed...)
			err := encryption.CheckAuthorization(t.Context(), cs, desc, tt.dc)
			if tt.want == nil && err != nil {
				t.Error(err)
			}
			if tt.want != nil {
				checkRefused(t, err, tt.want)
			}
		})
	}
}

// The refusal names the layer that does not open.
func TestRefusalNamesTheLayer(t *testing.T) {
	t.Parallel()
	a, b := newPair(), newPair()
	cs, dir := newContent(t)
	desc := foreign(t, cs, dir, writeImage(t, dir, testimage.Spec{Layers: testimage.Layers(3, testimage.Gzip)}), &a, &b)
	err := encryption.CheckAuthorization(t.Context(), cs, desc, a.opens())
	var refused *imgcrypt.LayerError
	if !errors.As(err, &refused) || refused.Index != 1 {
		t.Fatalf("got %v", err)
	}
	if want := readJSON[ocispec.Manifest](t, cs, desc).Layers[1].Digest; refused.Digest != want {
		t.Errorf("digest %s, want %s", refused.Digest, want)
	}
}

// sealedIndex is an index whose manifests are encrypted for different keys.
func sealedIndex(t *testing.T, cs content.Store, dir string, spec testimage.Spec, recipients ...*pair) ocispec.Descriptor {
	t.Helper()
	index := readJSON[ocispec.Index](t, cs, writeImage(t, dir, spec))
	for i, recipient := range recipients {
		if recipient != nil {
			index.Manifests[i] = foreign(t, cs, dir, index.Manifests[i], recipient)
		}
	}
	return must(testimage.PutBlob(dir, index.MediaType, must(json.Marshal(index))))
}

func TestThePlatformThatRunsIsAuthorized(t *testing.T) {
	t.Parallel()
	a, b := newPair(), newPair()
	cs, dir := newContent(t)
	desc := sealedIndex(t, cs, dir, testimage.Spec{
		Platforms:         []string{"linux/amd64", "linux/arm64", "linux/ppc64le"},
		PlatformlessEntry: true, // for linux/s390x
		Attestations:      true,
	}, &a, &b, nil, nil, nil, nil, &b)
	tests := []struct {
		platform string
		dc       *encconfig.DecryptConfig
		want     error
	}{
		{"linux/amd64", a.opens(), nil},
		{"linux/amd64", b.opens(), keys.ErrNoKey},
		{"linux/arm64", b.opens(), nil},
		{"linux/arm64", nil, keys.ErrNoKey},
		{"linux/ppc64le", nil, nil},
		{"linux/s390x", b.opens(), nil},
		{"linux/s390x", a.opens(), keys.ErrNoKey},
		{"windows/amd64", a.opens(b), imgcrypt.ErrNotFound},
	}
	for _, tt := range tests {
		platform := platforms.OnlyStrict(platforms.MustParse(tt.platform))
		err := encryption.CheckAuthorizationFor(t.Context(), cs, desc, must(encryption.Identities(tt.dc)), platform)
		if tt.want == nil && err != nil {
			t.Errorf("%s: %v", tt.platform, err)
		}
		if tt.want != nil {
			checkRefused(t, err, tt.want)
		}
	}
}

// Entries without platform are told apart by their configs.
func TestIndexWithoutPlatforms(t *testing.T) {
	t.Parallel()
	a := newPair()
	cs, dir := newContent(t)
	for _, spec := range []testimage.Spec{
		{OmitPlatform: true},
		{OmitPlatform: true, Docker: true},
		{Platforms: []string{"windows/amd64"}, PlatformlessEntry: true},
	} {
		desc := sealedIndex(t, cs, dir, spec, &a)
		for _, dc := range []*encconfig.DecryptConfig{nil, {}, a.opens()} {
			// What it says is tested above; here, it must not panic.
			_ = encryption.CheckAuthorization(t.Context(), cs, desc, dc)
		}
	}
	desc := sealedIndex(t, cs, dir, testimage.Spec{OmitPlatform: true}, &a)
	if err := encryption.CheckAuthorization(t.Context(), cs, desc, a.opens()); err != nil {
		t.Error(err)
	}
	checkRefused(t, encryption.CheckAuthorization(t.Context(), cs, desc, nil), keys.ErrNoKey)
}

// An image that was pulled for one platform needs that one's manifest only, and no layer.
func TestAuthorizeNeedsManifestsOnly(t *testing.T) {
	t.Parallel()
	a := newPair()
	cs, dir := newContent(t)
	desc := sealedIndex(t, cs, dir, testimage.Spec{Platforms: []string{"linux/amd64", "linux/arm64"}}, &a, &a)
	entries := readJSON[ocispec.Index](t, cs, desc).Manifests
	for _, l := range readJSON[ocispec.Manifest](t, cs, entries[0]).Layers {
		remove(t, dir, l)
	}
	remove(t, dir, entries[1])
	amd64 := platforms.OnlyStrict(platforms.MustParse("linux/amd64"))
	arm64 := platforms.OnlyStrict(platforms.MustParse("linux/arm64"))
	if err := encryption.CheckAuthorizationFor(t.Context(), cs, desc, must(encryption.Identities(a.opens())), amd64); err != nil {
		t.Error(err)
	}
	checkRefused(t, encryption.CheckAuthorizationFor(t.Context(), cs, desc, must(encryption.Identities(a.opens())), arm64), imgcrypt.ErrNotFound)
	remove(t, dir, desc)
	checkRefused(t, encryption.CheckAuthorizationFor(t.Context(), cs, desc, must(encryption.Identities(a.opens())), amd64), imgcrypt.ErrNotFound)
}

func remove(t *testing.T, dir string, desc ocispec.Descriptor) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, "blobs", "sha256", desc.Digest.Encoded())); err != nil {
		t.Fatal(err)
	}
}

func TestAuthorizeBadManifests(t *testing.T) {
	t.Parallel()
	cs, dir := newContent(t)
	put := func(mediaType string, data string) ocispec.Descriptor {
		return must(testimage.PutBlob(dir, mediaType, []byte(data)))
	}
	// It holds no layer, and yet is not to be taken for an image without any.
	large := `{"schemaVersion":2,"x":"` + strings.Repeat("x", 50<<20) + `"}`
	tests := map[string]struct {
		desc ocispec.Descriptor
		want error
	}{
		"too large":         {put(ocispec.MediaTypeImageManifest, large), imgcrypt.ErrManifest},
		"index too large":   {put(ocispec.MediaTypeImageIndex, large), imgcrypt.ErrManifest},
		"no JSON":           {put(ocispec.MediaTypeImageManifest, "x"), nil},
		"index is manifest": {put(ocispec.MediaTypeImageIndex, `{"config":{},"layers":[]}`), nil},
		"other media type":  {put("text/plain", "x"), errdefs.ErrNotFound},
		"no packets": {put(ocispec.MediaTypeImageManifest,
			`{"schemaVersion":2,"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+encrypted"}]}`), layer.ErrMalformed},
		"packets are not base64": {put(ocispec.MediaTypeImageManifest,
			`{"schemaVersion":2,"layers":[{"mediaType":"x+encrypted","annotations":{"org.opencontainers.image.enc.keys.jwe":"?"}}]}`), layer.ErrMalformed},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := encryption.CheckAuthorization(t.Context(), cs, tt.desc, newPair().opens())
			if tt.want == nil {
				tt.want = err
			}
			if err == nil {
				t.Fatal("was accepted")
			}
			checkRefused(t, err, tt.want)
		})
	}
}

// unreadable is a content store whose blobs cannot be read to their end.
type unreadable struct {
	content.Provider
	err error
}

func (u unreadable) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := u.Provider.ReaderAt(ctx, desc)
	return failingReaderAt{ra, u.err}, err
}

type failingReaderAt struct {
	content.ReaderAt
	err error
}

func (f failingReaderAt) ReadAt(p []byte, off int64) (int, error) {
	n, _ := f.ReaderAt.ReadAt(p[:len(p)/2], off)
	return n, f.err
}

func TestAuthorizeUnreadable(t *testing.T) {
	t.Parallel()
	cs, dir := newContent(t)
	desc := writeImage(t, dir, testimage.Spec{})
	for cause, want := range map[error]error{io.ErrClosedPipe: io.ErrClosedPipe, io.EOF: io.ErrUnexpectedEOF} {
		err := encryption.CheckAuthorizationFor(t.Context(), unreadable{cs, cause}, desc, nil, platforms.All)
		checkRefused(t, err, want)
	}
}

func TestAuthorizeCancelled(t *testing.T) {
	t.Parallel()
	a := newPair()
	cs, dir := newContent(t)
	desc := foreign(t, cs, dir, writeImage(t, dir, testimage.Spec{}), &a)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	checkRefused(t, encryption.CheckAuthorization(ctx, cs, desc, a.opens()), context.Canceled)
}
