package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testkeys"
	"imgcrypt/internal/testnode"
)

// loadLayers puts a plain image of n layers on the node, and returns its digest.
func (n *node) loadLayers(t testing.TB, count int, name string) string {
	t.Helper()
	file, desc := archive(t, testimage.Spec{Layers: testimage.Layers(count, testimage.Gzip), Salt: t.Name()}, name)
	n.Ctr("images", "import", "--no-unpack", file).OK(t)
	return desc.Digest.String()
}

// encrypt encrypts an image for holders, by ctr-enc.
func (n *node) encrypt(t testing.TB, from, to string, holders ...testkeys.Holder) {
	t.Helper()
	n.enc(slices.Concat([]string{"images", "encrypt"}, recipientFlags(holders...), []string{from, to})...).OK(t)
}

func recipientFlags(holders ...testkeys.Holder) (all []string) {
	for _, h := range holders {
		all = append(all, "--recipient", h.Recipient)
	}
	return all
}

// keyFlags are what opens what was encrypted for a holder.
func keyFlags(holders ...testkeys.Holder) (all []string) {
	for _, h := range holders {
		all = append(all, flags("--key", h.Keys)...)
	}
	return all
}

// opens fails the test unless ctr-enc decrypts an image to the plain one, by the keys of holders.
func (n *node) opens(t testing.TB, name, plain string, holders ...testkeys.Holder) {
	t.Helper()
	r := n.enc(slices.Concat([]string{"images", "decrypt"}, keyFlags(holders...), []string{name, "example.test/opened"})...)
	if r.Code != 0 {
		t.Errorf("does not open: %s", r)
	} else if got := n.digest(t, "example.test/opened"); got != plain {
		t.Errorf("opens to %s, want %s", got, plain)
	}
}

// layers returns the digests of an image's layers.
func (n *node) layers(t testing.TB, name string) (digests []string) {
	t.Helper()
	for _, r := range n.layerinfo(t, name) {
		digests = append(digests, r.digest)
	}
	return digests
}

// Every scheme is added to an image that began with every other one: the layers stay, either of the two opens it
// alone, and adding somebody who is there changes nothing.
func TestAddSchemes(t *testing.T) {
	t.Parallel()
	user := testkeys.NewUser(t)
	all := user.All(t)
	n := startNode(t, testnode.Config{}).with(user.Env())
	plain := n.loadLayers(t, 3, plainName)
	for _, first := range all {
		began := "example.test/began:" + first.Scheme
		n.encrypt(t, plainName, began, first)
		for _, second := range all {
			if first.Scheme == second.Scheme {
				continue
			}
			t.Run(first.Scheme+" and "+second.Scheme, func(t *testing.T) {
				add := slices.Concat([]string{"images", "encrypt"}, keyFlags(first), recipientFlags(second))
				n.enc(append(add, began, encName)...).OK(t)
				if got, want := n.layers(t, encName), n.layers(t, began); !slices.Equal(got, want) {
					t.Errorf("layers %v, were %v", got, want)
				}
				want := strings.Join(slices.Sorted(slices.Values([]string{packetName(first), packetName(second)})), ",")
				for _, r := range n.layerinfo(t, encName) {
					if r.encryption != want {
						t.Errorf("layer %s is encrypted with %s, want %s", r.index, r.encryption, want)
					}
				}
				n.opens(t, encName, plain, first)
				n.opens(t, encName, plain, second)
				before := n.digest(t, encName)
				for _, key := range []testkeys.Holder{first, second} {
					again := slices.Concat([]string{"images", "encrypt"}, keyFlags(key), recipientFlags(second, first), []string{encName})
					if r := n.enc(again...).OK(t); !strings.Contains(r.Stdout, "all recipients can open it already") || n.digest(t, encName) != before {
						t.Errorf("with the key of %s: adding again makes %s of %s: %s", key.Scheme, n.digest(t, encName), before, r)
					}
				}
			})
		}
	}
	n.leavesNothing(t)
}

// packetName is what layerinfo calls the holder's packets.
func packetName(h testkeys.Holder) string {
	if h.Scheme == "provider" {
		return "provider." + h.Names[0]
	}
	return h.Scheme
}

