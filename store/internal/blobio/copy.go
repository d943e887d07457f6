// Package blobio moves the bytes of blobs and checks them on the way.
package blobio

import (
	"context"
	_ "crypto/sha512" // Digests may be SHA-384 and SHA-512.
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

// Piece is the size, in bytes, of the pieces in which blobs are written.
const Piece = 1 << 20

// CheckDigest refuses what is no digest that can be verified, and what is no name of a
// file either.
func CheckDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%w: digest %.100q: %w", imgcrypt.ErrManifest, d, err)
	}
	return nil
}

// Copy writes what r yields until io.EOF to w and returns the descriptor of that, with
// media type, digest and size, as [imgcrypt.Store] asks of Put. Any other end of r is an
// error, as it is. With a digest in want, which has been checked, an error that wraps
// [imgcrypt.ErrMismatch] says that r yielded something else; what was written by then is
// never more than want.Size bytes.
//
// Not io.ReadFull nor anything that uses it: that makes io.ErrUnexpectedEOF of a short
// end, which is what a broken connection reports too.
func Copy(ctx context.Context, w io.Writer, r io.Reader, want ocispec.Descriptor) (ocispec.Descriptor, error) {
	known, algorithm, size := want.Digest != "", digest.Canonical, int64(Piece)
	if known {
		algorithm = want.Digest.Algorithm()
		size = min(size-1, max(want.Size, 0)) + 1
	}
	digester := algorithm.Digester()
	buf := make([]byte, size)
	var total int64
	for more := true; more; {
		n, err := ReadPiece(ctx, r, buf)
		if err != nil && err != io.EOF {
			return ocispec.Descriptor{}, err
		}
		more = err == nil
		if total += int64(n); known && total > want.Size {
			return ocispec.Descriptor{}, fmt.Errorf("%w: it is longer than %d bytes", imgcrypt.ErrMismatch, want.Size)
		}
		digester.Hash().Write(buf[:n])
		if n == 0 {
			continue
		}
		if _, err := w.Write(buf[:n]); errors.Is(err, io.EOF) {
			return ocispec.Descriptor{}, fmt.Errorf("%w: %v", io.ErrUnexpectedEOF, err)
		} else if err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	got := ocispec.Descriptor{MediaType: want.MediaType, Digest: digester.Digest(), Size: total}
	if known && got.Size != want.Size {
		return ocispec.Descriptor{}, fmt.Errorf("%w: it has %d bytes, not %d", imgcrypt.ErrMismatch, got.Size, want.Size)
	}
	if known && got.Digest != want.Digest {
		return ocispec.Descriptor{}, fmt.Errorf("%w: its digest is %s, not %s", imgcrypt.ErrMismatch, got.Digest, want.Digest)
	}
	return got, nil
}

// idleReads is how often in a row a reader may yield nothing.
const idleReads = 100

// ReadPiece reads until buf is full, r returns an error, which is then returned as it
// is, or ctx ends.
func ReadPiece(ctx context.Context, r io.Reader, buf []byte) (int, error) {
	var n, idle int
	for n < len(buf) {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		m, err := r.Read(buf[n:])
		n += m
		if err == nil {
			if idle++; m > 0 {
				idle = 0
			} else if idle == idleReads {
				err = io.ErrNoProgress
			}
		}
		if err != nil {
			return n, err
		}
	}
	return n, ctx.Err()
}
