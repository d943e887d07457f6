package imgcrypt

import (
	"context"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Encrypt encrypts the selected layers of the image root in s, and adds the
// recipients to those that are encrypted already.
func Encrypt(ctx context.Context, s Store, root ocispec.Descriptor, o EncryptOptions) (Result, error) {
	panic("being built")
}

// Decrypt is the mirror image of [Encrypt].
func Decrypt(ctx context.Context, s Store, root ocispec.Descriptor, o DecryptOptions) (Result, error) {
	panic("being built")
}

// Authorize unwraps the secret of every encrypted layer of the selected platforms.
func Authorize(ctx context.Context, s Store, root ocispec.Descriptor, o AuthorizeOptions) error {
	panic("being built")
}
