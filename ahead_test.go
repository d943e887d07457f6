package imgcrypt_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
)

// meeting is a store in which the Put of a layer does not end before there are so many
// at the same time.
type meeting struct {
	*layoutStore
	size    int32
	present atomic.Int32
	most    atomic.Int32
	full    chan struct{}
	once    sync.Once
}

func (m *meeting) Put(ctx context.Context, want ocispec.Descriptor, r io.Reader, refs ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	if len(refs) == 0 {
		n := m.present.Add(1)
		defer m.present.Add(-1)
		for {
			most := m.most.Load()
			if n <= most || m.most.CompareAndSwap(most, n) {
				break
			}
		}
		if n == m.size {
			m.once.Do(func() { close(m.full) })
		}
		select {
		case <-m.full:
		case <-ctx.Done():
			return ocispec.Descriptor{}, ctx.Err()
		}
	}
	return m.layoutStore.Put(ctx, want, r, refs...)
}

func TestJobs(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	spec := testimage.Spec{Layers: testimage.Layers(3, testimage.Gzip), Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true}
	s, plain := writeKind(t, spec)
	store := &meeting{layoutStore: s, size: 4, full: make(chan struct{})}
	sealed := encrypt(t, store, plain, imgcrypt.EncryptOptions{Recipients: recipients(p), Jobs: 4})
	if most := store.most.Load(); most != 4 {
		t.Errorf("%d layers at a time, want 4", most)
	}
	one := encrypt(t, s, plain, imgcrypt.EncryptOptions{Recipients: recipients(p)})
	if sealed.Layers != one.Layers {
		t.Errorf("%d layers, want %d", sealed.Layers, one.Layers)
	}
	store = &meeting{layoutStore: s, size: 4, full: make(chan struct{})}
	back := decrypt(t, store, sealed.Desc, imgcrypt.DecryptOptions{Identities: identities(p), Jobs: 4})
	if diff := cmp.Diff(plain, back.Desc); diff != "" || back.Layers != sealed.Layers {
		t.Errorf("%d layers, %s", back.Layers, diff)
	}
	if most := store.most.Load(); most != 4 {
		t.Errorf("%d layers at a time, want 4", most)
	}
}

// The error of one layer ends the work on the others, and names the layer.
func TestJobsFail(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	s, plain := writeKind(t, testimage.Spec{Layers: testimage.Layers(6, testimage.Gzip)})
	full := errors.New("disk full")
	puts := 0
	var mu sync.Mutex
	s.fault = func(ocispec.Descriptor) error {
		mu.Lock()
		defer mu.Unlock()
		if puts++; puts == 3 {
			return full
		}
		return nil
	}
	_, err := imgcrypt.Encrypt(t.Context(), s, plain, imgcrypt.EncryptOptions{Recipients: recipients(p), Jobs: 2})
	var layer *imgcrypt.LayerError
	if !errors.Is(err, full) || !errors.As(err, &layer) {
		t.Errorf("got %v", err)
	}
	s.fault = nil
	sealed := encrypt(t, s, plain, imgcrypt.EncryptOptions{Recipients: recipients(p), Jobs: 8})
	if _, err = imgcrypt.Decrypt(t.Context(), s, sealed.Desc, imgcrypt.DecryptOptions{Identities: identities(newPair(t)), Jobs: 8}); !errors.Is(err, keys.ErrNoKey) {
		t.Errorf("got %v", err)
	}
}

// shaky is a store that is interrupted when it has read a layer, so many times each.
type shaky struct {
	*layoutStore
	times int

	mu   sync.Mutex
	seen map[digest.Digest]int // of what was read before an interruption
}

func (s *shaky) Put(ctx context.Context, want ocispec.Descriptor, r io.Reader, refs ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(refs) > 0 || s.times == 0 {
		return s.layoutStore.Put(ctx, want, r, refs...)
	}
	s.times--
	sum, err := digest.FromReader(r)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	s.seen[sum]++
	return ocispec.Descriptor{}, imgcrypt.ErrInterrupted
}

// What was encrypted once and not stored is encrypted anew, with another key.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	s, plain := writeKind(t, testimage.Spec{})
	store := &shaky{layoutStore: s, times: 3, seen: make(map[digest.Digest]int)}
	sealed := encrypt(t, store, plain, imgcrypt.EncryptOptions{Recipients: recipients(p)})
	if len(store.seen) != 3 {
		t.Errorf("3 interruptions saw %d different ciphertexts", len(store.seen))
	}
	each(t, s, sealed.Desc, func(m ocispec.Manifest, _ string) {
		if store.seen[m.Layers[0].Digest] > 0 {
			t.Error("a ciphertext was used that had been sent before")
		}
	})
	store.times = 2
	back := decrypt(t, store, sealed.Desc, imgcrypt.DecryptOptions{Identities: identities(p)})
	if diff := cmp.Diff(plain, back.Desc); diff != "" {
		t.Error(diff)
	}
	store.times = 100
	if _, err := imgcrypt.Encrypt(t.Context(), store, plain, imgcrypt.EncryptOptions{Recipients: recipients(p)}); !errors.Is(err, imgcrypt.ErrInterrupted) || store.times != 96 {
		t.Errorf("after %d tries: %v", 100-store.times, err)
	}
}
