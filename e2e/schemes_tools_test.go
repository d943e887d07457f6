package e2e

import (
	"crypto/rand"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testkeys"
	"imgcrypt/internal/testregistry"
)

// encryptFor encrypts an image for holders, and names it.
func (l ociLayout) encryptFor(t testing.TB, user *testkeys.User, image ocispec.Descriptor, name string, to ...testkeys.Holder) ocispec.Descriptor {
	t.Helper()
	res, err := imgcrypt.Encrypt(t.Context(), l, image, imgcrypt.EncryptOptions{Recipients: user.Recipients(t, to...)})
	if err == nil {
		err = testimage.Tag(string(l), name, res.Desc)
	}
	if err != nil {
		t.Fatal(err)
	}
	return res.Desc
}

// decryptBy decrypts an image by the keys of a holder.
func (l ociLayout) decryptBy(t testing.TB, user *testkeys.User, image ocispec.Descriptor, by testkeys.Holder) (ocispec.Descriptor, error) {
	t.Helper()
	res, err := imgcrypt.Decrypt(t.Context(), l, image, imgcrypt.DecryptOptions{Identities: user.Identities(t, by)})
	return res.Desc, err
}

// tool is a program that copies images, and encrypts or decrypts them on the way.
type tool interface {
	// encrypt copies the image "plain" of a layout to "enc" in another one.
	encrypt(t testing.TB, from, to ociLayout, recipients []string) error
	// decrypt copies the image "enc" of a layout to "dec" in another one.
	decrypt(t testing.TB, from, to ociLayout, keys []string) error
}

