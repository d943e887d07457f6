package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
)

// ociLayout is the directory of an OCI layout as an imgcrypt.Store.
type ociLayout string

func (l ociLayout) Open(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	f, err := os.Open(filepath.Join(string(l), "blobs", desc.Digest.Algorithm().String(), desc.Digest.Encoded()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", desc.Digest, imgcrypt.ErrNotFound)
	}
	return f, err
}

func (l ociLayout) Put(_ context.Context, want ocispec.Descriptor, r io.Reader, _ ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if want.Digest != "" && (digest.FromBytes(data) != want.Digest || int64(len(data)) != want.Size) {
		return ocispec.Descriptor{}, fmt.Errorf("put %s: %w", want.Digest, imgcrypt.ErrMismatch)
	}
	return testimage.PutBlob(string(l), want.MediaType, data)
}

// blob reads a blob and verifies it.
func (l ociLayout) blob(t testing.TB, desc ocispec.Descriptor) []byte {
	t.Helper()
	data, err := testimage.Blob(string(l), desc)
	if err != nil {
		t.Fatal(err)
	}
	if digest.FromBytes(data) != desc.Digest || int64(len(data)) != desc.Size {
		t.Fatalf("blob %s is not what its descriptor says", desc.Digest)
	}
	return data
}

// put stores a blob that a test made.
func (l ociLayout) put(t testing.TB, mediaType string, data []byte) ocispec.Descriptor {
	t.Helper()
	desc, err := testimage.PutBlob(string(l), mediaType, data)
	if err != nil {
		t.Fatal(err)
	}
	return desc
}

// image returns the image that has a name, as Tag gives it or as skopeo does.
func (l ociLayout) image(t testing.TB, name string) ocispec.Descriptor {
	t.Helper()
	index, err := testimage.Index(string(l))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range index.Manifests {
		if m.Annotations[ocispec.AnnotationRefName] == name {
			return ocispec.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size}
		}
	}
	t.Fatalf("no image %s in the layout", name)
	return ocispec.Descriptor{}
}

// encrypt encrypts an image for recipients ("jwe:pub.pem"), and names it.
func (l ociLayout) encrypt(t testing.TB, desc ocispec.Descriptor, name string, recipients ...string) ocispec.Descriptor {
	t.Helper()
	parser := &keys.Parser{Schemes: schemes.All(schemes.Options{})}
	var o imgcrypt.EncryptOptions
	for _, s := range recipients {
		r, err := parser.Recipient(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		o.Recipients = append(o.Recipients, r)
	}
	result, err := imgcrypt.Encrypt(t.Context(), l, desc, o)
	if err != nil {
		t.Fatalf("encrypt %s: %v", name, err)
	}
	if err := testimage.Tag(string(l), name, result.Desc); err != nil {
		t.Fatal(err)
	}
	return result.Desc
}

// decrypt decrypts an image with the keys in files.
func (l ociLayout) decrypt(t testing.TB, desc ocispec.Descriptor, privates ...string) (imgcrypt.Result, error) {
	t.Helper()
	return imgcrypt.Decrypt(t.Context(), l, desc, imgcrypt.DecryptOptions{Identities: identitiesOf(t, privates...)})
}

func identitiesOf(t testing.TB, privates ...string) (ids []keys.Identity) {
	t.Helper()
	parser := &keys.Parser{Schemes: schemes.All(schemes.Options{})}
	for _, s := range privates {
		id, err := parser.Identity(s)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

// leaf is an image manifest with the plain bytes of its layers' tars.
type leaf struct {
	platform string
	manifest ocispec.Manifest
	tars     [][]byte
}

// leaves reads all image manifests of an image without encrypted layers, and
// verifies every digest, those of the plain tars in the configs too.
func (l ociLayout) leaves(t testing.TB, desc ocispec.Descriptor) (all []leaf) {
	t.Helper()
	var index ocispec.Index
	data := l.blob(t, desc)
	unmarshal(t, data, &index)
	if len(index.Manifests) > 0 {
		for _, m := range index.Manifests {
			all = append(all, l.leaves(t, m)...)
		}
		return all
	}
	var one leaf
	var config ocispec.Image
	unmarshal(t, data, &one.manifest)
	unmarshal(t, l.blob(t, one.manifest.Config), &config)
	one.platform = config.OS + "/" + config.Architecture
	for i, d := range one.manifest.Layers {
		tar := decompress(t, d.MediaType, bytes.NewReader(l.blob(t, d)))
		if got := digest.FromBytes(tar); got != config.RootFS.DiffIDs[i] {
			t.Fatalf("layer %d of %s is the tar %s, want %s", i, one.platform, got, config.RootFS.DiffIDs[i])
		}
		one.tars = append(one.tars, tar)
	}
	return []leaf{one}
}
