package testregistry_test

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testregistry"
)

func registries() map[string]func(testing.TB) *testregistry.Registry {
	return map[string]func(testing.TB) *testregistry.Registry{
		"in process": testregistry.Start,
		"Debian":     testregistry.StartDebian,
	}
}

// Every kind of image is in the registry as it was in the layout.
func TestPush(t *testing.T) {
	t.Parallel()
	for name, start := range registries() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t)
			for i, k := range testimage.Kinds() {
				dir := t.TempDir()
				desc, err := k.Spec.Write(dir, "v1")
				if err != nil {
					t.Fatal(err)
				}
				image := "app/" + string(rune('a'+i%26)) + ":v1"
				if ref := r.Push(t, dir, image); ref != r.Host()+"/"+image {
					t.Errorf("pushed as %q", ref)
				}
				want, err := testimage.Blob(dir, desc)
				if err != nil {
					t.Fatal(err)
				}
				got, mediaType := r.Manifest(t, image)
				if !bytes.Equal(got, want) || mediaType != desc.MediaType {
					t.Errorf("%s: got %s: %s\nwant %s: %s", k.Name, mediaType, got, desc.MediaType, want)
				}
			}
		})
	}
}

// What is there is not sent a second time.
func TestRequests(t *testing.T) {
	t.Parallel()
	r := testregistry.Start(t)
	dir := t.TempDir()
	if _, err := (testimage.Spec{}).Write(dir, "v1"); err != nil {
		t.Fatal(err)
	}
	r.Push(t, dir, "app:v1")
	if got := r.Requests(); !slices.Contains(got, "POST /v2/app/blobs/uploads/") || !slices.Contains(got, "PUT /v2/app/manifests/v1") {
		t.Errorf("requests %q", got)
	}
	r.Forget()
	r.Push(t, dir, "app:v2")
	for _, req := range r.Requests() {
		if !strings.HasPrefix(req, "HEAD ") && req != "PUT /v2/app/manifests/v2" {
			t.Errorf("second push: %s", req)
		}
	}
}

func TestStartWith(t *testing.T) {
	t.Parallel()
	r := testregistry.StartWith(t, func(http.Handler) http.Handler { return http.NotFoundHandler() })
	resp, err := http.Get("http://" + r.Host() + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("status %s", resp.Status)
	}
}

// Debian's registry with TLS and a password is pushed to as well, and lets nobody else in.
func TestDebianOptions(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "skopeo")
	ca := testregistry.NewAuthority(t)
	r := testregistry.StartDebianWith(t, testregistry.DebianOptions{TLS: ca, User: "user", Password: "secret"})
	dir := t.TempDir()
	if _, err := (testimage.Spec{}).Write(dir, "v1"); err != nil {
		t.Fatal(err)
	}
	ref := r.Push(t, dir, "app:v1")
	r.Manifest(t, "app:v1")
	if left := r.Uploads(t); len(left) > 0 {
		t.Errorf("uploads %q", left)
	}
	inspect := []string{"inspect", "--raw", "--cert-dir=" + filepath.Dir(ca.File)}
	if output, err := exec.Command("skopeo", append(inspect, "--creds=user:secret", "docker://"+ref)...).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, output)
	}
	if output, err := exec.Command("skopeo", append(inspect, "--creds=user:wrong", "docker://"+ref)...).CombinedOutput(); err == nil {
		t.Errorf("with a wrong password: %s", output)
	}
}

// Skopeo pulls from both.
func TestSkopeoPulls(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "skopeo")
	for name, start := range registries() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t)
			for _, docker := range []bool{false, true} {
				dir := t.TempDir()
				desc, err := testimage.Spec{Docker: docker, Platforms: []string{"linux/amd64", "linux/arm64"}}.Write(dir, "v1")
				if err != nil {
					t.Fatal(err)
				}
				ref := r.Push(t, dir, "app:v1")
				out := filepath.Join(t.TempDir(), "out")
				cmd := exec.Command("skopeo", "--insecure-policy", "copy", "--all", "--src-tls-verify=false", "docker://"+ref, "dir:"+out)
				if output, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, output)
				}
				got, err := os.ReadFile(filepath.Join(out, "manifest.json"))
				if err != nil {
					t.Fatal(err)
				}
				if digest.FromBytes(got) != desc.Digest {
					t.Errorf("docker %v: pulled %s, want %s", docker, got, desc.Digest)
				}
			}
		})
	}
}
