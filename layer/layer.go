// Package layer is about one layer of an image: its bytes, which it seals and
// opens as they stream by, and what its descriptor says about the encryption.
//
// The cipher is AES-256 in counter mode over the blob as it is, so that a
// compressed layer stays compressed and the length does not change, and
// HMAC-SHA-256 over the ciphertext with the same key. The MAC is the only thing
// that authenticates a layer.
package layer

import "errors"

var (
	// ErrTampered means that a layer's bytes are not those that were encrypted:
	// its MAC is missing, too short or wrong, or its length is not the
	// descriptor's.
	ErrTampered = errors.New("tampered")
	// ErrMismatch means that a blob's bytes do not have the digest or the size
	// that its descriptor says.
	ErrMismatch = errors.New("content does not match its descriptor")
)

// chunk is the size, in bytes, of the pieces in which layers are processed.
const chunk = 1 << 20
