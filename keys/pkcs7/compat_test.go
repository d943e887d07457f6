package pkcs7_test

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/config"
	ocipkcs7 "github.com/containers/ocicrypt/keywrap/pkcs7"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/keys"
	"imgcrypt/keys/pkcs7"
	"imgcrypt/layer"
)

// Everything here has ocicrypt, as skopeo and CRI-O use it, on the other side.

const plaintext = "the layer's content"

// wrapping is held by everything that wraps with ocicrypt: its wrapper writes a global,
// and two of them at the same time are a race of their own.
var wrapping sync.Mutex

func ocicryptEncrypt(t testing.TB, certs ...[]byte) ([]byte, ocispec.Descriptor) {
	t.Helper()
	wrapping.Lock()
	defer wrapping.Unlock()
	cc, err := config.EncryptWithPkcs7(certs)
	if err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{Digest: digest.FromString(plaintext), Size: int64(len(plaintext))}
	r, finish, err := ocicrypt.EncryptLayer(cc.EncryptConfig, strings.NewReader(plaintext), desc)
	if err != nil {
		t.Fatal(err)
	}
	ciphertext, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if desc.Annotations, err = finish(); err != nil {
		t.Fatal(err)
	}
	return ciphertext, desc
}

func ocicryptDecryptConfig(params keys.Parameters) *config.DecryptConfig {
	return &config.DecryptConfig{Parameters: params}
}

func ocicryptDecrypt(ciphertext []byte, desc ocispec.Descriptor, params keys.Parameters) (string, error) {
	r, _, err := ocicrypt.DecryptLayer(ocicryptDecryptConfig(params), bytes.NewReader(ciphertext), desc, false)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(r)
	return string(data), err
}

// annotation is where the packets are.
const annotation = layer.KeysAnnotationPrefix + "pkcs7"

func TestOpensWhatOcicryptWrapped(t *testing.T) {
	t.Parallel()
	alice, bob, carol := find("alice"), find("bob"), find("carol")
	_, together := ocicryptEncrypt(t, certPEM(bob.cert), alice.cert.Raw)
	_, single := ocicryptEncrypt(t, alice.cert.Raw)
	inTurn := single
	inTurn.Annotations = maps.Clone(single.Annotations)
	inTurn.Annotations[annotation] = together.Annotations[annotation] + "," + single.Annotations[annotation]
	for kind, desc := range map[string]ocispec.Descriptor{"alone": single, "together": together, "in turn": inTurn} {
		for name, id := range map[string]keys.Identity{"certificate": newIdentity(t, carol, alice), "key": alone(t, alice)} {
			secret, err := keys.Open(t.Context(), []keys.Identity{id}, desc.Annotations)
			if err != nil || secret.Digest != digest.FromString(plaintext) {
				t.Errorf("%s, %s: %v", kind, name, err)
			}
		}
		if _, err := keys.Open(t.Context(), []keys.Identity{newIdentity(t, carol)}, desc.Annotations); !errors.Is(err, keys.ErrNoKey) {
			t.Errorf("%s: opened for a stranger: %v", kind, err)
		}
	}
	packets, err := layer.Packets(together.Annotations)
	if err != nil || len(packets) != 1 {
		t.Fatalf("%d packets, %v", len(packets), err)
	}
	want := []string{`issuer="CN=alice,O=Acme" serial=5A3F`, `issuer="CN=bob,O=Acme" serial=5A40`}
	got := pkcs7.Describe(packets[0])
	slices.Sort(got) // what ocicrypt writes is a set
	if !slices.Equal(got, want) {
		t.Errorf("described as %q, want %q", got, want)
	}
	if r := newRecipient(t, alice.cert); !r.Owns(packets[0]) {
		t.Error("the second recipient does not own the packet")
	}
}

// What is wrapped here is put beside ocicrypt's ciphertext, whose secret is known
// from opening it.
func TestOcicryptOpensWhatIsWrappedHere(t *testing.T) {
	t.Parallel()
	alice, bob, carol := find("alice"), find("bob"), find("carol")
	ciphertext, desc := ocicryptEncrypt(t, carol.cert.Raw)
	secret, err := keys.Open(t.Context(), []keys.Identity{alone(t, carol)}, desc.Annotations)
	if err != nil {
		t.Fatal(err)
	}
	data, err := layer.MarshalSecret(secret)
	if err != nil {
		t.Fatal(err)
	}
	all := layer.AddPacket("", wrap(t, newRecipient(t, bob.cert), string(data)))
	all = layer.AddPacket(all, wrap(t, newRecipient(t, alice.cert), string(data)))
	desc.Annotations = map[string]string{annotation: all, layer.PublicAnnotation: desc.Annotations[layer.PublicAnnotation]}
	for _, h := range []holder{alice, bob} {
		// As the identity says it, and as skopeo takes it: --decryption-key for both files.
		portable, err := newIdentity(t, h).Parameters()
		if err != nil {
			t.Fatal(err)
		}
		files := keys.Parameters{"privkeys": {keyPEM(t, h.key)}, "privkeys-passwords": {nil}, "x509s": {certPEM(carol.cert), certPEM(h.cert)}}
		for kind, params := range map[string]keys.Parameters{"portable": portable, "files": files} {
			if got, err := ocicryptDecrypt(ciphertext, desc, params); err != nil || got != plaintext {
				t.Errorf("%s: %q, %v", kind, got, err)
			}
		}
		if err := ocicryptAdds(ciphertext, desc, portable, carol); err != nil {
			t.Errorf("adding: %v", err)
		}
	}
	if _, err := ocicryptDecrypt(ciphertext, desc, keys.Parameters{"privkeys": {keyPEM(t, carol.key)}, "privkeys-passwords": {nil}, "x509s": {carol.cert.Raw}}); err == nil {
		t.Error("ocicrypt opens it for a stranger")
	}
}

