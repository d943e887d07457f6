package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"strings"

	containerregistry "github.com/google/go-containerregistry/pkg/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/store/registry"
)

// A blob and an image go into a registry on this machine, which is spoken to by http.
func ExampleOpen() {
	server := httptest.NewServer(containerregistry.New(containerregistry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()

	repository, tag, err := registry.Parse(strings.TrimPrefix(server.URL, "http://") + "/team/app:v1")
	if err != nil {
		log.Fatal(err)
	}
	store, err := registry.Open(repository, registry.Options{UserAgent: "example"})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()

	ctx := context.Background()
	// The digest comes out of what was sent.
	config, err := store.Put(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig}, strings.NewReader("{}"))
	if err != nil {
		log.Fatal(err)
	}
	text := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[]}`,
		ocispec.MediaTypeImageManifest, config.MediaType, config.Digest, config.Size)
	manifest, err := store.Put(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest}, bytes.NewReader(text), config)
	if err != nil {
		log.Fatal(err)
	}
	if err := store.Tag(ctx, tag, manifest); err != nil {
		log.Fatal(err)
	}
	root, err := store.Resolve(ctx, tag)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(tag, root.Digest == manifest.Digest, config.Digest)
	// Output: v1 true sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a
}
