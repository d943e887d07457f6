package archive_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
	"imgcrypt/store"
	"imgcrypt/store/archive"
)

// newPair returns a recipient and its identity.
func newPair(t testing.TB) (keys.Recipient, keys.Identity) {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	scheme := jwe.Scheme()
	r, err := scheme.Recipients(t.Context(), keys.Parameters{keys.ParamPublicKeys: {must(x509.MarshalPKIXPublicKey(&key.PublicKey))}})
	if err != nil {
		t.Fatal(err)
	}
	id, err := scheme.Identity(keys.Key{Label: "test.key", Data: must(x509.MarshalPKCS8PrivateKey(key))})
	if err != nil {
		t.Fatal(err)
	}
	return r[0], id
}

// writeArchive writes images of several names into one archive, with a file that does not
// belong there, and returns its path.
func writeArchive(t testing.TB, specs map[string]testimage.Spec) string {
	t.Helper()
	dir := t.TempDir()
	for name, spec := range specs {
		must(spec.Write(dir, name))
	}
	if err := os.WriteFile(filepath.Join(dir, "manifest.json"), []byte(`[]`), 0o644); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "a.tar")
	if err := testimage.ArchiveFile(path, dir); err != nil {
		t.Fatal(err)
	}
	return path
}

// An image is encrypted where it is: the archive has no plain layer of it any more, and
// the other images are what they were.
func TestEncryptInPlace(t *testing.T) {
	t.Parallel()
	shared := testimage.Layer{Files: []testimage.File{{Name: "shared", Body: []byte("shared")}}}
	path := writeArchive(t, map[string]testimage.Spec{
		"v1":    {Salt: "v1", Layers: testimage.Layers(3, testimage.Gzip), Platforms: []string{"linux/amd64", "linux/arm64"}},
		"other": {Salt: "other", Layers: []testimage.Layer{shared, {RandomSize: 2 << 20}}},
	})
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	r, id := newPair(t)
	a := open(t, path)
	plain, other := must(a.Resolve(ctx, "v1")), must(a.Resolve(ctx, "other"))
	secret := slices.DeleteFunc(checkAll(t, a, plain), func(d ocispec.Descriptor) bool { return !strings.Contains(d.MediaType, "layer") })
	sealed, err := imgcrypt.Encrypt(ctx, a, plain, imgcrypt.EncryptOptions{Recipients: []keys.Recipient{r}})
	if err != nil {
		t.Fatal(err)
	}
	before := files(t, path)
	for _, temp := range leftovers(t, path) {
		if info := must(os.Stat(filepath.Join(filepath.Dir(path), temp))); info.Mode().Perm() != 0o600 {
			t.Errorf("the mode of the new archive is %v", info.Mode())
		}
	}
	if err := a.Tag(ctx, "v1", sealed.Desc); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*archive.OCI{a, open(t, path)} {
		if got := must(s.Resolve(ctx, "v1")); got.Digest != sealed.Desc.Digest {
			t.Errorf("v1 is %s", got.Digest)
		}
		checkAll(t, s, sealed.Desc)
		checkAll(t, s, must(s.Resolve(ctx, "other")))
		for _, desc := range append(secret, plain) {
			if r, err := s.Open(ctx, desc); !errors.Is(err, imgcrypt.ErrNotFound) {
				t.Errorf("%s is still there: %v", desc.Digest, err)
				r.Close()
			}
		}
	}
	after := files(t, path)
	if before["manifest.json"] == "" || after["manifest.json"] != "" {
		t.Errorf("manifest.json is %q", after["manifest.json"])
	}
	if info := must(os.Stat(path)); info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v", info.Mode())
	}
	// And back, into another archive; the source and the destination are two stores.
	elsewhere := create(t, filepath.Join(t.TempDir(), "b.tar"))
	transfer := store.NewTransfer(open(t, path), elsewhere, store.TransferOptions{})
	back, err := imgcrypt.Decrypt(ctx, transfer, sealed.Desc, imgcrypt.DecryptOptions{Identities: []keys.Identity{id}})
	if err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.Tag(ctx, "back", back.Desc); err != nil || back.Desc.Digest != plain.Digest {
		t.Errorf("%s, %v", back.Desc.Digest, err)
	}
	checkAll(t, elsewhere, plain)
	if _, err := elsewhere.Resolve(ctx, "other"); !errors.Is(err, imgcrypt.ErrNotFound) || other.Digest == "" {
		t.Error(err)
	}
}

// The source and the destination are the same file, opened twice.
func TestSameFileTwice(t *testing.T) {
	t.Parallel()
	path := writeArchive(t, map[string]testimage.Spec{"v1": {}, "v2": {Salt: "v2"}})
	src, dst := open(t, path), create(t, path)
	first, second := must(src.Resolve(t.Context(), "v1")), must(src.Resolve(t.Context(), "v2"))
	for _, name := range []string{"v3", "v2", "v3"} {
		copyImage(t, src, "v1", dst, name)
	}
	again := open(t, path)
	for _, name := range []string{"v1", "v2", "v3"} {
		if got := must(again.Resolve(t.Context(), name)); got.Digest != first.Digest {
			t.Errorf("%s is %s", name, got.Digest)
		}
	}
	checkAll(t, again, first)
	checkAll(t, src, second)
	if left := leftovers(t, path); len(left) > 0 {
		t.Error("left behind", left)
	}
}

