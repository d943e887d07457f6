// Package layer is about one layer of an image: its bytes, which it seals and
// opens as they stream by, and what its descriptor says about the encryption.
//
// The cipher is AES-256 in counter mode over the blob as it is, so that a
// compressed layer stays compressed and the length does not change, and
// HMAC-SHA-256 over the ciphertext with the same key. The MAC is the only thing
// that authenticates a layer.
package layer

import (
	"errors"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
)

const encryptedSuffix = "+encrypted"

// IsEncrypted says whether a media type is that of an encrypted layer.
func IsEncrypted(mediaType string) bool { return strings.HasSuffix(mediaType, encryptedSuffix) }

// ErrTampered means that a layer's bytes are not those that were encrypted: its
// MAC is missing, too short or wrong, or its length is not the descriptor's.
var ErrTampered = errors.New("tampered")

// Sealed is what came out of sealing one layer.
type Sealed struct {
	Secret Secret
	Public Public
	// Digest is that of the ciphertext.
	Digest digest.Digest
	// Size is the length of the plain bytes and of the ciphertext.
	Size int64
}

// Sealer reads as the ciphertext of a plain layer.
type Sealer struct{}

// NewSealer returns a reader of the ciphertext of what plain yields, under a fresh
// random key and nonce.
func NewSealer(plain io.Reader) (*Sealer, error) { panic("being built") }

func (s *Sealer) Read(p []byte) (int, error) { panic("being built") }

// Sealed returns what the layer's descriptor and packets need. It is valid once
// Read has returned io.EOF.
func (s *Sealer) Sealed() (Sealed, error) { panic("being built") }

// Holdback is how many bytes at the end of a layer an [Opener] keeps until the
// MAC has been checked.
const Holdback = 1 << 20

// Opener reads as the plain bytes of an encrypted layer. The last [Holdback] bytes,
// or all of a smaller layer, are released only after the MAC was found right.
type Opener struct{}

// NewOpener returns a reader of the plain bytes of sealed, whose descriptor says
// that it has size bytes. A missing or short MAC is refused here, with an error
// that wraps [ErrTampered], before a byte is read.
func NewOpener(sealed io.Reader, s Secret, p Public, size int64) (*Opener, error) {
	panic("being built")
}

// Read returns io.EOF only after the MAC and the length were found right;
// otherwise an error that wraps [ErrTampered], or that of the underlying reader.
func (o *Opener) Read(p []byte) (int, error) { panic("being built") }
