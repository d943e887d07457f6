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

// idleReads is how often in a row a reader may yield nothing.
const idleReads = 100

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
func Copy(ctx context.Context, w io.Writer, r io.Reader, want ocispec.Descriptor) (ocispec.Descriptor, error) {
	size := int64(Piece)
	if want.Digest != "" {
		size = min(size-1, max(want.Size, 0)) + 1
	}
	checked := NewReader(ctx, r, want)
	if _, err := Pump(w, checked, make([]byte, size)); err != nil {
		return ocispec.Descriptor{}, err
	}
	return checked.Desc(), nil
}

// Pump writes what r yields until io.EOF to w, a buffer at a time, and returns how many
// bytes that were. Other errors of r are returned as they are.
func Pump(w io.Writer, r io.Reader, buf []byte) (int64, error) {
	var total int64
	for more := true; more; {
		n, err := ReadPiece(r, buf)
		if err != nil && err != io.EOF {
			return total, err
		}
		more = err == nil
		if n == 0 {
			continue
		}
		if _, err := w.Write(buf[:n]); errors.Is(err, io.EOF) {
			return total, fmt.Errorf("%w: %v", io.ErrUnexpectedEOF, err)
		} else if err != nil {
			return total, err
		}
		total += int64(n)
	}
	return total, nil
}

// ReadPiece reads until buf is full or r returns an error, which is then returned as it
// is.
//
// Not io.ReadFull nor anything that uses it: that makes io.ErrUnexpectedEOF of a short
// end, which is what a broken connection reports too.
func ReadPiece(r io.Reader, buf []byte) (int, error) {
	var n, idle int
	for n < len(buf) {
		m, err := r.Read(buf[n:])
		n += m
		if err != nil {
			return n, err
		}
		if idle++; m > 0 {
			idle = 0
		} else if idle == idleReads {
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}
