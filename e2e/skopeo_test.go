package e2e

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testregistry"
	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
)

// skopeoCopy runs `skopeo copy` as the machine's users do, and returns what it says.
func skopeoCopy(t testing.TB, args ...string) (string, error) {
	t.Helper()
	testenv.Need(t, "skopeo")
	tls := []string{"--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"}
	cmd := exec.Command("skopeo", append(tls, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	return "skopeo copy " + strings.Join(args, " ") + "\n" + string(out), err
}

// skopeo fails the test if it fails.
func skopeo(t testing.TB, args ...string) {
	t.Helper()
	if out, err := skopeoCopy(t, args...); err != nil {
		t.Fatalf("%s%v", out, err)
	}
}

// ecKeysOf makes a key pair of a curve; the private key is PKCS#8, which skopeo's ocicrypt asks for.
func ecKeysOf(t testing.TB, curve string) keyPair {
	t.Helper()
	return opensslKeys(t, "EC", "ec_paramgen_curve:"+curve)
}

// skopeoImages are what skopeo copies: what is no single OCI image goes there from a registry.
func skopeoImages() []testimage.Kind {
	three := []testimage.Layer{
		{Files: []testimage.File{{Name: "etc/one", Body: []byte("one")}}},
		{RandomSize: 3 << 20},
		{Files: []testimage.File{{Name: "etc/three", Body: []byte("three")}}},
	}
	of := func(c testimage.Compression) []testimage.Layer {
		layers := slices.Clone(three)
		for i := range layers {
			layers[i].Compression = c
		}
		return layers
	}
	mixed := slices.Clone(three)
	mixed[1].Compression, mixed[2].Compression = testimage.Zstd, testimage.None
	two := []string{"linux/amd64", "linux/arm64"}
	return []testimage.Kind{
		{Name: "OCI gzip", Spec: testimage.Spec{Layers: three}},
		{Name: "OCI zstd", Spec: testimage.Spec{Layers: of(testimage.Zstd)}},
		{Name: "OCI tar", Spec: testimage.Spec{Layers: of(testimage.None)}},
		{Name: "OCI index", Spec: testimage.Spec{Layers: mixed, Platforms: two}},
		{Name: "Docker gzip", Spec: testimage.Spec{Layers: three, Docker: true}},
		{Name: "Docker tar", Spec: testimage.Spec{Layers: of(testimage.None), Docker: true}},
		{Name: "Docker list", Spec: testimage.Spec{Layers: three, Docker: true, Platforms: two}},
	}
}

// keyKinds are the key pairs that both sides know.
func keyKinds(t testing.TB) map[string]keyPair {
	t.Helper()
	return map[string]keyPair{
		"RSA": rsaKeys(t), "P-256": ecKeysOf(t, "P-256"), "P-384": ecKeysOf(t, "P-384"), "P-521": ecKeysOf(t, "P-521"),
	}
}

// writeAndPush makes an image in a new layout and pushes it to a registry.
func writeAndPush(t testing.TB, registry *testregistry.Registry, spec testimage.Spec, name string) (ociLayout, ocispec.Descriptor, string) {
	t.Helper()
	l := ociLayout(t.TempDir())
	desc, err := spec.Write(string(l), "plain")
	if err != nil {
		t.Fatal(err)
	}
	return l, desc, registry.PushDescriptor(t, string(l), desc, name)
}

// sameTars fails the test unless two images have the same layers, when they are unpacked.
func sameTars(t testing.TB, got, want []leaf) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d images, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i].platform != want[i].platform || !slices.EqualFunc(got[i].tars, want[i].tars, bytes.Equal) {
			t.Errorf("image %d: %s with %d layers, want %s with %d", i, got[i].platform, len(got[i].tars), want[i].platform, len(want[i].tars))
		}
	}
}

// sameBlobs fails the test unless two images have the same layers as they are stored.
func sameBlobs(t testing.TB, got, want []leaf) {
	t.Helper()
	for i := range want {
		for j, d := range want[i].manifest.Layers {
			if g := got[i].manifest.Layers[j]; g.Digest != d.Digest || g.Size != d.Size || g.MediaType != layer.OCIMediaType(d.MediaType) {
				t.Errorf("%s, layer %d: %s %s, want %s %s", want[i].platform, j, g.MediaType, g.Digest, d.MediaType, d.Digest)
			}
		}
	}
}

