package layout_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/store/layout"
)

// A layout is made with its first blob; its images have names.
func Example() {
	tmp, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	s, err := layout.Create(filepath.Join(tmp, "images"))
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	ctx := context.Background()
	manifest := strings.NewReader(`{"schemaVersion":2,"layers":[]}`)
	desc, err := s.Put(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest}, manifest)
	if err != nil {
		log.Fatal(err)
	}
	if err := s.Tag(ctx, "v1", desc); err != nil {
		log.Fatal(err)
	}
	found, err := s.Resolve(ctx, "") // the only one
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(found.Digest)
	_, err = s.Resolve(ctx, "v2")
	fmt.Println(strings.TrimPrefix(err.Error(), tmp))
	// Output:
	// sha256:6ece6defe7067e1c5455a7720c1189ad30f7f8efe78587bd7c06e64a80fe7770
	// /images: no image v2; there is v1
}
