package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testregistry"
	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
	"imgcrypt/keys/schemes"
)

// command runs a command line.
func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(append([]string{name}, args...), strings.NewReader(""), &out, &err)
	return out.String(), err.String(), code
}

// ok runs a command line that has to work, and returns the last word of its output.
func ok(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, code := command(t, args...)
	if code != exitOK {
		t.Fatalf("%s: exit code %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	words := strings.Fields(stdout)
	if len(words) == 0 {
		return ""
	}
	return words[len(words)-1]
}

// fails runs a command line that has to fail with this code and say this.
func fails(t *testing.T, want int, says string, args ...string) {
	t.Helper()
	stdout, stderr, code := command(t, args...)
	if code != want || !strings.HasPrefix(stderr, "imgcrypt: error: ") || !strings.Contains(stderr, says) || stdout != "" {
		t.Errorf("%s: exit code %d, want %d and %q:\n%s%s", strings.Join(args, " "), code, want, says, stdout, stderr)
	}
}

// keyPair makes a key pair by keygen and returns the paths.
func keyPair(t *testing.T, flags ...string) (private, public string) {
	t.Helper()
	base := filepath.Join(t.TempDir(), "key")
	ok(t, append(append([]string{"keygen"}, flags...), base)...)
	return base + ".pem", base + ".pub.pem"
}

// digestOf returns what is after the @.
func digestOf(name string) string {
	_, d, _ := strings.Cut(name, "@")
	return d
}

// whole is an image of two platforms with attestations.
var whole = testimage.Spec{Layers: testimage.Layers(2, testimage.Gzip), Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true}

// pushed pushes an image to a new registry, and returns the repository and the digest.
// The image is called "plain".
func pushed(t *testing.T, spec testimage.Spec) (repo, digest string) {
	t.Helper()
	r := testregistry.Start(t)
	dir := t.TempDir()
	desc, err := spec.Write(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	r.PushDescriptor(t, dir, desc, "app:plain")
	return strings.TrimSuffix(r.Ref("app:plain"), ":plain"), desc.Digest.String()
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	repo, plain := pushed(t, whole)
	private, public := keyPair(t)
	strange, _ := keyPair(t, "--type", "rsa")
	sealed := ok(t, "encrypt", "-r", "jwe:"+public, repo+":plain", repo+":sealed")
	if digestOf(sealed) == plain || !strings.HasPrefix(sealed, repo+":sealed@sha256:") {
		t.Errorf("encrypted to %s", sealed)
	}
	// Into another repository, with all that is not encrypted.
	other := repo + "/copy"
	ok(t, "encrypt", "-q", "-r", "jwe:"+public, repo+":plain", other+":sealed")
	ok(t, "verify", "-q", "-k", private, other+":sealed")
	for _, from := range []string{repo + ":sealed", sealed, other + ":sealed"} {
		from = strings.Replace(from, ":sealed@", "@", 1)
		if back := ok(t, "decrypt", "-k", private, from, other+"/back:plain"); digestOf(back) != plain {
			t.Errorf("%s decrypted to %s, want %s", from, back, plain)
		}
	}
	fails(t, exitNoKey, "does not open it", "decrypt", "-k", strange, repo+":sealed", repo+":opened")
	fails(t, exitNoKey, "no key was given to open it", "verify", "-q", repo+":sealed")
	fails(t, exitNothing, "nothing to decrypt", "decrypt", "-k", private, repo+":plain", repo+":opened")
	fails(t, exitFailure, "encrypted", "verify", "-q", "--require-encrypted", "-k", private, repo+":plain")
	fails(t, exitFailure, repo+":opened", "inspect", repo+":opened")
	fails(t, exitUsage, "either DST or --in-place", "decrypt", "-k", private, repo+":sealed")
	fails(t, exitUsage, "SRC and DST are the same", "decrypt", "-k", private, repo+":sealed", "docker://"+repo+":sealed")
	fails(t, exitUsage, "no recipient", "encrypt", repo+":plain")
	fails(t, exitUsage, "leave out DST", "encrypt", "-r", "jwe:"+public, "--delete-plain", repo+":plain", repo+":x")
	for _, word := range []string{"layout", "image.tar", "library/busybox", "./dir"} {
		fails(t, exitUsage, word+": neither HOST/REPO nor", "encrypt", "-r", "jwe:"+public, repo+":plain", word)
	}
	fails(t, exitFailure, "no layer of it is encrypted", "recipients", "add", "-r", "jwe:"+public, repo+":plain")
	fails(t, exitFailure, "no layer of it is encrypted", "recipients", "remove", "-r", "x", repo+":plain")
	fails(t, exitUsage, "usage:", "verify")
}

// What the result replaces is deleted, with all its manifests.
func TestDeletePlain(t *testing.T) {
	t.Parallel()
	repo, plain := pushed(t, whole)
	shown, _, _ := command(t, "inspect", "--json", repo+":plain")
	var before struct {
		Manifests []struct {
			Digest      string
			Attestation bool
		}
	}
	if err := json.Unmarshal([]byte(shown), &before); err != nil || len(before.Manifests) != 4 {
		t.Fatal(err, shown)
	}
	_, public := keyPair(t)
	_, stderr, code := command(t, "encrypt", "-r", "jwe:"+public, "--delete-plain", repo+":plain")
	if code != exitOK || !strings.Contains(stderr, plain+" and its manifests are deleted") {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
	fails(t, exitFailure, "", "inspect", repo+"@"+plain)
	for _, m := range before.Manifests {
		_, _, code := command(t, "inspect", repo+"@"+m.Digest)
		if (code == exitOK) != m.Attestation {
			t.Errorf("%s: exit code %d", m.Digest, code)
		}
	}
	ok(t, "inspect", repo+":plain")
}

func TestRecipients(t *testing.T) {
	t.Parallel()
	repo, plain := pushed(t, testimage.Spec{})
	image := repo + ":plain"
	aliceKey, alice := keyPair(t)
	bobKey, bob := keyPair(t)
	_, stderr, code := command(t, "encrypt", "-r", "jwe:"+alice, image)
	if code != exitOK || !strings.Contains(stderr, repo+"@"+plain) {
		t.Errorf("nobody is told of the plain image: %d\n%s", code, stderr)
	}
	fails(t, exitNoKey, "adding a recipient needs a key", "recipients", "add", "-r", "jwe:"+bob, image)
	both := ok(t, "recipients", "add", "-r", "jwe:"+bob, "-k", aliceKey, image)
	if again := ok(t, "recipients", "add", "-r", "jwe:"+bob, image); again != both {
		t.Errorf("adding again made %s of %s", again, both)
	}
	shown, _, _ := command(t, "inspect", "-k", bobKey, image)
	thumbprint := func(public string) string {
		t.Helper()
		data, err := os.ReadFile(public)
		if err != nil {
			t.Fatal(err)
		}
		key, err := keys.ParsePublicKey(data)
		if err != nil {
			t.Fatal(err)
		}
		r, err := jwe.NewRecipient(key)
		if err != nil {
			t.Fatal(err)
		}
		return r.KeyID()
	}
	for _, want := range []string{thumbprint(alice), thumbprint(bob), "opens"} {
		if !strings.Contains(shown, want) {
			t.Errorf("inspect does not show %q:\n%s", want, shown)
		}
	}
	ok(t, "recipients", "remove", "-r", thumbprint(alice), image)
	fails(t, exitNoKey, "layer 0", "verify", "-q", "-k", aliceKey, image)
	ok(t, "verify", "-k", bobKey, image)
	fails(t, exitFailure, "no recipient left", "recipients", "remove", "-r", thumbprint(bob), image)
	fails(t, exitFailure, "nobody is called so", "recipients", "remove", "-r", thumbprint(alice), image)
	ok(t, "recipients", "set", "-r", "jwe:"+alice, "-k", bobKey, image)
	fails(t, exitNoKey, "layer 0", "verify", "-q", "-k", bobKey, image)
	rekeyed := ok(t, "encrypt", "--rekey", "-r", "jwe:"+bob, "-k", aliceKey, image)
	fails(t, exitNoKey, "layer 0", "verify", "-q", "-k", aliceKey, image)
	if back := ok(t, "decrypt", "--in-place", "-k", bobKey, image); digestOf(back) != plain || back == rekeyed {
		t.Errorf("decrypted to %s, want %s", back, plain)
	}
}

func TestKeygen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	private, public := keyPair(t, "--password-file", password)
	info, err := os.Stat(private)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	parser := keys.Parser{Schemes: schemes.All(schemes.Options{})}
	if _, err := parser.Identity(private + ":file=" + password); err != nil {
		t.Error(err)
	}
	if _, err := parser.Identity(private); !errors.Is(err, keys.ErrPassword) {
		t.Errorf("without its password: %v", err)
	}
	fails(t, exitFailure, "already exists", "keygen", strings.TrimSuffix(private, ".pem"))
	// Where one half cannot be written, the other is not left behind.
	if err := os.Remove(private); err != nil {
		t.Fatal(err)
	}
	fails(t, exitFailure, public+": file already exists", "keygen", strings.TrimSuffix(private, ".pem"))
	if _, err := os.Stat(private); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a private key is left without its public half: %v", err)
	}
	fails(t, exitUsage, "type is ec or rsa", "keygen", "--type", "dsa", filepath.Join(dir, "x"))
}