// encryptedFor fails the test unless an image is encrypted as a whole, and returns the schemes and recipients.
func (l ociLayout) encryptedFor(t testing.TB, desc ocispec.Descriptor) []string {
	t.Helper()
	image, err := imgcrypt.Inspect(t.Context(), l, desc, imgcrypt.InspectOptions{Schemes: schemes.All(schemes.Options{})})
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, m := range image.Manifests {
		for _, info := range m.Layers {
			if !info.Encrypted {
				t.Errorf("layer %d of %s is not encrypted", info.Index, m.Desc.Digest)
			}
			for _, r := range info.Recipients {
				names[r.Scheme+":"+r.Name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// TestSkopeoEncrypts opens what skopeo encrypted.
func TestSkopeoEncrypts(t *testing.T) {
	t.Parallel()
	registry, all := testregistry.Start(t), keyKinds(t)
	for name, k := range all {
		for i, kind := range skopeoImages() {
			// All kinds of image with one key, one image with the others.
			if name != "RSA" && i > 0 {
				continue
			}
			t.Run(kind.Name+"/"+name, func(t *testing.T) {
				t.Parallel()
				source, plain, ref := writeAndPush(t, registry, kind.Spec, strings.ToLower(strings.ReplaceAll(kind.Name+"-"+name, " ", "-"))+":v1")
				l := ociLayout(t.TempDir())
				skopeo(t, "--all", "--encryption-key", k.recipient(), "docker://"+ref, "oci:"+string(l)+":enc")
				enc := l.image(t, "enc")
				l.encryptedFor(t, enc)
				if _, err := l.decrypt(t, enc, all[otherKey(name)].private); err == nil {
					t.Error("another key opens it")
				}
				dec, err := l.decrypt(t, enc, k.private)
				if err != nil {
					t.Fatal(err)
				}
				want, got := source.leaves(t, plain), l.leaves(t, dec.Desc)
				sameTars(t, got, want)
				if !strings.Contains(kind.Name, "tar") && kind.Name != "OCI index" {
					sameBlobs(t, got, want) // skopeo compressed none of these anew
				}
			})
		}
	}
}

func otherKey(name string) string {
	if name == "RSA" {
		return "P-256"
	}
	return "RSA"
}

// TestSkopeoDecrypts has skopeo open what was encrypted here, for one and for several recipients.
func TestSkopeoDecrypts(t *testing.T) {
	t.Parallel()
	registry, all := testregistry.Start(t), keyKinds(t)
	// Everybody's packets are in one annotation, each with its own kid; skopeo has to find its own.
	several := slices.Sorted(maps.Keys(all))
	for i, kind := range skopeoImages() {
		for _, name := range several {
			if name != "RSA" && i > 0 {
				continue
			}
			for _, recipients := range [][]string{{name}, several} {
				if i > 0 && len(recipients) > 1 {
					continue
				}
				t.Run(kind.Name+"/"+name+" of "+strings.Join(recipients, ","), func(t *testing.T) {
					t.Parallel()
					tag := strings.ToLower(strings.ReplaceAll(kind.Name+"-"+name, " ", "-")) + ":" + strings.Join(recipients, "_")
					l, plain, _ := writeAndPush(t, registry, kind.Spec, tag)
					var to []string
					for _, r := range recipients {
						to = append(to, all[r].recipient())
					}
					enc := l.encrypt(t, plain, "encrypted", to...)
					if got := l.encryptedFor(t, enc); len(got) != len(recipients) || !strings.HasPrefix(got[0], "jwe:") || len(got[0]) != 47 {
						t.Errorf("recipients %v", got)
					}
					ref := registry.PushDescriptor(t, string(l), enc, tag+"-enc")
					out := ociLayout(t.TempDir())
					if len(recipients) == 1 {
						args := []string{"--all", "--decryption-key", all[otherKey(name)].private, "docker://" + ref, "oci:" + string(out) + ":no"}
						if said, err := skopeoCopy(t, args...); err == nil {
							t.Errorf("another key opens it: %s", said)
						}
					}
					skopeo(t, "--all", "--dest-oci-accept-uncompressed-layers", "--decryption-key", all[name].private,
						"docker://"+ref, "oci:"+string(out)+":dec")
					want, got := l.leaves(t, plain), out.leaves(t, out.image(t, "dec"))
					sameTars(t, got, want)
					sameBlobs(t, got, want)
				})
			}
		}
	}
}

// TestSkopeoRecipients adds recipients to what skopeo encrypted for several, and each of them opens it.
func TestSkopeoRecipients(t *testing.T) {
	t.Parallel()
	l, first, second, third := ociLayout(t.TempDir()), rsaKeys(t), ecKeys(t), rsaKeys(t)
	plain, err := testimage.Spec{Layers: testimage.Layers(3, testimage.Gzip)}.Write(string(l), "plain")
	if err != nil {
		t.Fatal(err)
	}
	skopeo(t, "--encryption-key", first.recipient(), "--encryption-key", second.recipient(), "oci:"+string(l)+":plain", "oci:"+string(l)+":enc")
	before := l.image(t, "enc")
	parser := &keys.Parser{Schemes: schemes.All(schemes.Options{})}
	r, err := parser.Recipient(t.Context(), third.recipient())
	if err != nil {
		t.Fatal(err)
	}
	after, err := imgcrypt.Encrypt(t.Context(), l, before, imgcrypt.EncryptOptions{
		Recipients: []keys.Recipient{r}, Identities: identitiesOf(t, second.private),
	})
	if err != nil {
		t.Fatal(err)
	}
	var was, is ocispec.Manifest
	unmarshal(t, l.blob(t, before), &was)
	unmarshal(t, l.blob(t, after.Desc), &is)
	for i := range was.Layers {
		if was.Layers[i].Digest != is.Layers[i].Digest {
			t.Errorf("the data of layer %d changed", i)
		}
	}
	if err := testimage.Tag(string(l), "three", after.Desc); err != nil {
		t.Fatal(err)
	}
	want := l.leaves(t, plain)
	for i, k := range []keyPair{first, second, third} {
		dec, err := l.decrypt(t, after.Desc, k.private)
		if err != nil {
			t.Fatalf("recipient %d: %v", i, err)
		}
		sameTars(t, l.leaves(t, dec.Desc), want)
		out := ociLayout(t.TempDir())
		skopeo(t, "--decryption-key", k.private, "oci:"+string(l)+":three", "oci:"+string(out)+":dec")
		sameBlobs(t, out.leaves(t, out.image(t, "dec")), want)
	}
}

// TestSkopeoSomeLayers opens an image of which skopeo encrypted some layers, and the other way round.
func TestSkopeoSomeLayers(t *testing.T) {
	t.Parallel()
	registry, k := testregistry.Start(t), rsaKeys(t)
	parser := &keys.Parser{Schemes: schemes.All(schemes.Options{})}
	r, err := parser.Recipient(t.Context(), k.recipient())
	if err != nil {
		t.Fatal(err)
	}
	for name, docker := range map[string]bool{"oci": false, "docker": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, plain, ref := writeAndPush(t, registry, testimage.Spec{Layers: testimage.Layers(3, testimage.Gzip), Docker: docker}, name+":plain")
			want := l.leaves(t, plain)
			skopeo(t, "--encrypt-layer", "0", "--encrypt-layer", "-1", "--encryption-key", k.recipient(), "docker://"+ref, "oci:"+string(l)+":enc")
			if got := l.encryptedLayers(t, l.image(t, "enc")); !slices.Equal(got, []bool{true, false, true}) {
				t.Errorf("skopeo encrypted %v", got)
			}
			dec, err := l.decrypt(t, l.image(t, "enc"), k.private)
			if err != nil {
				t.Fatal(err)
			}
			if dec.Layers != 2 {
				t.Errorf("decrypted %d layers", dec.Layers)
			}
			sameBlobs(t, l.leaves(t, dec.Desc), want)

			enc, err := imgcrypt.Encrypt(t.Context(), l, plain, imgcrypt.EncryptOptions{Recipients: []keys.Recipient{r}, Select: imgcrypt.Selection{
				Layer: func(d imgcrypt.Layer) bool { return d.Index == 1 },
			}})
			if err != nil {
				t.Fatal(err)
			}
			if got := l.encryptedLayers(t, enc.Desc); !slices.Equal(got, []bool{false, true, false}) {
				t.Errorf("encrypted %v", got)
			}
			if err := testimage.Tag(string(l), "one", enc.Desc); err != nil {
				t.Fatal(err)
			}
			out := ociLayout(t.TempDir())
			skopeo(t, "--decryption-key", k.private, "oci:"+string(l)+":one", "oci:"+string(out)+":dec")
			sameBlobs(t, out.leaves(t, out.image(t, "dec")), want)
		})
	}
}

// encryptedLayers says which layers of a manifest are encrypted.
func (l ociLayout) encryptedLayers(t testing.TB, desc ocispec.Descriptor) (encrypted []bool) {
	t.Helper()
	var m ocispec.Manifest
	unmarshal(t, l.blob(t, desc), &m)
	for _, d := range m.Layers {
		encrypted = append(encrypted, layer.IsEncrypted(d.MediaType))
	}
	return encrypted
}

// TestSkopeoRuns runs on containerd what skopeo encrypted and pushed.
func TestSkopeoRuns(t *testing.T) {
	t.Parallel()
	registry, k := testregistry.Start(t), rsaKeys(t)
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		for name, compression := range map[string]testimage.Compression{"gzip": testimage.Gzip, "zstd": testimage.Zstd, "tar": testimage.None} {
			spec := runnable(t)
			spec.Salt += name
			for i := range spec.Layers {
				spec.Layers[i].Compression = compression
			}
			l := ociLayout(t.TempDir())
			if _, err := spec.Write(string(l), "plain"); err != nil {
				t.Fatal(err)
			}
			ref := registry.Ref("run-" + string(n.Version()) + ":" + name)
			skopeo(t, "--encryption-key", k.recipient(), "oci:"+string(l)+":plain", "docker://"+ref)
			refused(t, n.enc("images", "pull", ref), "no key")
			n.enc("images", "pull", "--key", k.private, ref).OK(t)
			refused(t, n.run(nil, ref), "you are not authorized to use this image: ")
			if r := n.run([]string{"--key", k.private}, ref).OK(t); r.Stdout != hello {
				t.Errorf("%s: got %s, want %q", name, r, hello)
			}
			n.Clean(t)
		}
	})
}

// TestSkopeoCarries has an encrypted image go through skopeo and docker-registry, and back, unchanged.
func TestSkopeoCarries(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "skopeo")
	registry, k := testregistry.StartDebian(t), ecKeys(t)
	for i, kind := range testimage.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			t.Parallel()
			l, back := ociLayout(t.TempDir()), ociLayout(t.TempDir())
			plain, err := kind.Spec.Write(string(l), "plain")
			if err != nil {
				t.Fatal(err)
			}
			enc := l.encrypt(t, plain, "encrypted", k.recipient())
			ref := "docker://" + registry.Ref("carried"+itoa(int64(i))+":v1")
			skopeo(t, "--all", "--preserve-digests", "oci:"+string(l)+":encrypted", ref)
			skopeo(t, "--all", "--preserve-digests", ref, "oci:"+string(back)+":encrypted")
			got := back.image(t, "encrypted")
			if got.Digest != enc.Digest || got.Size != enc.Size {
				t.Fatalf("came back as %s, was %s", got.Digest, enc.Digest)
			}
			dec, err := back.decrypt(t, got, k.private)
			if err != nil {
				t.Fatal(err)
			}
			want := plain
			if kind.Spec.Format == testimage.Escaped {
				// Escaped digests are not restored, wherever the image was meanwhile.
				direct, err := l.decrypt(t, enc, k.private)
				if err != nil {
					t.Fatal(err)
				}
				want = direct.Desc
			}
			if dec.Desc.Digest != want.Digest || !bytes.Equal(back.blob(t, dec.Desc), l.blob(t, want)) {
				t.Errorf("decrypted to %s, was %s", dec.Desc.Digest, want.Digest)
			}
		})
	}
}
