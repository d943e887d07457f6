package imgcrypt_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
)

// layoutStore is a Store over an OCI layout that is only read; what is put stays
// in memory.
type layoutStore struct {
	dir string

	mu    sync.Mutex
	blobs map[digest.Digest][]byte
	refs  map[digest.Digest][]ocispec.Descriptor
	gone  map[digest.Digest]bool
	opens []digest.Digest
	// fault, when set, may fail a Put after it has read everything.
	fault func(want ocispec.Descriptor) error
}

func newStore(dir string) *layoutStore {
	return &layoutStore{
		dir: dir, blobs: map[digest.Digest][]byte{}, refs: map[digest.Digest][]ocispec.Descriptor{},
		gone: map[digest.Digest]bool{},
	}
}

func (s *layoutStore) Open(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	data, err := s.get(desc)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.opens = append(s.opens, desc.Digest)
	s.mu.Unlock()
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (s *layoutStore) get(desc ocispec.Descriptor) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if data, ok := s.blobs[desc.Digest]; ok {
		return data, nil
	}
	data, err := testimage.Blob(s.dir, ocispec.Descriptor{Digest: desc.Digest})
	if s.gone[desc.Digest] || err != nil {
		return nil, fmt.Errorf("%s: %w", desc.Digest, imgcrypt.ErrNotFound)
	}
	return data, nil
}

func (s *layoutStore) Put(_ context.Context, want ocispec.Descriptor, r io.Reader, refs ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if s.fault != nil {
		if err := s.fault(want); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	algorithm := digest.SHA256
	if want.Digest != "" {
		algorithm = want.Digest.Algorithm()
	}
	got := ocispec.Descriptor{MediaType: want.MediaType, Digest: algorithm.FromBytes(data), Size: int64(len(data))}
	if want.Digest != "" && (got.Digest != want.Digest || got.Size != want.Size) {
		return ocispec.Descriptor{}, fmt.Errorf("put: %w", imgcrypt.ErrMismatch)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[got.Digest], s.refs[got.Digest] = data, refs
	return got, nil
}

// put stores bytes that a test made, as a blob of any descriptor.
func (s *layoutStore) put(mediaType string, data []byte) ocispec.Descriptor {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[desc.Digest] = data
	return desc
}

// stored returns the digests of what was put, sorted.
func (s *layoutStore) stored() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.blobs))
}

func (s *layoutStore) opened() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.opens)
}

// pair is a recipient and its identity.
type pair struct {
	recipient keys.Recipient
	identity  keys.Identity
}

func newPair(t testing.TB) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	scheme := jwe.Scheme()
	r, err := scheme.Recipients(context.Background(), keys.Parameters{keys.ParamPublicKeys: {public}})
	if err != nil {
		t.Fatal(err)
	}
	id, err := scheme.Identity(keys.Key{Label: "test.key", Data: private})
	if err != nil {
		t.Fatal(err)
	}
	return pair{r[0], id}
}
