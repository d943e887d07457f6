package registry_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testfault"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testregistry"
	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
	"imgcrypt/store"
	"imgcrypt/store/registry"
)

// pair makes a recipient and its identity.
func pair(t *testing.T) (keys.Recipient, keys.Identity) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	recipients, err := jwe.Scheme().Recipients(t.Context(), keys.Parameters{keys.ParamPublicKeys: {public}})
	if err != nil {
		t.Fatal(err)
	}
	identity, err := jwe.Scheme().Identity(keys.Key{Label: "test.key", Data: private})
	if err != nil {
		t.Fatal(err)
	}
	return recipients[0], identity
}

// patches keeps what was sent.
type patches struct {
	mu     sync.Mutex
	bodies [][]byte
}

func (p *patches) fault(inner testfault.Fault) testfault.Fault {
	return testfault.Fault{Name: inner.Name, Wrap: func(next http.Handler) http.Handler {
		handler := inner.Wrap(next)
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			var kept bytes.Buffer
			req.Body = struct {
				io.Reader
				io.Closer
			}{io.TeeReader(req.Body, &kept), req.Body}
			defer func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.bodies = append(p.bodies, kept.Bytes())
			}()
			handler.ServeHTTP(w, req)
		})
	}}
}

// An image is encrypted from one repository into another while everything breaks, and
// decrypted again: it is the same. What was sent of a layer before the connection broke
// has nothing to do with what was sent afterwards.
func TestEncryptUnderFaults(t *testing.T) {
	t.Parallel()
	r := testregistry.Start(t)
	dir := t.TempDir()
	spec := testimage.Spec{Layers: []testimage.Layer{{RandomSize: 2 << 20}}, Index: true, Attestations: true}
	plain, err := spec.Write(dir, "v1")
	if err != nil {
		t.Fatal(err)
	}
	r.PushDescriptor(t, dir, plain, "plain:v1")
	sent := new(patches)
	proxy := testfault.Start(t, r.Host(),
		testfault.Rule{Method: "GET", Path: "/plain/blobs/", Times: 3, Fault: testfault.Cut(700_000)},
		testfault.Rule{Method: "GET", Path: "/plain/manifests/", Times: 2, Fault: testfault.Cut(10)},
		testfault.Rule{Method: "POST", Times: 2, Fault: testfault.Drop()},
		testfault.Rule{Method: "PATCH", Path: "/secret/", Times: 2, Fault: sent.fault(testfault.CutUp(1 << 20))},
		testfault.Rule{Method: "PATCH", Path: "/secret/", Times: -1, Fault: sent.fault(testfault.CutUp(1 << 60))},
		testfault.Rule{Method: "PUT", Path: "/blobs/", Times: 2, Fault: testfault.Lose()},
		testfault.Rule{Method: "PUT", Path: "/manifests/", Times: 2, Fault: testfault.Answer(503, "", "")},
	)
	src, secret := open(t, proxy.Ref("plain"), quick()), open(t, proxy.Ref("secret"), quick())
	recipient, identity := pair(t)
	encrypted, err := imgcrypt.Encrypt(t.Context(), store.NewTransfer(src, secret, store.TransferOptions{}), plain,
		imgcrypt.EncryptOptions{Recipients: []keys.Recipient{recipient}})
	if err != nil {
		t.Fatal(err)
	}
	if err := secret.Tag(t.Context(), "v1", encrypted.Desc); err != nil {
		t.Fatal(err)
	}
	checkFresh(t, sent)
	again := open(t, proxy.Ref("again"), quick())
	decrypted, err := imgcrypt.Decrypt(t.Context(), store.NewTransfer(secret, again, store.TransferOptions{}), encrypted.Desc,
		imgcrypt.DecryptOptions{Identities: []keys.Identity{identity}})
	if err != nil {
		t.Fatal(err)
	}
	if decrypted.Desc.Digest != plain.Digest {
		t.Errorf("decrypted to %s, want %s", decrypted.Desc.Digest, plain.Digest)
	}
	checkWhole(t, again, decrypted.Desc)
}

// checkFresh checks that no two of the large pieces that were sent begin alike, or are
// the same text under the same key stream.
func checkFresh(t *testing.T, sent *patches) {
	t.Helper()
	sent.mu.Lock()
	defer sent.mu.Unlock()
	var large [][]byte
	for _, body := range sent.bodies {
		if len(body) >= 1<<20 {
			large = append(large, body[:1<<20])
		}
	}
	if len(large) < 3 {
		t.Fatalf("%d large pieces", len(large))
	}
	for i := range large {
		for j := range i {
			// Under one key stream, equal texts would be equal all over.
			if bytes.Equal(large[i][1<<19:], large[j][1<<19:]) || slices.Equal(large[i][:16], large[j][:16]) {
				t.Errorf("the pieces %d and %d are encrypted alike", i, j)
			}
		}
	}
}

// checkWhole reads an image and all that it refers to.
func checkWhole(t *testing.T, s *registry.Store, desc ocispec.Descriptor) {
	t.Helper()
	text, err := get(t.Context(), s, desc)
	if err != nil {
		t.Error(err)
		return
	}
	var refers struct {
		Config            *ocispec.Descriptor
		Layers, Manifests []ocispec.Descriptor
	}
	if imgcrypt.IsManifest(desc) {
		if err := json.Unmarshal(text, &refers); err != nil {
			t.Error(err)
		}
	}
	if refers.Config != nil {
		refers.Layers = append(refers.Layers, *refers.Config)
	}
	for _, child := range append(refers.Layers, refers.Manifests...) {
		checkWhole(t, s, child)
	}
}
