package imgcrypt_test

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
	"imgcrypt/layer"
)

func encrypt(t *testing.T, s imgcrypt.Store, root ocispec.Descriptor, o imgcrypt.EncryptOptions) imgcrypt.Result {
	t.Helper()
	r, err := imgcrypt.Encrypt(context.Background(), s, root, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func decrypt(t *testing.T, s imgcrypt.Store, root ocispec.Descriptor, o imgcrypt.DecryptOptions) imgcrypt.Result {
	t.Helper()
	r, err := imgcrypt.Decrypt(context.Background(), s, root, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// notices collects what Encrypt and Decrypt tell.
type notices []imgcrypt.Notice

func (n *notices) add(x imgcrypt.Notice) { *n = append(*n, x) }

func (n *notices) count(kind imgcrypt.NoticeKind) int {
	c := 0
	for _, x := range *n {
		if x.Kind == kind {
			c++
		}
	}
	return c
}

// writeKind writes one of testimage's kinds of images into a new layout.
func writeKind(t *testing.T, spec testimage.Spec) (*layoutStore, ocispec.Descriptor) {
	t.Helper()
	dir := t.TempDir()
	root, err := spec.Write(dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	return newStore(dir), root
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for _, kind := range testimage.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			t.Parallel()
			s, root := writeKind(t, kind.Spec)
			me := newPair(t)
			var told notices
			enc := encrypt(t, s, root, imgcrypt.EncryptOptions{Recipients: []keys.Recipient{me.recipient}, Notify: told.add})
			if enc.Layers == 0 || enc.Desc.Digest == root.Digest {
				t.Fatalf("nothing was encrypted: %+v", enc)
			}
			checkSealed(t, s, root, enc.Desc)
			dec := decrypt(t, s, enc.Desc, imgcrypt.DecryptOptions{Identities: []keys.Identity{me.identity}, Notify: told.add})
			if kind.Spec.Format == testimage.Escaped {
				// An escaped digest cannot be restored without telling what it was.
				if told.count(imgcrypt.NoticeInexact) < 2 {
					t.Error("neither encryption nor decryption said that the digest will be another")
				}
				return
			}
			if told.count(imgcrypt.NoticeInexact) != 0 {
				t.Errorf("said to be inexact: %v", told)
			}
			if dec.Desc.Digest != root.Digest || dec.Desc.Size != root.Size || dec.Desc.MediaType != root.MediaType {
				t.Errorf("decrypted to %+v, want %+v\n%s", dec.Desc, root, text(t, s, dec.Desc))
			}
		})
	}
}

// checkSealed fails where an image still has what encryption hides, is Docker's in a
// part, or points to a plain layer.
func checkSealed(t *testing.T, s *layoutStore, plain, sealed ocispec.Descriptor) {
	t.Helper()
	before := make(map[digest.Digest]bool)
	each(t, s, plain, func(m ocispec.Manifest, _ string) {
		for _, l := range m.Layers {
			before[l.Digest] = len(l.URLs) == 0
		}
	})
	each(t, s, sealed, func(m ocispec.Manifest, text string) {
		if strings.Contains(text, "vnd.docker.distribution") || strings.Contains(text, "vnd.docker.image") || strings.Contains(text, "vnd.docker.container") {
			t.Errorf("a Docker media type is left: %s", text)
		}
		for _, l := range m.Layers {
			if len(l.URLs) > 0 {
				continue
			}
			if before[l.Digest] || strings.Contains(text, "sha256:"+l.Digest.Encoded()) && !layer.IsEncrypted(l.MediaType) {
				t.Errorf("layer %s (%s) is plain", l.Digest, l.MediaType)
			}
			if l.Data != nil {
				t.Errorf("layer %s carries data", l.Digest)
			}
		}
	})
}

// each calls f for every manifest of an image that is no attestation.
func each(t *testing.T, s *layoutStore, desc ocispec.Descriptor, f func(m ocispec.Manifest, text string)) {
	t.Helper()
	body := text(t, s, desc)
	var index ocispec.Index
	if err := json.Unmarshal(body, &index); err != nil {
		t.Fatal(err)
	}
	for _, entry := range index.Manifests {
		if entry.Annotations["vnd.docker.reference.type"] == "" {
			each(t, s, entry, f)
			continue
		}
		about := entry.Annotations["vnd.docker.reference.digest"]
		if !bytes.Contains(body, []byte(`"digest":"`+about)) && !bytes.Contains(body, []byte(about)) {
			t.Errorf("attestation is about %s, which is not in the index", about)
		}
	}
	if index.Manifests == nil {
		var m ocispec.Manifest
		if err := json.Unmarshal(body, &m); err != nil {
			t.Fatal(err)
		}
		f(m, string(body))
	}
}

func text(t *testing.T, s *layoutStore, desc ocispec.Descriptor) []byte {
	t.Helper()
	data, err := s.get(desc)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
