package imgcrypt

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/layer"
)

// Sentinels. The errors about keys are keys.ErrNoKey and its siblings, the one
// about forged or damaged layers is layer.ErrTampered.
var (
	// ErrNotFound means that a store does not have a blob or a name.
	ErrNotFound = errors.New("not found")
	// ErrNothingSelected means that no manifest or layer fits the selection.
	ErrNothingSelected = errors.New("nothing selected")
	// ErrManifest means that a manifest or index cannot be what its media type
	// says, or is too large.
	ErrManifest = errors.New("malformed manifest")
	// ErrInterrupted means that a store could not take a blob to its end, and that
	// doing it anew, with a new reader, may help: a registry's connection broke,
	// say. What is encrypted is then encrypted anew, with a new key and nonce.
	ErrInterrupted = errors.New("interrupted")
	// ErrMismatch means that a blob's bytes do not have the digest or the size
	// that its descriptor says.
	ErrMismatch = layer.ErrMismatch
)

// LayerError says which layer an error is about.
type LayerError struct {
	// Index counts the manifest's layers from 0.
	Index int
	// Digest is that of the layer's blob as the manifest names it.
	Digest digest.Digest
	// Platform is the manifest's, or nil.
	Platform *ocispec.Platform
	Err      error
}

func (e *LayerError) Error() string {
	return fmt.Sprintf("layer %d (%s)%s: %v", e.Index, e.Digest, forPlatform(e.Platform), e.Err)
}

func (e *LayerError) Unwrap() error { return e.Err }

// MissingError says that a blob that has to be read is not in the store. It wraps
// [ErrNotFound].
type MissingError struct {
	Desc ocispec.Descriptor
	// Platform is that of the manifest that the blob belongs to, or nil.
	Platform *ocispec.Platform
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("blob %s%s is not here", e.Desc.Digest, forPlatform(e.Platform))
}

func (e *MissingError) Unwrap() error { return ErrNotFound }

// forPlatform renders a platform for an error, with a leading blank.
func forPlatform(p *ocispec.Platform) string {
	if p == nil || p.OS == "" {
		return ""
	}
	text := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		text += "/" + p.Variant
	}
	if len(text) > 100 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		// Anyone may have written it, and errors are shown on terminals.
		text = fmt.Sprintf("%.100q", text)
	}
	return " for " + text
}
