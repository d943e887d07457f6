package encryption_test

import (
	"context"
	"fmt"
	"os"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/internal/testimage"
)

// An image in a content store is encrypted, refused without the key, and decrypted.
// With a containerd the store is the client's ContentStore(), and a lease of the
// client's WithLease keeps what is written until the image is named.
func Example() {
	ctx := context.Background()
	dir := must(os.MkdirTemp("", "example"))
	defer os.RemoveAll(dir)
	cs := must(local.NewLabeledStore(dir, &labels{sets: map[digest.Digest]map[string]string{}}))
	image := must(testimage.Spec{Layers: testimage.Layers(2, testimage.Gzip)}.Write(dir, ""))
	node := newPair()

	sealed, changed, err := encryption.EncryptImage(ctx, cs, image, node.encrypts(), nil)
	if err != nil {
		fmt.Println(err)
	}
	fmt.Println("encrypted:", changed)

	err = encryption.CheckAuthorization(ctx, cs, sealed, nil)
	fmt.Println("refused without a key:", err != nil)
	err = encryption.CheckAuthorization(ctx, cs, sealed, node.opens())
	fmt.Println("refused with the key:", err != nil)

	back, _, err := encryption.DecryptImage(ctx, cs, sealed, node.decrypts(), nil)
	if err != nil {
		fmt.Println(err)
	}
	fmt.Println("the original:", back.Digest == image.Digest)
	// Output:
	// encrypted: true
	// refused without a key: true
	// refused with the key: false
	// the original: true
}

// The option goes into the client's Image.Unpack or, by WithUnpackOpts, into its Pull.
func ExampleWithDecryptedUnpack() {
	payload := &imgcrypt.Payload{DecryptConfig: *newPair().opens()}
	unpack := encryption.WithUnpackConfigApplyOpts(encryption.WithDecryptedUnpack(payload))
	pull := encryption.WithUnpackOpts([]containerd.UnpackOpt{unpack})
	_ = pull

	// This is what containerd then does for each layer.
	var config diff.ApplyConfig
	layer := ocispec.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"}
	if err := encryption.WithDecryptedUnpack(payload)(context.Background(), layer, &config); err != nil {
		fmt.Println(err)
	}
	fmt.Println("payloads:", len(config.ProcessorPayloads))
	// Output:
	// payloads: 3
}
