package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testkeys"
	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testsofthsm"
	"imgcrypt/keys"
	"imgcrypt/keys/pkcs11"
	"imgcrypt/keys/schemes"
)

// aloneIn copies a program into a directory of its own, where no other is beside it.
func aloneIn(t testing.TB, program string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(program))
	writeFile(t, path, readFile(t, program))
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// Where the helper for tokens is not installed, a line says so, of the client and of the node's decoder; other keys are
// no worse for it.
func TestWithoutTokenHelper(t *testing.T) {
	t.Parallel()
	for _, version := range testnode.Versions() {
		t.Run("containerd "+string(version), func(t *testing.T) {
			t.Parallel()
			user := testkeys.NewUser(t)
			token, jwe := user.Holder(t, "pkcs11"), user.Holder(t, "jwe")
			k := newNodeKeys(t, user)
			n := startNode(t, testnode.Config{
				Version: version, KeysDir: k.dir, DecoderEnv: k.env,
				DecoderPath: aloneIn(t, testenv.Build(t, "./cmd/ctd-decoder")),
			})
			alone := &node{Node: n.Node, ctrEnc: aloneIn(t, n.ctrEnc), env: user.Env()}
			// Encrypting needs no helper: the public key is in a file.
			alone.loadEncrypted(t, runnable(t), "--recipient", token.Recipient, "--recipient", jwe.Recipient)
			const missing = "the program imgcrypt-pkcs11, which uses tokens, is missing: looked for in "
			refused(t, alone.run(keyFlags(token), encName), unauthorized, token.Keys[0]+" does not open it", missing+filepath.Dir(alone.ctrEnc))
			k.only(t, token)
			refused(t, n.run([]string{"--skip-decrypt-auth"}, encName), "ctd-decoder: error: layer sha256:", "does not open it (encrypted for jwe, pkcs11)", missing)
			n.leavesNothing(t)
			k.add(t, jwe)
			if r := n.run([]string{"--skip-decrypt-auth"}, encName); r.Code != 0 || r.Stdout != hello {
				t.Errorf("with another key: %s", r)
			}
			n.Clean(t)
		})
	}
}

