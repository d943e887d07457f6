package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testregistry"
)

// kinds are the places that keep a manifest as it is, by what makes a new one.
var kinds = map[string]func(t *testing.T) string{
	"registry":    func(t *testing.T) string { return testregistry.Start(t).Ref("app") },
	"oci":         func(t *testing.T) string { return "oci:" + filepath.Join(t.TempDir(), "new", "layout") },
	"oci-archive": func(t *testing.T) string { return "oci-archive:" + filepath.Join(t.TempDir(), "image.tar") },
}

// layoutOf writes an image into a layout and returns its place and digest.
func layoutOf(t *testing.T, spec testimage.Spec) (image, digest string) {
	t.Helper()
	dir := t.TempDir()
	desc, err := spec.Write(dir, "plain")
	if err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir + ":plain", desc.Digest.String()
}

// From each place to each other one, encrypted, verified and decrypted to the same digest.
func TestPlaces(t *testing.T) {
	t.Parallel()
	private, public := keyPair(t)
	for image, spec := range map[string]testimage.Spec{
		"index":    whole,
		"manifest": {Layers: []testimage.Layer{{Compression: testimage.Zstd}, {Compression: testimage.None}}},
		"Docker":   {Docker: true, Platforms: []string{"linux/amd64", "linux/arm64"}},
	} {
		source, plain := layoutOf(t, spec)
		for from, newFrom := range kinds {
			for to, newTo := range kinds {
				t.Run(image+"/"+from+"/"+to, func(t *testing.T) {
					t.Parallel()
					a, b, c := newFrom(t)+":v1", newTo(t)+":v2", newFrom(t)+":v3"
					ok(t, "encrypt", "-q", "-r", "jwe:"+public, source, a)
					ok(t, "recipients", "add", "-q", "-r", "jwe:"+public, "-k", private, a, b)
					ok(t, "verify", "-q", "-k", private, b)
					if back := ok(t, "decrypt", "-q", "-k", private, b, c); digestOf(back) != plain {
						t.Errorf("decrypted to %s, want %s", back, plain)
					}
					ok(t, "verify", "-q", c)
					// In place, by a name and by none.
					sealed := ok(t, "encrypt", "-q", "-r", "jwe:"+public, c)
					if strings.HasPrefix(from, "oci") {
						c = strings.TrimSuffix(c, ":v3")
					}
					if back := ok(t, "decrypt", "-q", "--in-place", "-k", private, c); digestOf(back) != plain || back == sealed {
						t.Errorf("decrypted to %s, want %s", back, plain)
					}
				})
			}
		}
	}
}

// What docker save writes is encrypted, and what docker load reads decrypted.
func TestDockerArchive(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "skopeo")
	private, public := keyPair(t)
	source, _ := layoutOf(t, testimage.Spec{Layers: testimage.Layers(2, testimage.Gzip)})
	dir := t.TempDir()
	saved, sealed, back := "docker-archive:"+filepath.Join(dir, "saved.tar"), "oci:"+filepath.Join(dir, "sealed")+":v1", "docker-archive:"+filepath.Join(dir, "back.tar")
	skopeo(t, "copy", source, saved+":example.test/app:v1")
	ok(t, "encrypt", "-q", "-r", "jwe:"+public, saved, sealed)
	ok(t, "verify", "-q", "--require-encrypted", "-k", private, sealed)
	ok(t, "decrypt", "-q", "-k", private, sealed, back+":example.test/app:v1")
	if a, b := skopeo(t, "inspect", "--config", saved), skopeo(t, "inspect", "--config", back); a != b {
		t.Errorf("the config became %s, was %s", b, a)
	}
	fails(t, exitFailure, "docker-archive", "encrypt", "-q", "-r", "jwe:"+public, sealed, back)
}

func skopeo(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("skopeo", append([]string{"--insecure-policy"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
