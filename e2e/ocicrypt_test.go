package e2e

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containers/ocicrypt"
	encconfig "github.com/containers/ocicrypt/config"
	"github.com/go-jose/go-jose/v4"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/internal/testimage"
	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
)

// Here ocicrypt, as CRI-O, buildah and containerd's imgcrypt use it, is on the other side, layer by layer.

// jwkOf writes a key pair as JWKs. ocicrypt takes RSA-OAEP for a JWK without alg, so one of an EC key has it.
func jwkOf(t testing.TB, k keyPair, kid string) keyPair {
	t.Helper()
	key, err := keys.ParsePrivateKey(readFile(t, k.private), nil)
	if err != nil {
		t.Fatal(err)
	}
	alg := jose.RSA_OAEP
	if _, ok := key.(*ecdsa.PrivateKey); ok {
		alg = jose.ECDH_ES_A256KW
	}
	dir := t.TempDir()
	jwk := keyPair{private: filepath.Join(dir, "key.jwk"), public: filepath.Join(dir, "pub.jwk")}
	files := map[string]jose.JSONWebKey{
		jwk.private: {Key: key, KeyID: kid},
		jwk.public:  {Key: key.(crypto.Signer).Public(), KeyID: kid, Algorithm: string(alg)},
	}
	for path, content := range files {
		if err := os.WriteFile(path, marshal(t, content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return jwk
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// ocicryptKinds are key pairs in all formats that both sides know.
func ocicryptKinds(t testing.TB) map[string]keyPair {
	t.Helper()
	kinds := keyKinds(t)
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		kinds["JWK "+name] = jwkOf(t, kinds[name], "")
		kinds["JWK with kid "+name] = jwkOf(t, kinds[name], "somebody's own")
	}
	kinds["PKCS#1"] = pkcs1(t, kinds["RSA"])
	return kinds
}

// pkcs1 is the same RSA key pair with the private key as older tools write it.
func pkcs1(t testing.TB, k keyPair) keyPair {
	t.Helper()
	old := filepath.Join(t.TempDir(), "key.pem")
	openssl(t, "rsa", "-in", k.private, "-traditional", "-out", old)
	if key, err := keys.ParsePrivateKey(readFile(t, old), nil); err != nil {
		t.Fatal(err)
	} else if _, ok := key.(*rsa.PrivateKey); !ok {
		t.Fatalf("a %T", key)
	}
	return keyPair{private: old, public: k.public}
}

// sizedImage is an image whose layers have these sizes.
func sizedImage(t testing.TB, sizes ...int) (ociLayout, ocispec.Descriptor) {
	t.Helper()
	l := ociLayout(t.TempDir())
	random := rand.NewChaCha8([32]byte{1})
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	config := ocispec.Image{RootFS: ocispec.RootFS{Type: "layers"}}
	config.OS, config.Architecture = "linux", "amd64"
	for _, size := range sizes {
		data := make([]byte, size)
		if _, err := random.Read(data); err != nil {
			t.Fatal(err)
		}
		m.Layers = append(m.Layers, l.put(t, ocispec.MediaTypeImageLayer, data))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(data))
	}
	m.Config = l.put(t, ocispec.MediaTypeImageConfig, marshal(t, config))
	return l, l.put(t, m.MediaType, marshal(t, m))
}

func sizes() []int { return []int{0, 1, 3 << 20} }

// ocicryptEncrypt encrypts all layers of an image by ocicrypt, or adds recipients to layers that are encrypted.
func (l ociLayout) ocicryptEncrypt(t testing.TB, image ocispec.Descriptor, unwrap *encconfig.DecryptConfig, to ...keyPair) ocispec.Descriptor {
	t.Helper()
	var publics [][]byte
	for _, k := range to {
		publics = append(publics, readFile(t, k.public))
	}
	cc, err := encconfig.EncryptWithJwe(publics)
	if err != nil {
		t.Fatal(err)
	}
	if unwrap != nil {
		cc.EncryptConfig.DecryptConfig = *unwrap // its AttachDecryptConfig writes into a nil map
	}
	var m ocispec.Manifest
	unmarshal(t, l.blob(t, image), &m)
	for i, desc := range m.Layers {
		r, finish, err := ocicrypt.EncryptLayer(cc.EncryptConfig, bytes.NewReader(l.blob(t, desc)), desc)
		if err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		if r != nil {
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatalf("layer %d: %v", i, err)
			}
			m.Layers[i] = l.put(t, desc.MediaType+"+encrypted", data)
		}
		if m.Layers[i].Annotations, err = finish(); err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
	}
	return l.put(t, m.MediaType, marshal(t, m))
}

// ocicryptOpens has ocicrypt decrypt all layers of an image, and compares them with those of the plain one.
func (l ociLayout) ocicryptOpens(t testing.TB, image, plain ocispec.Descriptor, k keyPair) error {
	t.Helper()
	dc := clientConfig(t, k)
	var m, want ocispec.Manifest
	unmarshal(t, l.blob(t, image), &m)
	unmarshal(t, l.blob(t, plain), &want)
	for i, desc := range m.Layers {
		// The digest that it returns is empty whatever the secret says.
		r, _, err := ocicrypt.DecryptLayer(dc, bytes.NewReader(l.blob(t, desc)), desc, false)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		if !bytes.Equal(data, l.blob(t, want.Layers[i])) {
			return fmt.Errorf("layer %d: other %d bytes", i, len(data))
		}
	}
	return nil
}

// weOpen decrypts all layers of an image, as a whole and one by one, and compares them with those of the plain one.
func (l ociLayout) weOpen(t testing.TB, image, plain ocispec.Descriptor, k keyPair) error {
	t.Helper()
	dec, err := l.decrypt(t, image, k.private)
	if err != nil {
		return err
	}
	if !slices.EqualFunc(l.leaves(t, dec.Desc)[0].tars, l.leaves(t, plain)[0].tars, bytes.Equal) || dec.Layers != len(sizes()) {
		return fmt.Errorf("%d other layers", dec.Layers)
	}
	var m, want ocispec.Manifest
	unmarshal(t, l.blob(t, image), &m)
	unmarshal(t, l.blob(t, plain), &want)
	for i, desc := range m.Layers {
		open, r, hint, err := encryption.DecryptLayer(clientConfig(t, k), bytes.NewReader(l.blob(t, desc)), desc, false)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		data, err := io.ReadAll(r)
		if err != nil || digest.FromBytes(data) != want.Layers[i].Digest || hint != want.Layers[i].Digest || open.MediaType != want.Layers[i].MediaType {
			return fmt.Errorf("layer %d: %s, %d bytes, %s: %w", i, open.MediaType, len(data), hint, err)
		}
	}
	return nil
}

// TestOcicryptEncrypts opens layers that ocicrypt encrypted, for one recipient and for all at once.
func TestOcicryptEncrypts(t *testing.T) {
	t.Parallel()
	l, plain := sizedImage(t, sizes()...)
	kinds := ocicryptKinds(t)
	all := slices.Collect(maps.Values(kinds))
	together := l.ocicryptEncrypt(t, plain, nil, all...)
	stranger := rsaKeys(t)
	for name, k := range kinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			alone := l.ocicryptEncrypt(t, plain, nil, k)
			for who, image := range map[string]ocispec.Descriptor{"alone": alone, "together": together} {
				if err := l.weOpen(t, image, plain, k); err != nil {
					t.Errorf("%s: %v", who, err)
				}
				if err := l.weOpen(t, image, plain, stranger); err == nil {
					t.Errorf("%s: a stranger's key opens it", who)
				}
			}
		})
	}
}

