package archive_test

import (
	"archive/tar"
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

// fuzzFile writes a file where that is quick.
func fuzzFile(t *testing.T, data []byte) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "a.tar")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// fuzzTar makes a tar of lines with a type, a name and a link or the content of a file
// each, in which one byte is another. Whole tars take the fuzzer too long to make small.
func fuzzTar(lines string, at uint16, flip byte) []byte {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for line := range strings.Lines(lines) {
		kind, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		name, rest, _ := strings.Cut(rest, " ")
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(rest)), Mode: 0o644}
		if kind != "" && kind[0] != tar.TypeReg {
			h.Typeflag, h.Linkname, h.Size, rest = kind[0], rest, 0, ""
		}
		if tw.WriteHeader(h) == nil {
			_, _ = tw.Write([]byte(rest))
		}
	}
	_ = tw.Close()
	text := buf.Bytes()
	if len(text) > 0 {
		text[int(at)%len(text)] ^= flip
	}
	return text
}

// Whatever is in a tar: it is no archive, or one that can be read.
func FuzzTar(f *testing.F) {
	oci := "0 oci-layout " + layoutFile + "\n0 index.json " + `{"manifests":[{"mediaType":"a/b","digest":"` + digest.FromString("x").String() + `","size":1}]}` + "\n"
	docker := "0 c " + configOf("x") + "\n1 l a\n0 a x\n2 2/l ../l\n" + `0 manifest.json [{"Config":"c","Layers":["2/l"]}]`
	for pack := range byte(3) {
		f.Add(oci+"0 blobs/sha256/"+hexOf("x")+" x\n", uint16(0), byte(0), pack)
		f.Add(docker, uint16(600), byte(1), pack)
	}
	f.Fuzz(func(t *testing.T, lines string, at uint16, flip, pack byte) {
		text := fuzzTar(lines, at, flip)
		switch pack % 3 {
		case 1:
			text = []byte(gzipOf(string(text)))
		case 2:
			text = []byte(zstdOf(string(text)))
		}
		path := fuzzFile(t, text)
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
	})
}

// Whatever is in the index.json of an archive and in a manifest: it can be written to, or
// stays as it is.
func FuzzRewrite(f *testing.F) {
	manifest := `{"layers":[{"mediaType":"a/b","digest":"` + digest.FromString("layer").String() + `","size":5}]}`
	entry := `{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"` + digest.FromString(manifest).String() + `","size":99,"annotations":{"org.opencontainers.image.ref.name":"v1"}}`
	f.Add(`{"manifests":[`+entry+`]}`, manifest, "v1")
	f.Add(`{"schemaVersion":2,"manifests":[`+entry+`,`+entry+`]}`, manifest, "v2")
	f.Add(`{"manifests":null}`, `{"manifests":[`+entry+`]}`, "")
	f.Fuzz(func(t *testing.T, index, manifest, ref string) {
		text := tarOf(t, tarFile{name: "oci-layout", body: layoutFile}, tarFile{name: "index.json", body: index},
			tarFile{name: "blobs/sha256/" + hexOf("layer"), body: "layer"}, tarFile{name: "blobs/sha256/" + hexOf(manifest), body: manifest})
		path := fuzzFile(t, text)
		a := open(t, path)
		old, oldErr := a.Resolve(t.Context(), "v1")
		desc := must(a.Put(t.Context(), ocispec.Descriptor{MediaType: "a/b"}, strings.NewReader("new")))
		if err := a.Tag(t.Context(), ref, desc); err != nil {
			if now, _ := os.ReadFile(path); !bytes.Equal(now, text) {
				t.Error("it was changed, and not named")
			}
			return
		}
		b := open(t, path)
		if got, err := b.Resolve(t.Context(), ref); !strings.HasPrefix(ref, "@") && (err != nil || got.Digest != desc.Digest) {
			t.Errorf("%q is %v, %v", ref, got.Digest, err)
		}
		if got, err := b.Resolve(t.Context(), "v1"); oldErr == nil && ref == "v2" && (err != nil || got.Digest != old.Digest) {
			t.Errorf("v1 was %s and is %s, %v", old.Digest, got.Digest, err)
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
	})
}
