package blobio

import (
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

// Verify returns a reader of a blob that ends with an error that wraps
// [imgcrypt.ErrMismatch] instead of io.EOF if r did not yield what desc says. The digest
// of desc has been checked. It reads no more once ctx has ended.
func Verify(ctx context.Context, r io.ReadCloser, desc ocispec.Descriptor) io.ReadCloser {
	return &verifier{ctx: ctx, r: r, desc: desc, digester: desc.Digest.Algorithm().Digester()}
}

type verifier struct {
	ctx      context.Context
	r        io.ReadCloser
	desc     ocispec.Descriptor
	digester digest.Digester
	seen     int64
	err      error
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.err == nil {
		v.err = v.ctx.Err()
	}
	if v.err != nil || len(p) == 0 {
		return 0, v.err
	}
	n, err := v.r.Read(p)
	v.digester.Hash().Write(p[:n])
	v.seen += int64(n)
	switch {
	case v.seen > v.desc.Size:
		n -= int(min(v.seen-v.desc.Size, int64(n)))
		v.err = v.mismatch("longer than its %d bytes", v.desc.Size)
	case err != io.EOF:
		v.err = err
	case v.seen != v.desc.Size:
		v.err = v.mismatch("%d bytes long, want %d", v.seen, v.desc.Size)
	case v.digester.Digest() != v.desc.Digest:
		v.err = v.mismatch("its digest is %s", v.digester.Digest())
	default:
		v.err = io.EOF
	}
	return n, v.err
}

func (v *verifier) mismatch(format string, args ...any) error {
	return fmt.Errorf("blob %s: %w: %s", v.desc.Digest, imgcrypt.ErrMismatch, fmt.Sprintf(format, args...))
}

func (v *verifier) Close() error { return v.r.Close() }
