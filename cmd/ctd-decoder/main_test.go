package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"sync"
	"testing"

	encconfig "github.com/containers/ocicrypt/config"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
)

// modeEnv makes the test program a decoder with one thing changed, so that the
// decoder itself needs no switches for tests.
const modeEnv = "CTD_DECODER_TEST_MODE"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == holdArg {
		main()
	}
	std := processStdio()
	switch mode := os.Getenv(modeEnv); mode {
	case "":
		os.Exit(m.Run())
	case "unchanged":
	case "no keeper":
		std.keep = func() (keeper, error) { return noKeeper{}, nil }
	case "keeper cannot start":
		std.keep = func() (keeper, error) {
			return keepOpen(os.Stdout, func() (string, error) { return "/nonexistent", nil }, true)
		}
	case "keeper ends at once":
		std.keep = func() (keeper, error) {
			return keepOpen(os.Stdout, func() (string, error) { return "/bin/true", nil }, true)
		}
	case "panic":
		std.in = panicReader{}
	case "crash":
		std.in = crashReader{}
	}
	os.Exit(run(os.Args[1:], std))
}

// secretText stands for what must never be shown.
const secretText = "0123456789-the-secret"

type panicReader struct{}

func (panicReader) Read([]byte) (int, error) { panic(errors.New(secretText)) }

// crashReader ends the process in a way that nothing in it can catch.
type crashReader struct{}

func (crashReader) Read([]byte) (int, error) {
	go panic("crash")
	select {}
}

// keyPair is an EC key: PKCS#8 private, PKIX public, both PEM.
func keyPair(t testing.TB) (private, public []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub})
}

// encrypted is one layer, and who can open it.
type encrypted struct {
	plain, sealed []byte
	desc          ocispec.Descriptor
	private       []byte
}

// sealing is slow enough to do once per size.
var sealings sync.Map

// seal encrypts size random bytes. What it returns is the caller's own, but for
// the ciphertext.
func seal(t testing.TB, size int) encrypted {
	t.Helper()
	once, _ := sealings.LoadOrStore(size, sync.OnceValue(func() encrypted { return sealNew(t, size) }))
	e := once.(func() encrypted)()
	annotations := map[string]string{}
	for k, v := range e.desc.Annotations {
		annotations[k] = v
	}
	e.desc.Annotations = annotations
	return e
}

func sealNew(t testing.TB, size int) encrypted {
	t.Helper()
	var e encrypted
	e.plain = make([]byte, size)
	_, _ = rand.Read(e.plain)
	s, err := layer.NewSealer(bytes.NewReader(e.plain), "", -1)
	if err != nil {
		t.Fatal(err)
	}
	if e.sealed, err = io.ReadAll(s); err != nil {
		t.Fatal(err)
	}
	info, err := s.Sealed()
	if err != nil {
		t.Fatal(err)
	}
	private, public := keyPair(t)
	e.private = private
	recipients, err := schemes.All(schemes.Options{})[0].Recipients(t.Context(), keys.Parameters{keys.ParamPublicKeys: {public}})
	if err != nil {
		t.Fatal(err)
	}
	secret, err := layer.MarshalSecret(info.Secret)
	if err != nil {
		t.Fatal(err)
	}
	packet, err := recipients[0].Wrap(t.Context(), secret)
	if err != nil {
		t.Fatal(err)
	}
	e.desc = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip + "+encrypted",
		Digest:    info.Digest,
		Size:      info.Size,
		Annotations: map[string]string{
			layer.KeysAnnotationPrefix + packet.Scheme: layer.AddPacket("", packet),
			layer.PublicAnnotation:                     public64(t, info.Public.MAC),
		},
	}
	return e
}

func public64(t testing.TB, mac []byte) string {
	t.Helper()
	text, err := layer.MarshalPublic(layer.Public{MAC: mac})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// payload is what a client sends for e, with these private keys.
func (e encrypted) payload(privateKeys ...[]byte) *imgcrypt.Payload {
	return &imgcrypt.Payload{
		DecryptConfig: encconfig.DecryptConfig{Parameters: map[string][][]byte{"privkeys": privateKeys}},
		Descriptor:    e.desc,
	}
}

// flip returns a copy of data with one bit different.
func flip(data []byte, at int) []byte {
	c := bytes.Clone(data)
	c[at] ^= 1
	return c
}