// TestOcicryptDecrypts has ocicrypt open layers that were encrypted here.
func TestOcicryptDecrypts(t *testing.T) {
	t.Parallel()
	l, plain := sizedImage(t, sizes()...)
	kinds := ocicryptKinds(t)
	var all []string
	for _, k := range kinds {
		all = append(all, k.recipient())
	}
	together := l.encrypt(t, plain, "together", all...)
	stranger := rsaKeys(t)
	for name, k := range kinds {
		t.Run(name, func(t *testing.T) {
			alone := l.encrypt(t, plain, name, k.recipient())
			for who, image := range map[string]ocispec.Descriptor{"alone": alone, "together": together} {
				if err := l.ocicryptOpens(t, image, plain, k); err != nil {
					t.Errorf("%s: %v", who, err)
				}
				if err := l.ocicryptOpens(t, image, plain, stranger); err == nil {
					t.Errorf("%s: a stranger's key opens it", who)
				}
			}
		})
	}
}

// TestOcicryptRecipients adds recipients by either side to what the other encrypted: the data stays, and old and new
// recipients open it with either side.
func TestOcicryptRecipients(t *testing.T) {
	t.Parallel()
	l, plain := sizedImage(t, sizes()...)
	kinds := ocicryptKinds(t)
	names := slices.Sorted(maps.Keys(kinds))
	for i, name := range names {
		first, second := kinds[name], kinds[names[(i+1)%len(names)]]
		parser := &keys.Parser{Schemes: schemes.All(schemes.Options{})}
		r, err := parser.Recipient(t.Context(), second.recipient())
		if err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) {
			theirs := l.ocicryptEncrypt(t, plain, nil, first)
			ourAddition, err := imgcrypt.Encrypt(t.Context(), l, theirs, imgcrypt.EncryptOptions{
				Recipients: []keys.Recipient{r}, Identities: identitiesOf(t, first.private),
			})
			if err != nil {
				t.Fatal(err)
			}
			ours := l.encrypt(t, plain, "ours", first.recipient())
			theirAddition := l.ocicryptEncrypt(t, ours, clientConfig(t, first), second)
			for who, change := range map[string][2]ocispec.Descriptor{
				"ours to theirs": {theirs, ourAddition.Desc}, "theirs to ours": {ours, theirAddition},
			} {
				l.sameSealed(t, change[0], change[1])
				for _, k := range []keyPair{first, second} {
					if err := l.ocicryptOpens(t, change[1], plain, k); err != nil {
						t.Errorf("%s, by ocicrypt: %v", who, err)
					}
					if err := l.weOpen(t, change[1], plain, k); err != nil {
						t.Errorf("%s: %v", who, err)
					}
				}
			}
		})
	}
}