// Any mix of recipients goes in one command, and each of them opens the image, in whatever order the keys are.
func TestMixedRecipients(t *testing.T) {
	t.Parallel()
	user := testkeys.NewUser(t)
	n := startNode(t, testnode.Config{})
	var all []testkeys.Holder
	// Two of each scheme: packets for the same scheme do not get into each other's way.
	for range 2 {
		all = append(all, user.All(t)...)
	}
	n = n.with(user.Env())
	plain := n.loadLayers(t, 2, plainName)
	n.encrypt(t, plainName, encName, all...)
	for _, r := range n.layerinfo(t, encName) {
		if r.encryption != fmt.Sprintf("jwe,pgp,pkcs11,pkcs7,%s,%s", packetName(all[4]), packetName(all[9])) {
			t.Errorf("encrypted with %s", r.encryption)
		}
	}
	for _, h := range all {
		n.opens(t, encName, plain, h)
	}
	n.opens(t, encName, plain, all...)
	slices.Reverse(all)
	n.opens(t, encName, plain, all...)

	// A part of them, in the middle of others who cannot open it.
	n.encrypt(t, plainName, encName, all[2], all[7])
	for _, h := range all {
		if h.Recipient != all[2].Recipient && h.Recipient != all[7].Recipient {
			refusedKeys(t, n.enc(slices.Concat([]string{"images", "decrypt"}, keyFlags(h), []string{encName, "no"})...))
		}
	}
	n.opens(t, encName, plain, all...)
	n.leavesNothing(t)
}

// One pipe with a key, which can be read only once, opens all 12 layers of an image, to decrypt and to run it.
func TestPipedKeys(t *testing.T) {
	t.Parallel()
	user := testkeys.NewUser(t)
	n := startNode(t, testnode.Config{})
	spec := runnable(t)
	for i := len(spec.Layers); i < 12; i++ {
		spec.Layers = append(spec.Layers, testimage.Layer{Files: []testimage.File{{Name: fmt.Sprintf("etc/layer%d", i), Body: []byte("one more\n")}}})
	}
	for _, scheme := range []string{"jwe", "pgp", "pkcs11", "pkcs7"} {
		t.Run(scheme, func(t *testing.T) {
			h := user.Holder(t, scheme)
			n := n.with(user.Env())
			n.Clean(t)
			plain := n.load(t, spec, plainName).Digest.String()
			n.encrypt(t, plainName, encName, h)
			pipe := func(command string) testnode.Result {
				cmd := n.Command(t.Context(), "bash", "-c", command, n.ctrEnc)
				cmd.Env = append(cmd.Env, append(user.Env(), "KEY="+h.Keys[0], "IMAGE="+encName)...)
				return testnode.Capture(cmd)
			}
			pipe(`"$0" images decrypt --key <(cat "$KEY") "$IMAGE" example.test/opened`).OK(t)
			if got := n.digest(t, "example.test/opened"); got != plain {
				t.Errorf("opens to %s, want %s", got, plain)
			}
			file := filepath.Join(t.TempDir(), "encrypted.tar")
			n.enc("images", "export", file, encName).OK(t)
			n.Clean(t)
			n.enc("images", "import", "--no-unpack", file).OK(t)
			// ctr may lose the output of a container that ends at once: see testnode.
			for try := 1; ; try++ {
				r := pipe(`"$0" run --rm --key <(cat "$KEY") "$IMAGE" e2e`).OK(t)
				if r.Stdout == hello {
					break
				}
				if try == 3 {
					t.Fatalf("got %s", r)
				}
			}
			if got := n.snapshots(t); got != 12 {
				t.Errorf("%d snapshots, want 12", got)
			}
		})
	}
	n.leavesNothing(t)
}

// A directory of keys may hold files of all kinds, side by side, and others.
func TestKeysSideBySide(t *testing.T) {
	t.Parallel()
	for _, version := range testnode.Versions() {
		t.Run("containerd "+string(version), func(t *testing.T) {
			t.Parallel()
			user, stranger := testkeys.NewUser(t), testkeys.NewUser(t)
			all := user.All(t)
			k := newNodeKeys(t, user)
			for _, h := range append(all, stranger.Holder(t, "jwe"), stranger.PGP(t, "with a passphrase")) {
				k.add(t, h)
			}
			writeFile(t, filepath.Join(k.dir, "0-README.txt"), []byte("These are keys.\n"))
			writeFile(t, filepath.Join(k.dir, "0-empty"), nil)
			n := startNode(t, testnode.Config{Version: version, KeysDir: k.dir, DecoderEnv: k.env})
			file, _ := archive(t, runnable(t), plainName)
			for _, h := range all {
				n.Ctr("images", "import", "--no-unpack", file).OK(t)
				n.with(user.Env()).encrypt(t, plainName, encName, h)
				if r := n.run([]string{"--skip-decrypt-auth"}, encName); r.Code != 0 || r.Stdout != hello {
					t.Errorf("%s: %s", h.Scheme, r)
				}
				n.leavesNothing(t)
				n.Clean(t)
			}
		})
	}
}

// refusedKeys fails the test unless a command failed since no key opens a layer. It returns the lines that say so.
func refusedKeys(t testing.TB, r testnode.Result) []string {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(r.Stderr), "\n")
	if r.Code != 1 || !strings.HasPrefix(lines[0], "ctr-enc: ") || !strings.Contains(lines[0], "layer 0 (sha256:") {
		t.Errorf("not refused as it should be: %s", r)
	}
	return lines
}
