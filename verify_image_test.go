package imgcrypt_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
	"imgcrypt/layer"
)

// allCompressions is an image whose layers are gzip, zstd and plain ones.
var allCompressions = testimage.Spec{Layers: []testimage.Layer{
	{Compression: testimage.Gzip, RandomSize: 100 << 10}, {Compression: testimage.Zstd, RandomSize: 100 << 10}, {Compression: testimage.None, RandomSize: 100 << 10},
}}

func TestVerify(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for name, spec := range map[string]testimage.Spec{
		"manifest": allCompressions,
		"index":    {Layers: allCompressions.Layers, Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true},
		"Docker":   {Docker: true, Layers: testimage.Layers(2, testimage.Gzip)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, plain := writeKind(t, spec)
			var seen notices
			got, err := imgcrypt.Verify(t.Context(), s, plain, imgcrypt.VerifyOptions{Notify: seen.add, Jobs: 4})
			if err != nil || got.Encrypted != 0 || got.Layers == 0 || seen.count(imgcrypt.NoticeReadable) != got.Layers {
				t.Errorf("%+v, %d notices, %v", got, seen.count(imgcrypt.NoticeReadable), err)
			}
			if _, err := imgcrypt.Verify(t.Context(), s, plain, imgcrypt.VerifyOptions{RequireEncrypted: true}); !errors.Is(err, imgcrypt.ErrNotEncrypted) {
				t.Errorf("got %v", err)
			}
			sealed := encrypt(t, s, plain, imgcrypt.EncryptOptions{Recipients: recipients(p)}).Desc
			seen = nil
			o := imgcrypt.VerifyOptions{Identities: identities(p), Notify: seen.add, Jobs: 2}
			// Attestations stay readable.
			o.RequireEncrypted = !spec.Attestations
			got, err = imgcrypt.Verify(t.Context(), s, sealed, o)
			if err != nil || got.Encrypted == 0 || seen.count(imgcrypt.NoticeHint) > 0 {
				t.Errorf("%+v, %v, %v", got, seen, err)
			}
			if _, err := imgcrypt.Verify(t.Context(), s, sealed, imgcrypt.VerifyOptions{}); !errors.Is(err, keys.ErrNoKey) {
				t.Errorf("without a key: %v", err)
			}
		})
	}
}

// What is wrong with each layer is found, whatever else is.
func TestVerifyFinds(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	s, plain := writeKind(t, allCompressions)
	sealed := encrypt(t, s, plain, imgcrypt.EncryptOptions{Recipients: recipients(p)}).Desc
	verify := func(root ocispec.Descriptor) error {
		_, err := imgcrypt.Verify(t.Context(), s, root, imgcrypt.VerifyOptions{Identities: identities(p)})
		return err
	}
	forged := tamper(t, s, sealed, func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, func(map[string]string) {})
	if err := verify(forged); !errors.Is(err, layer.ErrTampered) || errors.Is(err, imgcrypt.ErrDiffID) {
		t.Errorf("tampered: %v", err)
	}
	// The config names other content than there is.
	each(t, s, plain, func(m ocispec.Manifest, manifest string) {
		config := text(t, s, m.Config)
		at := bytes.Index(config, []byte(`"sha256:`)) + len(`"sha256:`)
		wrong := bytes.Clone(config)
		copy(wrong[at:], digest.FromString("other").Encoded())
		other := s.put(m.Config.MediaType, wrong)
		manifest = strings.Replace(manifest, m.Config.Digest.String(), other.Digest.String(), 1)
		root := s.put(plain.MediaType, []byte(manifest))
		var which *imgcrypt.LayerError
		if err := verify(root); !errors.Is(err, imgcrypt.ErrDiffID) || !errors.As(err, &which) || which.Index != 0 || strings.Contains(err.Error(), "\n") {
			t.Errorf("wrong diff id: %v", err)
		}
		// Each layer that is not there has its own line.
		for _, l := range m.Layers[1:] {
			s.gone[l.Digest] = true
		}
		if err := verify(plain); !errors.Is(err, imgcrypt.ErrNotFound) || strings.Count(err.Error(), "\n") != 1 {
			t.Errorf("two layers are missing: %v", err)
		}
	})
}

// wary is a store that verifies what is read from it.
type wary struct{ *layoutStore }

func (w wary) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	data, err := w.get(desc)
	if err != nil {
		return nil, err
	}
	if digest.FromBytes(data) != desc.Digest {
		return io.NopCloser(iotest.ErrReader(imgcrypt.ErrMismatch)), nil
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// A damaged layer is a tampered one, whoever notices it.
func TestStoreThatVerifies(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	s, plain := writeKind(t, testimage.Spec{})
	sealed := encrypt(t, s, plain, imgcrypt.EncryptOptions{Recipients: recipients(p)}).Desc
	s.blobs[layerDigests(t, s, sealed)[0]] = []byte("damaged")
	if _, err := imgcrypt.Verify(t.Context(), wary{s}, sealed, imgcrypt.VerifyOptions{Identities: identities(p)}); !errors.Is(err, layer.ErrTampered) {
		t.Errorf("verify: %v", err)
	}
	if _, err := imgcrypt.Decrypt(t.Context(), wary{s}, sealed, imgcrypt.DecryptOptions{Identities: identities(p)}); !errors.Is(err, layer.ErrTampered) {
		t.Errorf("decrypt: %v", err)
	}
}