// sameSealed fails the test unless two images have the same ciphertext, and the second more packets.
func (l ociLayout) sameSealed(t testing.TB, before, after ocispec.Descriptor) {
	t.Helper()
	var was, is ocispec.Manifest
	unmarshal(t, l.blob(t, before), &was)
	unmarshal(t, l.blob(t, after), &is)
	for i := range was.Layers {
		old, err := layer.Packets(was.Layers[i].Annotations)
		if err != nil {
			t.Fatal(err)
		}
		packets, err := layer.Packets(is.Layers[i].Annotations)
		if err != nil {
			t.Fatal(err)
		}
		if was.Layers[i].Digest != is.Layers[i].Digest || len(packets) != len(old)+1 {
			t.Errorf("layer %d: %s with %d packets, was %s with %d", i, is.Layers[i].Digest, len(packets), was.Layers[i].Digest, len(old))
		}
	}
}

// TestOcicryptRefuses has ocicrypt find what was changed in layers that were encrypted here, as we find it in its layers.
func TestOcicryptRefuses(t *testing.T) {
	t.Parallel()
	l, plain := sizedImage(t, sizes()...)
	k := ecKeys(t)
	for who, image := range map[string]ocispec.Descriptor{
		"ours": l.encrypt(t, plain, "ours", k.recipient()), "theirs": l.ocicryptEncrypt(t, plain, nil, k),
	} {
		for i, size := range sizes() {
			var m ocispec.Manifest
			unmarshal(t, l.blob(t, image), &m)
			data := append(bytes.Clone(l.blob(t, m.Layers[i])), 0)
			if size > 0 {
				data = data[:size]
				data[size/2] ^= 0x80
			}
			changed, err := testimage.PutBlob(string(l), m.Layers[i].MediaType, data)
			if err != nil {
				t.Fatal(err)
			}
			changed.Annotations = m.Layers[i].Annotations
			m.Layers[i] = changed
			forged := l.put(t, m.MediaType, marshal(t, m))
			if err := l.ocicryptOpens(t, forged, plain, k); err == nil {
				t.Errorf("%s, layer of %d bytes: ocicrypt opens it", who, size)
			}
			if err := l.weOpen(t, forged, plain, k); err == nil {
				t.Errorf("%s, layer of %d bytes: it opens", who, size)
			}
		}
	}
}