// ocicryptAdds has ocicrypt add a recipient to what was wrapped here.
func ocicryptAdds(ciphertext []byte, desc ocispec.Descriptor, params keys.Parameters, more holder) error {
	wrapping.Lock()
	defer wrapping.Unlock()
	cc, err := config.EncryptWithPkcs7([][]byte{more.cert.Raw})
	if err != nil {
		return err
	}
	cc.EncryptConfig.DecryptConfig = *ocicryptDecryptConfig(params)
	_, finish, err := ocicrypt.EncryptLayer(cc.EncryptConfig, bytes.NewReader(ciphertext), desc)
	if err != nil {
		return err
	}
	if desc.Annotations, err = finish(); err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(more.key)
	if err != nil {
		return err
	}
	got, err := ocicryptDecrypt(ciphertext, desc, keys.Parameters{"privkeys": {der}, "privkeys-passwords": {nil}, "x509s": {more.cert.Raw}})
	if err == nil && got != plaintext {
		err = fmt.Errorf("got %q", got)
	}
	return err
}

// Both at once in one process, as in a program that uses ocicrypt, too. The race detector
// watches.
func TestParallelWithOcicrypt(t *testing.T) {
	t.Parallel()
	alice := find("alice")
	r, id, only := newRecipient(t, alice.cert), newIdentity(t, alice), alone(t, alice)
	portable, err := id.Parameters()
	if err != nil {
		t.Fatal(err)
	}
	other := ocipkcs7.NewKeyWrapper()
	var wg sync.WaitGroup
	wg.Go(func() {
		wrapping.Lock()
		defer wrapping.Unlock()
		for i := range 20 {
			ec := &config.EncryptConfig{Parameters: map[string][][]byte{"x509s": {alice.cert.Raw}}}
			data, err := other.WrapKeys(ec, []byte(fmt.Sprint("theirs ", i)))
			if err != nil {
				t.Error(err)
				return
			}
			unwrap(t, "theirs", id, fmt.Sprint("theirs ", i), packet(data))
		}
	})
	for i := range 8 {
		wg.Go(func() {
			for j := range 5 {
				secret := fmt.Sprint("ours ", i, j)
				p := wrap(t, r, secret)
				unwrap(t, "ours", id, secret, p)
				unwrap(t, "ours without certificate", only, secret, p)
				if got, err := other.UnwrapKey(ocicryptDecryptConfig(portable), p.Data); err != nil || string(got) != secret {
					t.Errorf("theirs: %q, %v", got, err)
				}
				pkcs7.Describe(p)
			}
		})
	}
	wg.Wait()
}

// What is written here has the form of what ocicrypt writes, but for one thing: the content
// is in pieces, as ocicrypt had it before 1.2.1. Those versions find no content otherwise,
// which is why they do not open what is written by later ones.
func TestWireFormat(t *testing.T) {
	t.Parallel()
	alice := find("alice")
	ours := wrap(t, newRecipient(t, alice.cert), "secret").Data
	_, desc := ocicryptEncrypt(t, alice.cert.Raw)
	packets, err := layer.Packets(desc.Annotations)
	if err != nil {
		t.Fatal(err)
	}
	got, want := shape(t, ours, 0), shape(t, packets[0].Data, 0)
	if n := len(want); want[n-1] != "4 class 2 tag 0" {
		t.Fatalf("ocicrypt's content is %q", want[n-1])
	} else {
		want = append(want[:n-1], "4 class 2 tag 0, constructed", "5 class 0 tag 4")
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
}

// shape prints the elements of DER, and the values of those that are not random.
func shape(t testing.TB, der []byte, depth int) []string {
	t.Helper()
	var lines []string
	for len(der) > 0 {
		var v asn1.RawValue
		var err error
		if der, err = asn1.Unmarshal(der, &v); err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%d class %d tag %d", depth, v.Class, v.Tag)
		if v.IsCompound {
			lines = append(lines, line+", constructed")
			lines = append(lines, shape(t, v.Bytes, depth+1)...)
			continue
		}
		switch {
		case v.Class == asn1.ClassUniversal && v.Tag == asn1.TagSequence:
			// The parameters of GCM, which say to be primitive.
			lines = append(lines, line)
			lines = append(lines, shape(t, v.Bytes, depth+1)...)
			continue
		case v.Class == asn1.ClassUniversal && v.Tag != asn1.TagOctetString:
			line += fmt.Sprintf(" %x", v.Bytes)
		case v.Class == asn1.ClassUniversal && len(v.Bytes) == 256:
			line += " of 256 bytes"
		}
		lines = append(lines, line)
	}
	return lines
}
