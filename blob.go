package imgcrypt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxManifestSize is how large a manifest, an index or an image config may be, in
// bytes. Registries are only asked to take manifests of up to 4 MiB.
const MaxManifestSize = 4 << 20

// openBlob opens the blob of desc for reading it to its verified end.
func openBlob(ctx context.Context, s Store, desc ocispec.Descriptor, p *ocispec.Platform) (io.ReadCloser, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: digest %.100q: %w", ErrManifest, desc.Digest, err)
	}
	if desc.Size < 0 {
		return nil, fmt.Errorf("%w: %s has a size of %d bytes", ErrManifest, desc.Digest, desc.Size)
	}
	r, err := s.Open(ctx, desc)
	if errors.Is(err, ErrNotFound) {
		return nil, &MissingError{Desc: desc, Platform: p}
	}
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", desc.Digest, err)
	}
	return r, nil
}

// readBlob reads a whole small blob and verifies it.
func readBlob(ctx context.Context, s Store, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > MaxManifestSize {
		return nil, fmt.Errorf("%w: %s has %d bytes, more than the %d that are read", ErrManifest, desc.Digest, desc.Size, MaxManifestSize)
	}
	r, err := openBlob(ctx, s, desc, desc.Platform)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(newVerifier(r, desc))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", desc.Digest, err)
	}
	return data, nil
}

// putBlob stores a small blob under its digest and returns its descriptor.
func putBlob(ctx context.Context, s Store, mediaType string, data []byte, refs []ocispec.Descriptor) (ocispec.Descriptor, error) {
	if len(data) > MaxManifestSize {
		return ocispec.Descriptor{}, fmt.Errorf("%w: it would have %d bytes, more than the %d that registries take", ErrManifest, len(data), MaxManifestSize)
	}
	want := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return s.Put(ctx, want, bytes.NewReader(data), refs...)
}

// verifier reads a blob and turns its end into an error that wraps [ErrMismatch]
// if it was not the one of its descriptor.
type verifier struct {
	r    io.Reader
	desc ocispec.Descriptor
	hash hash.Hash
	seen int64
	also error // wrapped by its own errors too
}

// newVerifier returns a verifying reader. The digest of desc has been validated.
func newVerifier(r io.Reader, desc ocispec.Descriptor) *verifier {
	return &verifier{r: r, desc: desc, hash: desc.Digest.Algorithm().Hash()}
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.hash.Write(p[:n])
	v.seen += int64(n)
	if v.seen > v.desc.Size {
		return n, v.mismatch("longer than its %d bytes", v.desc.Size)
	}
	if errors.Is(err, ErrMismatch) && v.also != nil {
		// The store has verified it first.
		return n, fmt.Errorf("%w: %w", v.also, err)
	}
	if err != io.EOF {
		return n, err
	}
	if v.seen != v.desc.Size {
		return n, v.mismatch("%d bytes long, want %d", v.seen, v.desc.Size)
	}
	if got := digest.NewDigest(v.desc.Digest.Algorithm(), v.hash); got != v.desc.Digest {
		return n, v.mismatch("its digest is %s", got)
	}
	return n, io.EOF
}

func (v *verifier) mismatch(format string, args ...any) error {
	err := fmt.Errorf("%w: %s", ErrMismatch, fmt.Sprintf(format, args...))
	if v.also != nil {
		return fmt.Errorf("%w: %w", v.also, err)
	}
	return err
}
