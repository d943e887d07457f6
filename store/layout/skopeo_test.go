package layout_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/store"
	"imgcrypt/store/layout"
)

// run runs a command and returns its standard output.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("%s %q: %v\n%s", name, args, err, exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func skopeo(t testing.TB, args ...string) string {
	t.Helper()
	return run(t, "skopeo", append([]string{"--insecure-policy"}, args...)...)
}

// copyImage copies an image with all that belongs to it, and names it.
func copyImage(t testing.TB, src *layout.Store, ref string, dst *layout.Store, name string) ocispec.Descriptor {
	t.Helper()
	ctx := context.Background()
	desc, err := src.Resolve(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.NewTransfer(src, dst, store.TransferOptions{Jobs: 3}).Copy(ctx, desc); err != nil {
		t.Fatal(err)
	}
	if err := dst.Tag(ctx, name, desc); err != nil {
		t.Fatal(err)
	}
	return desc
}

// readAll reads all blobs of an image, as far as they are there, and returns their
// digests.
func readAll(t testing.TB, s imgcrypt.Store, desc ocispec.Descriptor) (all []digest.Digest) {
	t.Helper()
	text, err := read(s, desc)
	if err != nil {
		t.Error(err)
		return nil
	}
	all = append(all, desc.Digest)
	if imgcrypt.IsManifest(desc) {
		for _, ref := range must(imgcrypt.References(desc, text)) {
			all = append(all, readAll(t, s, ref)...)
		}
	}
	return all
}

func read(s imgcrypt.Store, desc ocispec.Descriptor) ([]byte, error) {
	r, err := s.Open(context.Background(), desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// Images of all kinds go from skopeo's layout through ours into skopeo's again, and
// stay what they were.
func TestSkopeo(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "skopeo")
	mixed := []testimage.Layer{{Compression: testimage.Gzip}, {Compression: testimage.Zstd}, {Compression: testimage.None}}
	for name, spec := range map[string]testimage.Spec{
		"single": {Layers: mixed},
		"index":  {Platforms: []string{"linux/amd64", "linux/arm64"}, Layers: mixed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tmp := t.TempDir()
			want := must(spec.Write(tmp+"/made", "v0"))
			skopeo(t, "copy", "--preserve-digests", "--all", "oci:"+tmp+"/made:v0", "oci:"+tmp+"/theirs:v1")
			ours := create(t, tmp+"/new/dir/ours")
			got := copyImage(t, open(t, tmp+"/theirs"), "v1", ours, "example.test/app:v2")
			if got.Digest != want.Digest {
				t.Errorf("it is %s, want %s", got.Digest, want.Digest)
			}
			skopeo(t, "copy", "--preserve-digests", "--all", "oci:"+tmp+"/new/dir/ours:example.test/app:v2", "oci:"+tmp+"/back:v3")
			back := open(t, tmp+"/back")
			if got := must(back.Resolve(t.Context(), "v3")); got.Digest != want.Digest {
				t.Errorf("it is %s, want %s", got.Digest, want.Digest)
			}
			readAll(t, back, want)
			// Skopeo writes into our layout, and finds ours beside its image.
			skopeo(t, "copy", "--preserve-digests", "--all", "oci:"+tmp+"/made:v0", "oci:"+tmp+"/new/dir/ours:v4")
			for _, ref := range []string{"v4", "example.test/app:v2"} {
				if got := must(ours.Resolve(t.Context(), ref)); got.Digest != want.Digest {
					t.Errorf("%s is %s, want %s", ref, got.Digest, want.Digest)
				}
				skopeo(t, "inspect", "--raw", "oci:"+tmp+"/new/dir/ours:"+ref)
			}
			if left := leftovers(t, tmp+"/new/dir/ours"); len(left) > 0 {
				t.Error("left behind", left)
			}
		})
	}
}

// An image without a name is what skopeo makes of oci:DIR, and reads there.
func TestSkopeoWithoutName(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "skopeo")
	tmp := t.TempDir()
	want := must(testimage.Spec{}.Write(tmp+"/made", "v0"))
	skopeo(t, "copy", "oci:"+tmp+"/made:v0", "oci:"+tmp+"/theirs")
	ours := create(t, tmp+"/ours")
	if got := copyImage(t, open(t, tmp+"/theirs"), "", ours, ""); got.Digest != want.Digest {
		t.Errorf("it is %s, want %s", got.Digest, want.Digest)
	}
	raw := skopeo(t, "inspect", "--raw", "oci:"+tmp+"/ours")
	if digest.FromString(raw) != want.Digest {
		t.Error("skopeo sees another image")
	}
}

// umoci changes an image in our layout, and collects garbage.
func TestUmoci(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "umoci")
	tmp := t.TempDir()
	must(testimage.Spec{}.Write(tmp+"/made", "v0"))
	ours := create(t, tmp+"/ours")
	first := copyImage(t, open(t, tmp+"/made"), "v0", ours, "v1")
	run(t, "umoci", "config", "--image", tmp+"/ours:v1", "--tag", "v2", "--config.user", "nobody")
	run(t, "umoci", "gc", "--layout", tmp+"/ours")
	if got := must(ours.Resolve(t.Context(), "v1")); got.Digest != first.Digest {
		t.Errorf("v1 is %s, want %s", got.Digest, first.Digest)
	}
	second := must(ours.Resolve(t.Context(), "v2"))
	readAll(t, ours, first)
	readAll(t, ours, second)
	if err := ours.Tag(t.Context(), "v3", second); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"v1", "v2", "v3"}, strings.Fields(run(t, "umoci", "ls", "--layout", tmp+"/ours"))); diff != "" {
		t.Error(diff)
	}
	if left := leftovers(t, tmp+"/ours"); len(left) > 0 {
		t.Error("left behind", left)
	}
	var index ocispec.Index
	if err := json.Unmarshal([]byte(readFile(t, filepath.Join(tmp, "ours", "index.json"))), &index); err != nil || len(index.Manifests) != 3 {
		t.Error(index, err)
	}
}
