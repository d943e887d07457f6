package store_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
	"imgcrypt/store"
)

// memory is a store in memory, over an OCI layout if it has a directory.
type memory struct {
	dir string

	mu    sync.Mutex
	blobs map[digest.Digest][]byte
	puts  []digest.Digest
	// broken is how many Puts of what is no manifest are interrupted.
	broken int
	// order fails the test if a manifest is put before what it points to.
	order *testing.T
}

func newMemory() *memory { return &memory{blobs: make(map[digest.Digest][]byte)} }

func (m *memory) Open(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	m.mu.Lock()
	data, ok := m.blobs[desc.Digest]
	m.mu.Unlock()
	if !ok && m.dir != "" {
		var err error
		data, err = testimage.Blob(m.dir, ocispec.Descriptor{Digest: desc.Digest})
		ok = err == nil
	}
	if !ok {
		return nil, fmt.Errorf("%s: %w", desc.Digest, imgcrypt.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (m *memory) Put(_ context.Context, want ocispec.Descriptor, r io.Reader, refs ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	got := ocispec.Descriptor{MediaType: want.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if want.Digest != "" && want.Digest != got.Digest {
		return ocispec.Descriptor{}, imgcrypt.ErrMismatch
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken > 0 && len(refs) == 0 {
		m.broken--
		return ocispec.Descriptor{}, imgcrypt.ErrInterrupted
	}
	for _, ref := range refs {
		if m.order != nil && m.blobs[ref.Digest] == nil {
			m.order.Errorf("%s is put before %s", got.Digest, ref.Digest)
		}
	}
	m.blobs[got.Digest] = data
	m.puts = append(m.puts, got.Digest)
	return got, nil
}

func (m *memory) Has(_ context.Context, desc ocispec.Descriptor) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.blobs[desc.Digest] != nil, nil
}

func source(t *testing.T, spec testimage.Spec) (*memory, ocispec.Descriptor) {
	t.Helper()
	m := newMemory()
	m.dir = t.TempDir()
	desc, err := spec.Write(m.dir, "")
	if err != nil {
		t.Fatal(err)
	}
	return m, desc
}

var whole = testimage.Spec{
	Layers: testimage.Layers(3, testimage.Gzip), Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true,
}

func TestCopy(t *testing.T) {
	t.Parallel()
	for _, jobs := range []int{0, 1, 8} {
		src, desc := source(t, whole)
		dst := newMemory()
		dst.order = t
		if err := store.NewTransfer(src, dst, store.TransferOptions{Jobs: jobs}).Copy(t.Context(), desc); err != nil {
			t.Fatal(err)
		}
		slices.Sort(dst.puts)
		if n := len(dst.puts); n != len(slices.Compact(dst.puts)) || n < 10 {
			t.Errorf("jobs %d: %d blobs, some of them twice", jobs, n)
		}
		// A second time there is nothing to send but manifests.
		before := len(dst.puts)
		if err := store.NewTransfer(src, dst, store.TransferOptions{Jobs: jobs}).Copy(t.Context(), desc); err != nil {
			t.Fatal(err)
		}
		if sent := len(dst.puts) - before; sent != 5 {
			t.Errorf("jobs %d: %d blobs are sent again, want the 5 manifests", jobs, sent)
		}
	}
}

// What is encrypted from one store into another arrives whole, and goes back as it was.
func TestEncryptBetween(t *testing.T) {
	t.Parallel()
	src, plain := source(t, whole)
	scheme := jwe.Scheme()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	recipient, err := jwe.NewRecipient(keys.PublicKey{Key: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	id, err := jwe.NewIdentity(scheme.Name, key)
	if err != nil {
		t.Fatal(err)
	}
	middle, back := newMemory(), newMemory()
	middle.order, back.order = t, t
	to := store.NewTransfer(src, middle, store.TransferOptions{Jobs: 4})
	sealed, err := imgcrypt.Encrypt(t.Context(), to, plain, imgcrypt.EncryptOptions{Recipients: []keys.Recipient{recipient}, Jobs: 4})
	if err != nil {
		t.Fatal(err)
	}
	from := store.NewTransfer(middle, back, store.TransferOptions{Jobs: 4})
	opened, err := imgcrypt.Decrypt(t.Context(), from, sealed.Desc, imgcrypt.DecryptOptions{Identities: []keys.Identity{id}, Jobs: 4})
	if err != nil || opened.Desc.Digest != plain.Digest {
		t.Fatalf("%s, want %s: %v", opened.Desc.Digest, plain.Digest, err)
	}
	// All that the source has is there, and nothing more.
	check := newMemory()
	if err := store.NewTransfer(back, check, store.TransferOptions{}).Copy(t.Context(), plain); err != nil {
		t.Fatal(err)
	}
	if len(check.blobs) != len(back.blobs) {
		t.Errorf("%d blobs arrived, of which the image has %d", len(back.blobs), len(check.blobs))
	}
}

func TestCopyMissing(t *testing.T) {
	t.Parallel()
	src, desc := source(t, whole)
	child := testimage.Spec{Salt: "other"}
	_, lost := source(t, child)
	var missing *imgcrypt.MissingError
	if err := store.NewTransfer(src, newMemory(), store.TransferOptions{}).Copy(t.Context(), lost); !errors.As(err, &missing) || missing.Desc.Digest != lost.Digest {
		t.Errorf("got %v", err)
	}
	desc.Digest = digest.Digest("sha256:../../etc/passwd")
	if err := store.NewTransfer(src, newMemory(), store.TransferOptions{}).Copy(t.Context(), desc); !errors.Is(err, imgcrypt.ErrManifest) {
		t.Errorf("got %v", err)
	}
}

func TestCopyInterrupted(t *testing.T) {
	t.Parallel()
	src, desc := source(t, testimage.Spec{})
	dst := newMemory()
	dst.broken = 3
	if err := store.NewTransfer(src, dst, store.TransferOptions{}).Copy(t.Context(), desc); err != nil {
		t.Error(err)
	}
	dst = newMemory()
	dst.broken = 100
	if err := store.NewTransfer(src, dst, store.TransferOptions{}).Copy(t.Context(), desc); !errors.Is(err, imgcrypt.ErrInterrupted) || dst.broken != 96 {
		t.Errorf("%d left, %v", dst.broken, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := store.NewTransfer(src, newMemory(), store.TransferOptions{}).Copy(ctx, desc); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
