package layer

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
)

// Sealed is what came out of sealing one layer.
type Sealed struct {
	// Secret is what the recipients get. Its digest is that of the plain bytes.
	Secret Secret
	Public Public
	// Digest is the SHA-256 of the ciphertext.
	Digest digest.Digest
	// Size is the length in bytes of the plain bytes, and of the ciphertext.
	Size int64
}

// Sealer reads as the ciphertext of a plain layer, which it verifies meanwhile.
type Sealer struct {
	plain  io.Reader
	want   digest.Digest
	size   int64 // of the plain bytes as their descriptor says, or -1
	secret Secret
	stream cipher.Stream
	mac    hash.Hash
	before digest.Digester // of the plain bytes
	after  digest.Digester // of the ciphertext
	seen   int64
	err    error
}

// NewSealer returns a reader of the ciphertext of what plain yields, under a fresh
// random key and nonce. The plain bytes have to have the digest want and be size
// bytes long: the reader ends with an error that wraps [ErrMismatch] where they do
// not. An empty want and a size of -1 mean that this is not known before.
func NewSealer(plain io.Reader, want digest.Digest, size int64) (*Sealer, error) {
	algorithm := digest.SHA256
	if want != "" {
		if err := want.Validate(); err != nil {
			return nil, fmt.Errorf("digest %.100q: %w", want, err)
		}
		algorithm = want.Algorithm()
	}
	s := &Sealer{plain: plain, want: want, size: size, before: algorithm.Digester(), after: digest.SHA256.Digester()}
	// crypto/rand never fails: it ends the program instead.
	rand.Read(s.secret.Key[:])
	rand.Read(s.secret.Nonce[:])
	s.stream, s.mac = ciphers(&s.secret)
	return s, nil
}

// ciphers returns the cipher stream and the MAC of a layer.
func ciphers(s *Secret) (cipher.Stream, hash.Hash) {
	block, err := aes.NewCipher(s.Key[:])
	if err != nil {
		panic(err) // A key of 32 bytes is an AES-256 key.
	}
	return cipher.NewCTR(block, s.Nonce[:]), hmac.New(sha256.New, s.Key[:])
}

// Read implements [io.Reader]. Large buffers are best: each call encrypts and
// hashes in place what one read of the plain bytes returned.
func (s *Sealer) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.plain.Read(p)
	s.before.Hash().Write(p[:n])
	s.stream.XORKeyStream(p[:n], p[:n])
	s.mac.Write(p[:n])
	s.after.Hash().Write(p[:n])
	s.seen += int64(n)
	if err == io.EOF {
		err = s.verify()
	}
	if s.size >= 0 && s.seen > s.size {
		err = fmt.Errorf("%w: longer than its %d bytes", ErrMismatch, s.size)
	}
	s.err = err
	return n, err
}

// verify returns io.EOF if the plain bytes were those that their descriptor says.
func (s *Sealer) verify() error {
	if s.size >= 0 && s.seen != s.size {
		return fmt.Errorf("%w: %d bytes long, want %d", ErrMismatch, s.seen, s.size)
	}
	if got := s.before.Digest(); s.want != "" && got != s.want {
		return fmt.Errorf("%w: its digest is %s, want %s", ErrMismatch, got, s.want)
	}
	return io.EOF
}

// Sealed returns what the layer's descriptor and packets need. It is an error
// before Read has returned io.EOF.
func (s *Sealer) Sealed() (Sealed, error) {
	if s.err != io.EOF {
		return Sealed{}, errors.New("layer: not sealed to its end")
	}
	secret := s.secret
	secret.Digest = s.before.Digest()
	return Sealed{
		Secret: secret,
		Public: Public{MAC: s.mac.Sum(nil)},
		Digest: s.after.Digest(),
		Size:   s.seen,
	}, nil
}