// command runs a program for a user. What it says is in the error.
func command(t testing.TB, user *testkeys.User, name string, args ...string) error {
	t.Helper()
	testenv.Need(t, name)
	cmd := exec.Command(name, args...)
	cmd.Env = append(personless(), user.Env()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// flags puts a flag before each of the values.
func flags(flag string, values []string) []string {
	var all []string
	for _, v := range values {
		all = append(all, flag, v)
	}
	return all
}

type skopeoTool struct{ user *testkeys.User }

func (s skopeoTool) encrypt(t testing.TB, from, to ociLayout, recipients []string) error {
	t.Helper()
	args := append([]string{"--insecure-policy", "copy"}, flags("--encryption-key", recipients)...)
	return command(t, s.user, "skopeo", append(args, "oci:"+string(from)+":plain", "oci:"+string(to)+":enc")...)
}

func (s skopeoTool) decrypt(t testing.TB, from, to ociLayout, keys []string) error {
	t.Helper()
	args := append([]string{"--insecure-policy", "copy"}, flags("--decryption-key", keys)...)
	return command(t, s.user, "skopeo", append(args, "oci:"+string(from)+":enc", "oci:"+string(to)+":dec")...)
}

// buildahTool has a storage of its own for every copy: it copies from a registry to the storage and from there to a
// registry or a layout.
type buildahTool struct {
	user     *testkeys.User
	registry *testregistry.Registry
}

func (b buildahTool) copy(t testing.TB, from, to ociLayout, source, target string, pull, push []string) error {
	t.Helper()
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy.json")
	writeFile(t, policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`))
	ref := b.registry.PushDescriptor(t, string(from), from.image(t, source), strings.ToLower(rand.Text())+":"+source)
	run := func(verb string, flags []string, args ...string) error {
		storage := []string{"--storage-driver", "vfs", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run")}
		return command(t, b.user, "buildah", slices.Concat(storage, []string{verb, "--signature-policy", policy, "--tls-verify=false"}, flags, args)...)
	}
	if err := run("pull", pull, "docker://"+ref); err != nil {
		return err
	}
	return run("push", push, ref, "oci:"+string(to)+":"+target)
}

func (b buildahTool) encrypt(t testing.TB, from, to ociLayout, recipients []string) error {
	t.Helper()
	return b.copy(t, from, to, "plain", "enc", nil, flags("--encryption-key", recipients))
}

func (b buildahTool) decrypt(t testing.TB, from, to ociLayout, keys []string) error {
	t.Helper()
	return b.copy(t, from, to, "enc", "dec", flags("--decryption-key", keys), nil)
}

// toolOpens encrypts an image for all holders and has a tool open it by the keys of each that the tool knows. It
// returns what the matrix says.
func toolOpens(t *testing.T, tool tool, user *testkeys.User, holders []testkeys.Holder) string {
	known, unknown := toolKnows(holders)
	l, plain := threeLayers(t)
	l.encryptFor(t, user, plain, "enc", holders...)
	for _, h := range unknown {
		// These files are no keys to it, and a provider is no file.
		if err := tool.decrypt(t, l, ociLayout(t.TempDir()), h.Keys); err == nil {
			t.Errorf("it opens %s: the matrix is wrong to say that it does not know it", h.Scheme)
		}
	}
	for _, h := range known {
		out := ociLayout(t.TempDir())
		if err := tool.decrypt(t, l, out, h.Keys); err != nil {
			t.Errorf("%s: %v", h.Scheme, err)
			continue
		}
		sameTars(t, out.leaves(t, out.image(t, "dec")), l.leaves(t, plain))
	}
	return toolSays(known, unknown)
}

// weOpenTool has a tool encrypt an image for all holders that it knows, and opens it by the keys of each.
func weOpenTool(t *testing.T, tool tool, user *testkeys.User, holders []testkeys.Holder) string {
	known, unknown := toolKnows(holders)
	l, plain := threeLayers(t)
	for _, h := range unknown {
		err := tool.encrypt(t, l, ociLayout(t.TempDir()), []string{h.Recipient})
		if err == nil || !strings.Contains(err.Error(), "protocol not recognized") {
			t.Errorf("the matrix says that it does not know %s: %v", h.Scheme, err)
		}
	}
	if len(known) == 0 {
		return toolSays(known, unknown)
	}
	var recipients []string
	for _, h := range known {
		recipients = append(recipients, h.Recipient)
	}
	out := ociLayout(t.TempDir())
	if err := tool.encrypt(t, l, out, recipients); err != nil {
		t.Fatal(err)
	}
	enc := out.image(t, "enc")
	if got := len(out.encryptedFor(t, enc)); got < len(known) {
		t.Errorf("encrypted for %d recipients, want %d", got, len(known))
	}
	for _, h := range known {
		dec, err := out.decryptBy(t, user, enc, h)
		if err != nil {
			t.Errorf("%s: %v", h.Scheme, err)
			continue
		}
		sameTars(t, out.leaves(t, dec), l.leaves(t, plain))
	}
	return toolSays(known, unknown)
}

// toolKnows sorts holders: the ocicrypt in Debian's skopeo and buildah knows three schemes.
func toolKnows(holders []testkeys.Holder) (known, unknown []testkeys.Holder) {
	for _, h := range holders {
		if slices.Contains([]string{"jwe", "pgp", "pkcs7"}, h.Scheme) {
			known = append(known, h)
		} else {
			unknown = append(unknown, h)
		}
	}
	return known, unknown
}

func toolSays(known, unknown []testkeys.Holder) string {
	switch {
	case len(known) == 0:
		return "n/a"
	case len(unknown) > 0:
		return fmt.Sprintf("ok (%d)", len(known))
	}
	return "ok"
}

// threeLayers is a plain image in a new layout, called "plain".
func threeLayers(t testing.TB) (ociLayout, ocispec.Descriptor) {
	t.Helper()
	l := ociLayout(t.TempDir())
	plain, err := testimage.Spec{Layers: testimage.Layers(3, testimage.Gzip), Salt: t.Name()}.Write(string(l), "plain")
	if err != nil {
		t.Fatal(err)
	}
	return l, plain
}
