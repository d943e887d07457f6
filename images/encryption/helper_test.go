package encryption_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/log"
	"github.com/containers/ocicrypt"
	encconfig "github.com/containers/ocicrypt/config"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/internal/testimage"
)

// containerd's content store warns about each file system without fs-verity, and its
// service logs each failure.
func TestMain(m *testing.M) {
	if err := log.SetLevel("fatal"); err != nil {
		panic(err)
	}
	m.Run()
}

// must is for what only fails where the machine is broken.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// labels is the store of labels that containerd's local content store asks for.
type labels struct {
	mu   sync.Mutex
	sets map[digest.Digest]map[string]string
}

func (l *labels) Get(d digest.Digest) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.sets[d]), nil
}

func (l *labels) Set(d digest.Digest, set map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sets[d] = maps.Clone(set)
	return nil
}

func (l *labels) Update(d digest.Digest, set map[string]string) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sets[d] == nil {
		l.sets[d] = map[string]string{}
	}
	for key, value := range set {
		if l.sets[d][key] = value; value == "" {
			delete(l.sets[d], key)
		}
	}
	return maps.Clone(l.sets[d]), nil
}

// newContent returns containerd's content store over an empty directory, which is
// also that of an OCI layout.
func newContent(tb testing.TB) (cs content.Store, dir string) {
	tb.Helper()
	dir = tb.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		tb.Fatal(err)
	}
	cs, err := local.NewLabeledStore(dir, &labels{sets: map[digest.Digest]map[string]string{}})
	if err != nil {
		tb.Fatal(err)
	}
	return cs, dir
}

// writeImage puts an image into the directory of a content store.
func writeImage(tb testing.TB, dir string, spec testimage.Spec) ocispec.Descriptor {
	tb.Helper()
	desc, err := spec.Write(dir, "")
	if err != nil {
		tb.Fatal(err)
	}
	return desc
}

// checkNoIngests checks that nothing half-written is left.
func checkNoIngests(tb testing.TB, cs content.Store) {
	tb.Helper()
	statuses, err := cs.ListStatuses(context.Background())
	if err != nil || len(statuses) > 0 {
		tb.Errorf("left behind: %v, %v", statuses, err)
	}
}

func blobs(tb testing.TB, cs content.Store) map[digest.Digest]bool {
	tb.Helper()
	all := map[digest.Digest]bool{}
	err := cs.Walk(context.Background(), func(info content.Info) error {
		all[info.Digest] = true
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return all
}

// pair is a key pair in the forms that ocicrypt's configurations take.
type pair struct {
	public, private []byte
}

func newPair() pair {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	return pair{
		public:  must(x509.MarshalPKIXPublicKey(key.Public())),
		private: must(x509.MarshalPKCS8PrivateKey(key)),
	}
}

// encrypts is the configuration that encrypts for p, and opens with p's and others' keys.
func (p pair) encrypts(others ...pair) *encconfig.CryptoConfig {
	return &encconfig.CryptoConfig{EncryptConfig: &encconfig.EncryptConfig{
		Parameters:    map[string][][]byte{"pubkeys": {p.public}},
		DecryptConfig: *p.opens(others...),
	}}
}

func (p pair) opens(others ...pair) *encconfig.DecryptConfig {
	dc := &encconfig.DecryptConfig{Parameters: map[string][][]byte{
		"privkeys": {p.private}, "privkeys-passwords": {{}},
	}}
	for _, other := range others {
		dc.Parameters["privkeys"] = append(dc.Parameters["privkeys"], other.private)
		dc.Parameters["privkeys-passwords"] = append(dc.Parameters["privkeys-passwords"], []byte{})
	}
	return dc
}

func (p pair) decrypts() *encconfig.CryptoConfig {
	return &encconfig.CryptoConfig{DecryptConfig: p.opens()}
}

func readBlob(tb testing.TB, cs content.Provider, desc ocispec.Descriptor) []byte {
	tb.Helper()
	data, err := content.ReadBlob(context.Background(), cs, desc)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

func readJSON[T any](tb testing.TB, cs content.Provider, desc ocispec.Descriptor) T {
	tb.Helper()
	var v T
	if err := json.Unmarshal(readBlob(tb, cs, desc), &v); err != nil {
		tb.Fatal(err)
	}
	return v
}

// foreign encrypts a manifest as other programs do, with ocicrypt: layer i for
// recipients[i], where that is not nil.
func foreign(tb testing.TB, cs content.Store, dir string, desc ocispec.Descriptor, recipients ...*pair) ocispec.Descriptor {
	tb.Helper()
	manifest := readJSON[ocispec.Manifest](tb, cs, desc)
	for i, recipient := range recipients {
		if recipient == nil {
			continue
		}
		plain := manifest.Layers[i]
		r, finish, err := ocicrypt.EncryptLayer(recipient.encrypts().EncryptConfig, bytes.NewReader(readBlob(tb, cs, plain)), plain)
		if err != nil {
			tb.Fatal(err)
		}
		sealed := must(testimage.PutBlob(dir, plain.MediaType+"+encrypted", must(io.ReadAll(r))))
		sealed.Annotations = must(finish())
		manifest.Layers[i] = sealed
	}
	made := must(testimage.PutBlob(dir, desc.MediaType, must(json.Marshal(manifest))))
	made.Platform = desc.Platform
	return made
}
