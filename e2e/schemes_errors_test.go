package e2e

import (
	"encoding/base64"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testkeys"
	"imgcrypt/internal/testnode"
	"imgcrypt/layer"
)

// forgeKeys changes the packets of all layers of an image that is a single manifest, and names the result.
func (l ociLayout) forgeKeys(t testing.TB, image ocispec.Descriptor, name string, change func(annotations map[string]string)) {
	t.Helper()
	var m ocispec.Manifest
	unmarshal(t, l.blob(t, image), &m)
	for i := range m.Layers {
		m.Layers[i].Annotations = maps.Clone(m.Layers[i].Annotations)
		change(m.Layers[i].Annotations)
	}
	if err := testimage.Tag(string(l), name, l.put(t, m.MediaType, marshal(t, m))); err != nil {
		t.Fatal(err)
	}
}

// importLayout imports all images of a layout.
func (n *node) importLayout(t testing.TB, l ociLayout) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "images.tar")
	if err := testimage.ArchiveFile(file, string(l)); err != nil {
		t.Fatal(err)
	}
	n.Ctr("images", "import", "--no-unpack", file).OK(t)
}

// malformed are packets that nobody can open, made of a good one.
func malformed(good []byte) map[string]string {
	flipped := slices.Clone(good)
	flipped[len(flipped)/2] ^= 1
	all := map[string]string{"not base64": "%%%", "empty": ""}
	for name, packet := range map[string][]byte{
		"garbage": []byte("garbage"), "half": good[:len(good)/2], "flipped": flipped, "twice": slices.Concat(good, good),
		"json": []byte("{}"), "zeros": make([]byte, 300),
	} {
		all[name] = base64.StdEncoding.EncodeToString(packet)
	}
	return all
}

// A malformed packet among good ones does not stop these from opening the image, whatever is wrong with it and wherever it
// is; alone, it is an error that says more than that the key is not the right one.
func TestMalformedPackets(t *testing.T) {
	t.Parallel()
	user := testkeys.NewUser(t)
	all := user.All(t)
	n := startNode(t, testnode.Config{}).with(user.Env())
	l, plain := threeLayers(t)
	annotation := func(h testkeys.Holder) string { return layer.KeysAnnotationPrefix + packetName(h) }
	var cases []struct {
		name string
		by   testkeys.Holder
	}
	for _, h := range all {
		enc := l.encryptFor(t, user, plain, "enc", h)
		for _, others := range []bool{false, true} {
			name := fmt.Sprintf("example.test/%s:%t", h.Scheme, others)
			cases = append(cases, struct {
				name string
				by   testkeys.Holder
			}{name, h})
			l.forgeKeys(t, enc, name, func(annotations map[string]string) {
				own := annotations[annotation(h)]
				good, err := base64.StdEncoding.DecodeString(own)
				if err != nil {
					t.Fatal(err)
				}
				bad := strings.Join(slices.Sorted(maps.Values(malformed(good))), ",")
				if !others {
					annotations[annotation(h)] = bad + "," + own + "," + bad
					return
				}
				for _, other := range all {
					if other.Scheme != h.Scheme {
						annotations[annotation(other)] = bad
					}
				}
				annotations[layer.KeysAnnotationPrefix+"provider.nobody"] = bad
				annotations[layer.KeysAnnotationPrefix+"unknown"] = bad
			})
		}
	}
	n.importLayout(t, l)
	for _, c := range cases {
		n.opens(t, c.name, plain.Digest.String(), c.by)
		// By keys of all schemes, of which only one does.
		n.opens(t, c.name, plain.Digest.String(), all...)
	}
	n.leavesNothing(t)
}
