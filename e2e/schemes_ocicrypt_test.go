package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/containers/ocicrypt"
	encconfig "github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/helpers"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testkeys"
)

// ocicrypt reads the configuration of key providers once, when the program that it is part of starts. So it runs in
// processes of their own: this test's program, started once more.

// ocicryptEnv marks such a process.
const ocicryptEnv = "IMGCRYPT_E2E_OCICRYPT"

// ocicryptJob is what such a process gets on its standard input. It writes the new manifest's descriptor to its
// standard output.
type ocicryptJob struct {
	Layout string
	Image  ocispec.Descriptor
	// Recipients and Keys are what ocicrypt's users write. With recipients the image is encrypted for them too,
	// without it is decrypted.
	Recipients, Keys []string

	env []string // more variables
}

func isOcicrypt() bool { return os.Getenv(ocicryptEnv) != "" }

func ocicryptMain() int {
	var job ocicryptJob
	err := json.NewDecoder(os.Stdin).Decode(&job)
	if err == nil {
		var desc ocispec.Descriptor
		if desc, err = job.run(); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(desc)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// run rewrites the layers of an image that is a single manifest.
func (j ocicryptJob) run() (ocispec.Descriptor, error) {
	var m ocispec.Manifest
	data, err := testimage.Blob(j.Layout, j.Image)
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	cc, err := helpers.CreateCryptoConfig(j.Recipients, j.Keys)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	work := func(d ocispec.Descriptor) (ocispec.Descriptor, error) { return j.encrypt(cc.EncryptConfig, d) }
	if len(j.Recipients) == 0 {
		work = func(d ocispec.Descriptor) (ocispec.Descriptor, error) { return j.decrypt(cc.DecryptConfig, d) }
	}
	for i, d := range m.Layers {
		if m.Layers[i], err = work(d); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	if data, err = json.Marshal(m); err != nil {
		return ocispec.Descriptor{}, err
	}
	return testimage.PutBlob(j.Layout, m.MediaType, data)
}

func (j ocicryptJob) encrypt(config *encconfig.EncryptConfig, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	data, err := testimage.Blob(j.Layout, desc)
	if err != nil {
		return desc, err
	}
	r, finish, err := ocicrypt.EncryptLayer(config, bytes.NewReader(data), desc)
	if err != nil {
		return desc, err
	}
	if r != nil {
		if data, err = io.ReadAll(r); err == nil {
			desc, err = testimage.PutBlob(j.Layout, desc.MediaType+"+encrypted", data)
		}
		if err != nil {
			return desc, err
		}
	}
	desc.Annotations, err = finish()
	return desc, err
}

func (j ocicryptJob) decrypt(config *encconfig.DecryptConfig, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	data, err := testimage.Blob(j.Layout, desc)
	if err != nil {
		return desc, err
	}
	r, _, err := ocicrypt.DecryptLayer(config, bytes.NewReader(data), desc, false)
	if err != nil {
		return desc, err
	}
	if data, err = io.ReadAll(r); err != nil {
		return desc, err
	}
	return testimage.PutBlob(j.Layout, strings.TrimSuffix(desc.MediaType, "+encrypted"), data)
}

// ocicrypt runs a job for a user.
func (j ocicryptJob) do(user *testkeys.User) (ocispec.Descriptor, error) {
	var desc ocispec.Descriptor
	exe, err := os.Executable()
	if err != nil {
		return desc, err
	}
	input, err := json.Marshal(j)
	if err != nil {
		return desc, err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(exe)
	cmd.Env = append(personless(), slices.Concat(user.Env(), j.env, []string{ocicryptEnv + "=1"})...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return desc, fmt.Errorf("ocicrypt: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return desc, json.Unmarshal(stdout.Bytes(), &desc)
}

// personless is this process's environment without what belongs to whoever runs the tests.
func personless() []string { return []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()} }

// ocicryptFor has ocicrypt encrypt an image for holders; or, if it is encrypted, add them by the keys of another one.
func (l ociLayout) ocicryptFor(user *testkeys.User, image ocispec.Descriptor, keys []string, to ...testkeys.Holder) (ocispec.Descriptor, error) {
	job := ocicryptJob{Layout: string(l), Image: image, Keys: keys}
	for _, h := range to {
		job.Recipients = append(job.Recipients, h.Recipient)
	}
	return job.do(user)
}

// ocicryptBy has ocicrypt decrypt an image by the keys of a holder, and compares its layers with the plain ones.
func (l ociLayout) ocicryptBy(t testing.TB, user *testkeys.User, image, plain ocispec.Descriptor, h testkeys.Holder) error {
	t.Helper()
	desc, err := ocicryptJob{Layout: string(l), Image: image, Keys: h.Keys}.do(user)
	if err != nil {
		return err
	}
	return l.sameLayers(t, desc, plain)
}

// sameLayers compares the layers of two images that are single manifests.
func (l ociLayout) sameLayers(t testing.TB, got, want ocispec.Descriptor) error {
	t.Helper()
	var g, w ocispec.Manifest
	unmarshal(t, l.blob(t, got), &g)
	unmarshal(t, l.blob(t, want), &w)
	if len(g.Layers) != len(w.Layers) {
		return fmt.Errorf("%d layers, want %d", len(g.Layers), len(w.Layers))
	}
	for i, d := range w.Layers {
		if g.Layers[i].Digest != d.Digest || g.Layers[i].MediaType != d.MediaType {
			return fmt.Errorf("layer %d is %s %s, want %s %s", i, g.Layers[i].MediaType, g.Layers[i].Digest, d.MediaType, d.Digest)
		}
	}
	return nil
}
