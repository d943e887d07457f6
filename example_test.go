package imgcrypt_test

import (
	"context"
	"fmt"
	"os"

	"imgcrypt"
	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
)

// Example encrypts an image of two layers for the holder of a key, and shows that
// this key opens it, what can be seen without it, and that decrypting gives back the
// same image.
func Example() {
	dir, err := os.MkdirTemp("", "imgcrypt-example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	plain, err := testimage.Spec{Platforms: []string{"linux/amd64"}, Layers: testimage.Layers(2, testimage.Gzip)}.Write(dir, "app")
	if err != nil {
		fmt.Println(err)
		return
	}
	store := newStore(dir) // whatever implements imgcrypt.Store

	ctx := context.Background()
	parser := keys.Parser{Schemes: schemes.All(schemes.Options{})}
	recipient, err := parser.Recipient(ctx, "jwe:testdata/example.pub.pem")
	if err != nil {
		fmt.Println(err)
		return
	}
	encrypted, err := imgcrypt.Encrypt(ctx, store, plain, imgcrypt.EncryptOptions{Recipients: []keys.Recipient{recipient}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(encrypted.Layers, "layers encrypted")

	img, err := imgcrypt.Inspect(ctx, store, encrypted.Desc, imgcrypt.InspectOptions{Schemes: schemes.All(schemes.Options{})})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, l := range img.Manifests[0].Layers {
		fmt.Println(l.Index, l.MediaType, l.Recipients)
	}

	err = imgcrypt.Authorize(ctx, store, encrypted.Desc, imgcrypt.AuthorizeOptions{})
	fmt.Println("without a key:", err != nil)

	identity, err := parser.Identity("testdata/example.pem")
	if err != nil {
		fmt.Println(err)
		return
	}
	decrypted, err := imgcrypt.Decrypt(ctx, store, encrypted.Desc, imgcrypt.DecryptOptions{Identities: []keys.Identity{identity}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("the same image:", decrypted.Desc.Digest == plain.Digest)
	// Output:
	// 2 layers encrypted
	// 0 application/vnd.oci.image.layer.v1.tar+gzip+encrypted [{jwe 2CMvNrD7CZftWLE-rMWmttx4Eo6RI-JHNl7zRTqhcUo}]
	// 1 application/vnd.oci.image.layer.v1.tar+gzip+encrypted [{jwe 2CMvNrD7CZftWLE-rMWmttx4Eo6RI-JHNl7zRTqhcUo}]
	// without a key: true
	// the same image: true
}
