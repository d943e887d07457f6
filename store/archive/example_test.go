package archive_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/store/archive"
)

// An archive is made with the first name, and replaced as a whole with each other one.
func ExampleCreate() {
	tmp, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	path := filepath.Join(tmp, "images.tar")
	a, err := archive.Create(path)
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()

	ctx := context.Background()
	manifest := strings.NewReader(`{"schemaVersion":2,"layers":[]}`)
	desc, err := a.Put(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest}, manifest)
	if err != nil {
		log.Fatal(err)
	}
	_, err = os.Stat(path)
	fmt.Println("there before it has a name:", err == nil)
	if err := a.Tag(ctx, "v1", desc); err != nil {
		log.Fatal(err)
	}
	_, err = os.Stat(path)
	fmt.Println("and then:", err == nil)
	// Output:
	// there before it has a name: false
	// and then: true
}

// A docker-archive is written for docker load, and read as docker save writes it.
func ExampleCreateDocker() {
	tmp, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	path := filepath.Join(tmp, "app.tar")
	w, err := archive.CreateDocker(path)
	if err != nil {
		log.Fatal(err)
	}
	defer w.Close()

	ctx := context.Background()
	put := func(mediaType, text string) ocispec.Descriptor {
		desc, err := w.Put(ctx, ocispec.Descriptor{MediaType: mediaType}, strings.NewReader(text))
		if err != nil {
			log.Fatal(err)
		}
		return desc
	}
	config := put(ocispec.MediaTypeImageConfig, `{"rootfs":{"type":"layers","diff_ids":[]}}`)
	manifest := put(ocispec.MediaTypeImageManifest, fmt.Sprintf(
		`{"schemaVersion":2,"config":{"mediaType":"%s","digest":"%s","size":%d},"layers":[]}`, config.MediaType, config.Digest, config.Size))
	if err := w.Tag(ctx, "example.test/app:v1", manifest); err != nil {
		log.Fatal(err)
	}

	r, err := archive.OpenDocker(path)
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	desc, err := r.Resolve(ctx, "example.test/app:v1")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(desc.MediaType)
	// Output: application/vnd.oci.image.manifest.v1+json
}
