package blobio

import (
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

// Reader reads a blob and checks it: it ends with an error that wraps
// [imgcrypt.ErrMismatch] instead of io.EOF if the blob is not the one that was wanted.
// Its errors stay.
type Reader struct {
	ctx      context.Context
	r        io.Reader
	want     ocispec.Descriptor
	digester digest.Digester
	seen     int64
	idle     int
	err      error
}

// NewReader returns a reader of the blob that want is about, whose digest has been
// checked; without one, everything is right. It reads no more once ctx has ended.
func NewReader(ctx context.Context, r io.Reader, want ocispec.Descriptor) *Reader {
	algorithm := digest.Canonical
	if want.Digest != "" {
		algorithm = want.Digest.Algorithm()
	}
	return &Reader{ctx: ctx, r: r, want: want, digester: algorithm.Digester()}
}

func (r *Reader) Read(p []byte) (int, error) {
	if r.err == nil {
		r.err = r.ctx.Err()
	}
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	n, err := r.r.Read(p)
	r.digester.Hash().Write(p[:n])
	r.seen += int64(n)
	if r.idle++; n > 0 {
		r.idle = 0
	}
	known := r.want.Digest != ""
	switch {
	case known && r.seen > r.want.Size:
		n -= int(min(r.seen-r.want.Size, int64(n)))
		r.err = r.mismatch("it is longer than %d bytes", r.want.Size)
	case err == nil && r.idle == idleReads:
		r.err = io.ErrNoProgress
	case err != io.EOF:
		r.err = err
	case known && r.seen != r.want.Size:
		r.err = r.mismatch("it has %d bytes, not %d", r.seen, r.want.Size)
	case known && r.digester.Digest() != r.want.Digest:
		r.err = r.mismatch("its digest is %s", r.digester.Digest())
	default:
		r.err = io.EOF
	}
	return n, r.err
}

func (r *Reader) mismatch(format string, args ...any) error {
	return fmt.Errorf("blob %s: %w: %s", r.want.Digest, imgcrypt.ErrMismatch, fmt.Sprintf(format, args...))
}

// Err returns the error with which the reader ended, io.EOF if all is well, and nil as
// long as it has not.
func (r *Reader) Err() error { return r.err }

// Desc describes what was read, after the end: media type, digest and size.
func (r *Reader) Desc() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: r.want.MediaType, Digest: r.digester.Digest(), Size: r.seen}
}

// Verify is [NewReader] for what has to be closed.
func Verify(ctx context.Context, r io.ReadCloser, desc ocispec.Descriptor) io.ReadCloser {
	return struct {
		*Reader
		io.Closer
	}{NewReader(ctx, r, desc), r}
}