// SoftHSM 2.6 does no OAEP with SHA-256. What is encrypted so, here or by ocicrypt, opens here all the same, as the padding
// is taken off outside of the token. ocicrypt opens what was encrypted with SHA-1: what the user asks for by
// OCICRYPT_OAEP_HASHALG, and what is taken for keys that have no room for more.
func TestTokenHash(t *testing.T) {
	t.Parallel()
	user := testkeys.NewUser(t)
	small, large := user.Holder(t, "pkcs11"), user.PKCS11(t, testsofthsm.Options{Bits: 3072})
	n := startNode(t, testnode.Config{})
	l, plain := threeLayers(t)
	for _, c := range []struct {
		name, hash          string
		holder              testkeys.Holder
		byOcicrypt, toOpens bool // ocicrypt can encrypt so, and open it with SoftHSM
	}{
		{"small", "", small, false, true},
		{"small-sha1", "sha1", small, true, true},
		{"large", "", large, true, false},
		{"large-sha1", "sha1", large, true, true},
		{"large-sha256", "sha256", large, true, false},
	} {
		ours, err := imgcrypt.Encrypt(t.Context(), l, plain, imgcrypt.EncryptOptions{Recipients: []keys.Recipient{hashRecipient(t, c.holder, c.hash)}})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.ocicryptBy(t, user, ours.Desc, plain, c.holder); (err == nil) != c.toOpens {
			t.Errorf("%s: by ocicrypt: %v", c.name, err)
		}
		images := []ocispec.Descriptor{ours.Desc}
		job := ocicryptJob{Layout: string(l), Image: plain, Recipients: []string{c.holder.Recipient}, env: []string{"OCICRYPT_OAEP_HASHALG=" + c.hash}}
		switch theirs, err := job.do(user); {
		case (err == nil) != c.byOcicrypt:
			t.Errorf("%s: ocicrypt encrypts: %v", c.name, err)
		case err == nil:
			images = append(images, theirs)
		}
		for _, image := range images {
			dec, err := l.decryptBy(t, user, image, c.holder)
			if err == nil {
				err = l.sameLayers(t, dec, plain)
			}
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if err := testimage.Tag(string(l), "example.test/hash:"+c.name, ours.Desc); err != nil {
			t.Fatal(err)
		}
	}
	n.importLayout(t, l)
	n.with(user.Env()).opens(t, "example.test/hash:large-sha256", plain.Digest.String(), large)
	for _, c := range []struct{ hash, want string }{
		{"sha256", "an RSA key of 2048 bits has no room for a layer's secret with SHA-256 (OCICRYPT_OAEP_HASHALG=sha1 makes some)"},
		{"md5", "md5"},
	} {
		n := n.with(append(user.Env(), "OCICRYPT_OAEP_HASHALG="+c.hash))
		refused(t, n.enc("images", "encrypt", "--recipient", small.Recipient, "plain", "example.test/no"), c.want)
	}
}

// hashRecipient is a recipient for a token, by a hash.
func hashRecipient(t *testing.T, h testkeys.Holder, hash string) keys.Recipient {
	t.Helper()
	parser := keys.Parser{Schemes: schemes.All(schemes.Options{PKCS11: pkcs11.Config{OAEPHash: hash}})}
	r, err := parser.Recipient(t.Context(), h.Recipient)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The recipient may be the key's own YAML, whose public half the token has.
func TestTokenYAML(t *testing.T) {
	t.Parallel()
	user := testkeys.NewUser(t)
	h := user.Holder(t, "pkcs11")
	n := startNode(t, testnode.Config{}).with(user.Env())
	plain := n.loadLayers(t, 2, plainName)
	n.enc("images", "encrypt", "--recipient", "pkcs11:"+h.Keys[0], plainName, encName).OK(t)
	n.opens(t, encName, plain, h)
	before := n.digest(t, encName)
	// It is the same recipient as the public key in a file.
	n.enc(slices.Concat([]string{"images", "encrypt"}, keyFlags(h), recipientFlags(h), []string{encName})...).OK(t)
	if got := n.digest(t, encName); got != before {
		t.Errorf("the same recipient once more made %s of %s", got, before)
	}
	// A module that the configuration does not allow is not loaded.
	config := filepath.Join(t.TempDir(), "ocicrypt.conf")
	writeFile(t, config, []byte("pkcs11:\n  module-directories: [/usr/lib]\n  allowed-module-paths: [/usr/lib/other.so]\n"))
	refused(t, n.with(append(user.Env(), "OCICRYPT_CONFIG="+config)).enc(slices.Concat([]string{"images", "decrypt"}, keyFlags(h), []string{encName, "no"})...),
		"the PKCS #11 module is not allowed")
	n.with(append(user.Env(), "OCICRYPT_CONFIG=internal")).opens(t, encName, plain, h)
	if r := n.enc("images", "layerinfo", encName).OK(t); strings.Contains(r.Stdout, user.Token().PIN) {
		t.Errorf("shows the PIN: %s", r)
	}
}

// Commands that use a token at the same time do not get into each other's way, although SoftHSM does.
func TestTokenAtOnce(t *testing.T) {
	t.Parallel()
	user := testkeys.NewUser(t)
	h := user.Holder(t, "pkcs11")
	n := startNode(t, testnode.Config{}).with(user.Env())
	n.loadLayers(t, 6, plainName)
	n.encrypt(t, plainName, encName, h)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			target := fmt.Sprintf("example.test/opened:%d", i)
			if r := n.enc(slices.Concat([]string{"images", "decrypt"}, keyFlags(h), []string{encName, target})...); r.Code != 0 {
				t.Error(r)
			}
		})
	}
	wg.Wait()
	n.leavesNothing(t)
}
