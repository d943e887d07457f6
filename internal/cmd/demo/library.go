package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/log"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/internal/testregistry"
	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
)

// withLibrary is the walkthrough without containerd. What the library does is told
// in words, as there is no command for it; the image's program runs outside of any
// container.
func withLibrary(ctx context.Context, sh *shell) error {
	// The content store has an opinion on file systems without fs-verity.
	if err := log.SetLevel("error"); err != nil {
		return err
	}
	registry, err := testregistry.New(nil)
	if err != nil {
		return err
	}
	defer registry.Close()
	l := &library{shell: sh, registry: registry, parser: keys.Parser{Schemes: schemes.All(schemes.Options{}), Files: new(keys.Files)}}
	command, plain, err := sh.buildImage(l.path("build"))
	if err != nil {
		return err
	}
	encrypted, err := l.encrypt(ctx, plain)
	if err != nil {
		return err
	}
	decrypted, err := l.decrypt(ctx, encrypted)
	if err != nil {
		return err
	}
	if decrypted.Digest != plain.Digest {
		return fmt.Errorf("the decrypted image has digest %s, the original had %s", decrypted.Digest, plain.Digest)
	}
	sh.say("It is the original again: %s", plain.Digest)
	return l.start(ctx, decrypted, command)
}

type library struct {
	*shell
	registry *testregistry.Registry
	parser   keys.Parser
}

func (l *library) path(name string) string { return filepath.Join(l.dir, name) }

// store is a layout's.
func (l *library) store(name string) (imgcrypt.Store, error) {
	cs, err := local.NewStore(l.path(name))
	if err != nil {
		return nil, err
	}
	return encryption.NewStore(cs), nil
}

// encrypt encrypts the image in the layout build and sends it to the registry.
func (l *library) encrypt(ctx context.Context, plain ocispec.Descriptor) (ocispec.Descriptor, error) {
	l.title("Where images are built")
	var none ocispec.Descriptor
	if err := l.keyPair(ctx, "key.pem", "pub.pem"); err != nil {
		return none, err
	}
	recipient, err := l.parser.Recipient(ctx, "jwe:"+l.path("pub.pem"))
	if err != nil {
		return none, err
	}
	store, err := l.store("build")
	if err != nil {
		return none, err
	}
	res, err := imgcrypt.Encrypt(ctx, store, plain, imgcrypt.EncryptOptions{
		Recipients: []keys.Recipient{recipient},
		Notify:     func(n imgcrypt.Notice) { l.say("Note: %s", n.Text) },
	})
	if err != nil {
		return none, err
	}
	l.say("Image %s was encrypted for jwe:pub.pem: %s", plain.Digest, res.Desc.Digest)
	img, err := imgcrypt.Inspect(ctx, store, res.Desc, imgcrypt.InspectOptions{Schemes: l.parser.Schemes})
	if err != nil {
		return none, err
	}
	for _, m := range img.Manifests {
		for _, i := range m.Layers {
			var names []string
			for _, r := range i.Recipients {
				names = append(names, r.Scheme+" "+r.Name)
			}
			l.say("Layer %d: %s, %d bytes, for %s", i.Index, i.MediaType, i.Size, strings.Join(names, ", "))
		}
	}
	if err := l.registry.Upload(ctx, l.path("build"), res.Desc, "hello:encrypted"); err != nil {
		return none, err
	}
	l.say("Pushed to %s", l.registry.Ref("hello:encrypted"))
	return res.Desc, nil
}

// decrypt fetches the image into the layout node and decrypts it there.
func (l *library) decrypt(ctx context.Context, encrypted ocispec.Descriptor) (ocispec.Descriptor, error) {
	l.title("Where there is nothing but the registry's address")
	var none ocispec.Descriptor
	if err := l.pull(ctx); err != nil {
		return none, err
	}
	store, err := l.store("node")
	if err != nil {
		return none, err
	}
	err = imgcrypt.Authorize(ctx, store, encrypted, imgcrypt.AuthorizeOptions{})
	if err == nil {
		return none, fmt.Errorf("image %s opens without a key", encrypted.Digest)
	}
	l.say("Without a key it is refused: %v", err)
	identity, err := l.parser.Identity(l.path("key.pem"))
	if err != nil {
		return none, err
	}
	res, err := imgcrypt.Decrypt(ctx, store, encrypted, imgcrypt.DecryptOptions{Identities: []keys.Identity{identity}})
	if err != nil {
		return none, err
	}
	l.say("With key.pem it was decrypted: %s", res.Desc.Digest)
	return res.Desc, nil
}

func (l *library) pull(ctx context.Context) error {
	ref, err := name.ParseReference(l.registry.Ref("hello:encrypted"))
	if err != nil {
		return err
	}
	img, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	node, err := layout.Write(l.path("node"), empty.Index)
	if err != nil {
		return err
	}
	if err := node.AppendImage(img); err != nil {
		return err
	}
	l.say("Pulled %s", digest)
	return nil
}

// start unpacks the image and starts its program.
func (l *library) start(ctx context.Context, image ocispec.Descriptor, command []string) error {
	store, err := l.store("node")
	if err != nil {
		return err
	}
	img, err := imgcrypt.Inspect(ctx, store, image, imgcrypt.InspectOptions{})
	if err != nil {
		return err
	}
	if err := os.Mkdir(l.path("rootfs"), 0o755); err != nil {
		return err
	}
	for _, i := range img.Manifests[0].Layers {
		if layer.IsEncrypted(i.MediaType) {
			return fmt.Errorf("layer %d is still encrypted", i.Index)
		}
		if _, err := l.ok(ctx, fmt.Sprintf("tar -xzf node/blobs/sha256/%s -C rootfs", i.Digest.Encoded())); err != nil {
			return err
		}
	}
	_, err = l.greets(ctx, "rootfs"+quote(command))
	return err
}