// Many write to the same archive at the same time: nobody's image is lost.
func TestTagByMany(t *testing.T) {
	t.Parallel()
	for _, exists := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "a.tar")
		if exists {
			path = writeArchive(t, map[string]testimage.Spec{"old": {}})
		}
		var wg sync.WaitGroup
		for i := range 8 {
			l, _ := writeLayout(t, testimage.Spec{Salt: fmt.Sprint(i)}, "v")
			a := create(t, path)
			wg.Go(func() { copyImage(t, l, "v", a, fmt.Sprintf("v%d", i)) })
		}
		wg.Wait()
		a := open(t, path)
		for i := range 8 {
			checkAll(t, a, must(a.Resolve(t.Context(), fmt.Sprintf("v%d", i))))
		}
		if exists {
			checkAll(t, a, must(a.Resolve(t.Context(), "old")))
		}
		for _, a := range []string{path} {
			if left := leftovers(t, a); len(left) > 0 {
				t.Error("left behind", left)
			}
		}
	}
}

// An archive that lacks what nobody fetched stays as it is; one that is damaged is not
// made worse.
func TestPartial(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	index := must(testimage.Spec{Platforms: []string{"linux/amd64", "linux/arm64"}}.Write(dir, "index"))
	must(testimage.Spec{Salt: "single"}.Write(dir, "single"))
	var list ocispec.Index
	if err := json.Unmarshal(must(testimage.Blob(dir, index)), &list); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "blobs/sha256", list.Manifests[1].Digest.Encoded())); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "a.tar")
	if err := testimage.ArchiveFile(path, dir); err != nil {
		t.Fatal(err)
	}
	a := open(t, path)
	if err := a.Tag(t.Context(), "again", must(a.Resolve(t.Context(), "single"))); err != nil {
		t.Fatal(err)
	}
	checkAll(t, a, list.Manifests[0])
	a.Close()

	manifest := filepath.Join(dir, "blobs/sha256", list.Manifests[0].Digest.Encoded())
	if err := os.WriteFile(manifest, append(must(os.ReadFile(manifest)), ' '), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := testimage.ArchiveFile(path, dir); err != nil {
		t.Fatal(err)
	}
	a = open(t, path)
	before := must(os.ReadFile(path))
	if err := a.Tag(t.Context(), "again", must(a.Resolve(t.Context(), "single"))); !errors.Is(err, imgcrypt.ErrMismatch) {
		t.Error(err)
	}
	a.Close()
	if !bytes.Equal(before, must(os.ReadFile(path))) {
		t.Error("it was changed")
	}
	if left := leftovers(t, path); len(left) > 0 {
		t.Error("left behind", left)
	}
}

// Until there is a name nothing is changed, and nothing is left of what was put.
func TestWithoutName(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.tar")
	a := create(t, path)
	must(a.Put(t.Context(), ocispec.Descriptor{MediaType: "a/b"}, strings.NewReader("data")))
	a.Close()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if left := leftovers(t, path); len(left) > 0 {
		t.Error("left behind", left)
	}
	// An empty file may be one that mktemp made.
	if err := os.WriteFile(path, nil, 0o640); err != nil {
		t.Fatal(err)
	}
	a = create(t, path)
	desc := must(a.Put(t.Context(), ocispec.Descriptor{MediaType: "a/b"}, strings.NewReader("data")))
	if err := a.Tag(t.Context(), "v1", desc); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"blobs/sha256/" + desc.Digest.Encoded(), "index.json", "oci-layout"}, names(files(t, path))); diff != "" {
		t.Error(diff)
	}
	if info := must(os.Stat(path)); info.Mode().Perm() != 0o640 {
		t.Errorf("its mode is %v", info.Mode())
	}
}

// A name for what is not there is refused.
func TestTagMissing(t *testing.T) {
	t.Parallel()
	path := writeArchive(t, map[string]testimage.Spec{"v1": {}})
	a := open(t, path)
	missing := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("missing"), Size: 7}
	if err := a.Tag(t.Context(), "v2", missing); !errors.Is(err, imgcrypt.ErrNotFound) {
		t.Error(err)
	}
	if name := must(a.Name(t.Context(), "")); name != "v1" {
		t.Errorf("it is called %q", name)
	}
}

// A link to an archive stays one.
func TestLinkToArchive(t *testing.T) {
	t.Parallel()
	path := writeArchive(t, map[string]testimage.Spec{"v1": {}})
	link := filepath.Join(t.TempDir(), "link.tar")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	a := open(t, link)
	if err := a.Tag(t.Context(), "v2", must(a.Resolve(t.Context(), "v1"))); err != nil {
		t.Fatal(err)
	}
	if info := must(os.Lstat(link)); info.Mode().Type() != fs.ModeSymlink {
		t.Error("it is no link any more")
	}
	must(open(t, path).Resolve(t.Context(), "v2"))
}

// Blobs that are put for images without a name yet survive the naming of others.
func TestPutBeforeOthersAreNamed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.tar")
	a := create(t, path)
	ctx := t.Context()
	first := must(a.Put(ctx, ocispec.Descriptor{MediaType: "a/b"}, strings.NewReader("first")))
	second := must(a.Put(ctx, ocispec.Descriptor{MediaType: "a/b"}, strings.NewReader("second")))
	for _, name := range []string{"v1", "v2", "v3"} {
		if err := a.Tag(ctx, name, first); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Tag(ctx, "late", second); err != nil {
		t.Fatal(err)
	}
	r := must(open(t, path).Open(ctx, second))
	defer r.Close()
	if got := must(io.ReadAll(r)); string(got) != "second" {
		t.Errorf("%q", got)
	}
}
