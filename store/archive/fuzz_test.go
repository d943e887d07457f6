package archive_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/store/archive"
)

// readable reads what of an image can be read, and checks that nothing is read as if it
// were right that is not.
func readable(t *testing.T, s imgcrypt.Store, desc ocispec.Descriptor, depth int) {
	t.Helper()
	r, err := s.Open(context.Background(), desc)
	if err != nil {
		return
	}
	defer r.Close()
	// What decompresses to very much is not for here.
	text, err := io.ReadAll(io.LimitReader(r, 8<<20))
	if err != nil {
		return
	}
	if len(text) < 8<<20 && (int64(len(text)) != desc.Size || desc.Digest.Algorithm().FromBytes(text) != desc.Digest) {
		t.Errorf("%s of %d bytes was read as %d others", desc.Digest, desc.Size, len(text))
	}
	if refs, err := imgcrypt.References(desc, text); err == nil && imgcrypt.IsManifest(desc) && depth < 3 {
		for _, ref := range refs[:min(len(refs), 10)] {
			readable(t, s, ref, depth+1)
		}
	}
}

// Whatever is in a tar: it is no archive, or one that can be read, and written to.
func FuzzTar(f *testing.F) {
	config := configOf("layer")
	blob := func(text string) tarFile { return tarFile{name: "blobs/sha256/" + hexOf(text), body: text} }
	index := `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + digest.FromString(`{"layers":[]}`).String() + `","size":13}]}`
	for _, list := range [][]tarFile{
		{{name: "oci-layout", body: layoutFile}, {name: "index.json", body: index}, blob(`{"layers":[]}`)},
		{{name: "c", body: config}, {name: "1/layer.tar", body: "layer"}, {name: "2/layer.tar", link: "../1/layer.tar"}, {name: "manifest.json", body: `[{"Config":"c","RepoTags":["a:b"],"Layers":["2/layer.tar"]}]`}},
		{{name: strings.Repeat("long", 100), body: "x"}, {name: "hard", link: "c", kind: '1'}},
	} {
		text := tarOf(f, list...)
		f.Add(text)
		f.Add([]byte(gzipOf(string(text))))
		f.Add([]byte(zstdOf(string(text))))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "a.tar")
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
		if d, err := archive.OpenDocker(path); err == nil {
			for _, ref := range []string{"", "@0", "a:b"} {
				if desc, err := d.Resolve(t.Context(), ref); err == nil {
					readable(t, d, desc, 0)
				}
			}
			d.Close()
		}
		a, err := archive.Open(path)
		if err != nil {
			return
		}
		defer a.Close()
		for _, ref := range []string{"", "@0", "v1"} {
			if desc, err := a.Resolve(t.Context(), ref); err == nil {
				readable(t, a, desc, 0)
			}
		}
		desc, err := a.Put(t.Context(), ocispec.Descriptor{MediaType: "a/b"}, strings.NewReader("new"))
		if err != nil {
			if !errors.Is(err, errors.ErrUnsupported) {
				t.Error(err)
			}
			return
		}
		if err := a.Tag(t.Context(), "new", desc); err != nil {
			if now, _ := os.ReadFile(path); !bytes.Equal(now, text) {
				t.Error("it was changed, and not named")
			}
			return
		}
		b := open(t, path)
		if got, err := b.Resolve(t.Context(), "new"); err != nil || got.Digest != desc.Digest {
			t.Errorf("%v, %v", got, err)
		}
		readable(t, b, desc, 0)
	})
}

// Whatever is in a manifest.json and a config: it is refused, or an image.
func FuzzDockerManifest(f *testing.F) {
	f.Add(`[{"Config":"c","RepoTags":["a:b"],"Layers":["l"]}]`, configOf("layer"), "")
	f.Add(`[{"Config":"c","RepoTags":null,"Layers":["l","./x/../l"]},{}]`, configOf("layer", "layer"), "@0")
	f.Add(`[{"config":"../c","RepoTags":["a"],"Layers":null}]`, configOf(), "a:latest")
	f.Add(`null`, `{"rootfs":{"diff_ids":["sha256:x"]}}`, "a")
	f.Fuzz(func(t *testing.T, manifest, config, ref string) {
		path := filepath.Join(t.TempDir(), "a.tar")
		text := tarOf(t, tarFile{name: "l", body: "layer"}, tarFile{name: "g", body: gzipOf("layer")}, tarFile{name: "c", body: config}, tarFile{name: "manifest.json", body: manifest})
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
		d, err := archive.OpenDocker(path)
		if err != nil {
			if !errors.Is(err, imgcrypt.ErrManifest) {
				t.Error(err)
			}
			return
		}
		defer d.Close()
		if desc, err := d.Resolve(t.Context(), ref); err == nil {
			readable(t, d, desc, 0)
		}
		// And in the place of it, an archive of our own.
		w := createDocker(t, path)
		_ = putImage(t.Context(), w, ref, []byte("layer"))
	})
}
