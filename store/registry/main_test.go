package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"imgcrypt/store/registry"
)

func TestMain(m *testing.M) {
	code := m.Run()
	// The test registries' own client.
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// nobody is a keychain without credentials: tests do not use those of who runs them.
type nobody struct{}

func (nobody) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// somebody is one with credentials.
type somebody authn.AuthConfig

func (s somebody) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig(s)), nil
}

// quick are options that lose no time.
func quick() registry.Options {
	return registry.Options{
		Keychain: nobody{}, Silence: 5 * time.Second,
		Retry: registry.RetryOptions{Attempts: 4, Wait: time.Millisecond, MaxWait: 3 * time.Second},
	}
}

// open opens a repository until the end of the test.
func open(t testing.TB, repository string, o registry.Options) *registry.Store {
	t.Helper()
	s, err := registry.Open(repository, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

const layerType = ocispec.MediaTypeImageLayer

// noise returns bytes that are the same for a seed.
func noise(seed uint64, size int) []byte {
	data := make([]byte, size)
	fill(rand.New(rand.NewPCG(seed, 0)), data)
	return data
}

func fill(r *rand.Rand, p []byte) {
	for i := 0; i < len(p); i += 8 {
		v := r.Uint64()
		for j := i; j < min(i+8, len(p)); j++ {
			p[j] = byte(v >> (8 * (j - i)))
		}
	}
}

func descOf(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// once is a reader that cannot go back.
func once(data []byte) io.Reader { return io.MultiReader(bytes.NewReader(data)) }

// get reads a whole blob.
func get(ctx context.Context, s *registry.Store, desc ocispec.Descriptor) ([]byte, error) {
	r, err := s.Open(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// checkGet checks that a store has a blob.
func checkGet(t testing.TB, s *registry.Store, desc ocispec.Descriptor, want []byte) {
	t.Helper()
	if got, err := get(t.Context(), s, desc); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, %v; want %d bytes", desc.Digest, len(got), err, len(want))
	}
}

// put stores a blob.
func put(t testing.TB, s *registry.Store, mediaType string, data []byte) ocispec.Descriptor {
	t.Helper()
	desc, err := s.Put(t.Context(), descOf(mediaType, data), bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return desc
}
