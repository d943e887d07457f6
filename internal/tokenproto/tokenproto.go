// Package tokenproto is what package keys/pkcs11 and its helper, the program imgcrypt-pkcs11, say to each
// other: one [Request] as JSON on the helper's standard input, to its end, and one [Answer] as JSON in one
// line on its standard output. The helper has no arguments.
package tokenproto

import (
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"strings"
	"time"
)

// Program is the helper's name.
const Program = "imgcrypt-pkcs11"

// Version is that of the protocol. Both sides refuse any other.
const Version = 1

// Limits on what either side reads, in bytes, and on what a request holds.
const (
	MaxRequest = 8 << 20
	MaxAnswer  = 1 << 20
	MaxBlobs   = 1024
	MaxBlob    = 2048
	MaxTimeout = time.Hour
)

// Operation is what is asked for.
type Operation string

// The operations.
const (
	// PublicKey asks for the public half of the key.
	PublicKey Operation = "public-key"
	// Unwrap asks for what one of the blobs was encrypted from.
	Unwrap Operation = "unwrap"
)

// Request is one operation.
type Request struct {
	Version   int       `json:"version"`
	Operation Operation `json:"operation"`
	// Timeout is when the helper ends by itself if nobody ends it.
	Timeout time.Duration `json:"timeout"`
	// Module is the absolute path of the shared library. That it may be loaded has been checked.
	Module string `json:"module"`
	// Env are environment variables that are set before it is loaded.
	Env map[string]string `json:"env,omitempty"`
	// Token and Key say which they are.
	Token Token `json:"token"`
	Key   Key   `json:"key"`
	// PIN is the user's; empty means that there is none.
	PIN []byte `json:"pin,omitempty"`
	// Blobs are what is to be unwrapped: the first that opens.
	Blobs []Blob `json:"blobs,omitempty"`
}

// Token says which token is meant: one of which all is true that is set. Empty texts are not set, and so
// is nil.
type Token struct {
	Slot         *uint  `json:"slot,omitempty"`
	Label        []byte `json:"label,omitempty"`
	Serial       []byte `json:"serial,omitempty"`
	Model        []byte `json:"model,omitempty"`
	Manufacturer []byte `json:"manufacturer,omitempty"`
}

// Key says which key is meant: the one of which all is true that is set.
type Key struct {
	Label []byte `json:"label,omitempty"`
	ID    []byte `json:"id,omitempty"`
}

// The hashes of RSA-OAEP, in its own use and in MGF1.
const (
	SHA1   = "sha1"
	SHA256 = "sha256"
)

// Blob is something that was encrypted by RSA-OAEP for some key, with an empty label.
type Blob struct {
	Data []byte `json:"data"`
	// Hash is SHA1 or SHA256.
	Hash string `json:"hash"`
	// KeyID is that of the key, if it is known. Others may have written it, so it only says what to try first.
	KeyID string `json:"kid,omitempty"`
}

// Answer is what came of it.
type Answer struct {
	Version int `json:"version"`
	// Reason is empty if the operation succeeded, else Detail says more, for people. It never has a secret in it.
	Reason Reason `json:"reason,omitempty"`
	Detail string `json:"detail,omitempty"`
	// Modulus and Exponent are the public key, also after a failure if it is known by then.
	Modulus  []byte `json:"n,omitempty"`
	Exponent []byte `json:"e,omitempty"`
	// Secret is what was unwrapped.
	Secret []byte `json:"secret,omitempty"`
}

// Reason is why an operation failed.
type Reason string

// The reasons that a helper gives.
const (
	BadRequest    Reason = "bad-request"
	ModuleFailed  Reason = "module-failed"
	NoToken       Reason = "no-token"
	SeveralTokens Reason = "several-tokens"
	NoKey         Reason = "no-key"
	SeveralKeys   Reason = "several-keys"
	UnfitKey      Reason = "unfit-key"
	PINMissing    Reason = "pin-missing"
	PINWrong      Reason = "pin-wrong"
	PINLocked     Reason = "pin-locked"
	PINLastTry    Reason = "pin-last-try"
	NoMechanism   Reason = "no-mechanism"
	TokenFailed   Reason = "token-failed"
	// NoMatch means that none of the blobs opens; Damaged, that one does not although it has the key's id.
	NoMatch Reason = "no-match"
	Damaged Reason = "damaged"
)

// Check returns what is wrong with a request, without repeating any of it.
func (r *Request) Check() error {
	switch {
	case r.Version != Version:
		return fmt.Errorf("version %d, and %d is known", r.Version, Version)
	case r.Operation != PublicKey && r.Operation != Unwrap:
		return errors.New("no known operation")
	case r.Timeout <= 0 || r.Timeout > MaxTimeout:
		return errors.New("a timeout out of range")
	case !filepath.IsAbs(r.Module) || strings.ContainsRune(r.Module, 0):
		return errors.New("the module has no absolute path")
	case len(r.Key.Label) == 0 && len(r.Key.ID) == 0:
		return errors.New("no key is named")
	case len(r.Blobs) > MaxBlobs:
		return fmt.Errorf("more than %d blobs", MaxBlobs)
	case r.Operation == Unwrap && len(r.Blobs) == 0:
		return errors.New("nothing to unwrap")
	}
	for name, value := range r.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return errors.New("an environment variable that cannot be set")
		}
	}
	for _, b := range r.Blobs {
		if len(b.Data) == 0 || len(b.Data) > MaxBlob || b.Hash != SHA1 && b.Hash != SHA256 {
			return errors.New("a blob of the wrong size or with an unknown hash")
		}
	}
	return nil
}

// SetKey sets the public key.
func (a *Answer) SetKey(n, e []byte) {
	a.Modulus, a.Exponent = new(big.Int).SetBytes(n).Bytes(), new(big.Int).SetBytes(e).Bytes()
}

// Key returns the public key, or nil if there is none that Go can calculate with.
func (a *Answer) Key() *rsa.PublicKey {
	n, e := new(big.Int).SetBytes(a.Modulus), new(big.Int).SetBytes(a.Exponent)
	if n.Sign() == 0 || len(a.Modulus) > MaxBlob || e.BitLen() < 2 || e.BitLen() > 31 {
		return nil
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}
}

// KeyID returns the id of a public key: its thumbprint as in RFC 7638, with SHA-256, in base64url without
// padding. n and e are big-endian, without leading zeros.
func KeyID(n, e []byte) string {
	b64 := base64.RawURLEncoding.EncodeToString
	sum := sha256.Sum256([]byte(`{"e":"` + b64(e) + `","kty":"RSA","n":"` + b64(n) + `"}`))
	return b64(sum[:])
}
