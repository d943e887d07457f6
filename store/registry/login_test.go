package registry_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testfault"
	"imgcrypt/internal/testregistry"
	"imgcrypt/store/registry"
)

// password is one that nobody writes by accident.
const password = "pa55-w0rd-of-the-test"

// checkSecrets checks that neither an error nor anything that it wraps says a secret.
func checkSecrets(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, text := range []string{err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%q", err)} {
		for _, secret := range []string{password, "secret-", "Bearer ey", base64.StdEncoding.EncodeToString([]byte("user:" + password)), "X-Signature"} {
			if strings.Contains(text, secret) {
				t.Errorf("%q has the secret %q", text, secret)
			}
		}
		if strings.ContainsAny(text, "\n\x1b") {
			t.Errorf("%q is not one line", text)
		}
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		checkSecrets(t, e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			checkSecrets(t, inner)
		}
	}
}

func login(o registry.Options) registry.Options {
	o.Keychain = somebody{Username: "user", Password: password}
	return o
}

func TestTokens(t *testing.T) {
	t.Parallel()
	data := noise(20, 300_000)
	for _, field := range []string{"token", "access_token"} {
		server := &tokens{user: "user", password: password, anonymous: true, field: field}
		r := startTokens(t, server)
		s := open(t, r.Ref("app"), login(quick()))
		desc := put(t, s, layerType, data)
		checkGet(t, s, desc, data)
		reader := open(t, r.Ref("app"), quick())
		checkGet(t, reader, desc, data)
		// Who only reads asks for no more: strict servers refuse it.
		if got, want := server.scopes(), []string{"push,pull", "pull"}; !slices.Equal(got, want) {
			t.Errorf("scopes %q, want %q", got, want)
		}
		if n := server.count(); n != 2 {
			t.Errorf("%d tokens", n)
		}
	}
}

// A strict token server lets those read who may.
func TestTokensStrict(t *testing.T) {
	t.Parallel()
	server := &tokens{user: "user", password: password, anonymous: true, strict: true}
	r := startTokens(t, server)
	desc := put(t, open(t, r.Ref("app"), login(quick())), layerType, []byte("data"))
	s := open(t, r.Ref("app"), quick())
	checkGet(t, s, desc, []byte("data"))
	_, err := s.Put(t.Context(), ocispec.Descriptor{MediaType: layerType}, strings.NewReader("more"))
	if !errors.Is(err, registry.ErrForbidden) || !strings.Contains(err.Error(), "there are no credentials") {
		t.Errorf("put: %v", err)
	}
	checkSecrets(t, err)
	checkGet(t, s, desc, []byte("data"))
}

// Tokens that expire at any moment are renewed, and nothing is sent twice for it that
// cannot be.
func TestTokensExpire(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 6; n++ {
		t.Run(fmt.Sprintf("%d requests", n), func(t *testing.T) {
			t.Parallel()
			server := &tokens{user: "user", password: password}
			r := startTokens(t, server)
			server.limit(n)
			s := open(t, r.Ref("app"), login(quick()))
			data := noise(uint64(30+n), 100_000)
			got, err := s.Put(t.Context(), ocispec.Descriptor{MediaType: layerType}, once(data))
			if err != nil {
				t.Fatal(err)
			}
			checkGet(t, s, got, data)
			manifest := []byte(`{"schemaVersion":2}`)
			root := put(t, s, ocispec.MediaTypeImageManifest, manifest)
			if err := s.Tag(t.Context(), "v1", root); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Resolve(t.Context(), "v1"); err != nil || got.Digest != root.Digest {
				t.Errorf("%+v, %v", got, err)
			}
			if err := s.Delete(t.Context(), root); err != nil {
				t.Error(err)
			}
		})
	}
}

// A token that expires while a blob is downloaded is renewed where the download goes on.
func TestTokenExpiresInTheMiddle(t *testing.T) {
	t.Parallel()
	server := &tokens{user: "user", password: password}
	r := startTokens(t, server)
	proxy := testfault.Start(t, r.Host(), testfault.Rule{Method: "GET", Path: "/blobs/", Fault: testfault.Fault{
		Name: "expire and cut",
		Wrap: func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				defer server.expire()
				testfault.Cut(50_000).Wrap(next).ServeHTTP(w, req)
			})
		},
	}})
	server.host = proxy.Host()
	data := noise(40, 100_000)
	desc := put(t, open(t, proxy.Ref("app"), login(quick())), layerType, data)
	s := open(t, proxy.Ref("app"), login(quick()))
	checkGet(t, s, desc, data)
	if got := ranges(proxy); len(got) != 3 || got[0] != "" || got[1] != "bytes=50000-99999" || got[2] != got[1] {
		t.Errorf("ranges %q", got)
	}
}

// Where a server takes a whole blob before it says that the token is old, the upload is
// interrupted, and works at the second time.
func TestTokenExpiresInTheUpload(t *testing.T) {
	t.Parallel()
	server := &tokens{user: "user", password: password}
	r := startTokens(t, server)
	proxy := testfault.Start(t, r.Host(), testfault.Rule{Method: "PATCH", Fault: testfault.Fault{
		Name: "late 401",
		Wrap: func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				_, _ = io.Copy(io.Discard, req.Body)
				server.expire()
				server.check(w, req)
			})
		},
	}})
	server.host = proxy.Host()
	s := open(t, proxy.Ref("app"), login(quick()))
	data := noise(41, 100_000)
	_, err := s.Put(t.Context(), ocispec.Descriptor{MediaType: layerType}, once(data))
	if !errors.Is(err, imgcrypt.ErrInterrupted) || !strings.Contains(err.Error(), "new login in the middle") {
		t.Fatalf("got %v", err)
	}
	checkSecrets(t, err)
	desc, err := s.Put(t.Context(), ocispec.Descriptor{MediaType: layerType}, once(data))
	if err != nil {
		t.Fatal(err)
	}
	checkGet(t, s, desc, data)
}

// Many who find their token expired at once do not disturb each other.
func TestTokensInParallel(t *testing.T) {
	t.Parallel()
	server := &tokens{user: "user", password: password}
	r := startTokens(t, server)
	s := open(t, r.Ref("app"), login(quick()))
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			data := noise(uint64(50+i), 20_000)
			if i%4 == 0 {
				server.expire()
			}
			desc, err := s.Put(t.Context(), ocispec.Descriptor{MediaType: layerType}, bytes.NewReader(data))
			if err != nil {
				t.Error(err)
				return
			}
			checkGet(t, s, desc, data)
		})
	}
	wg.Wait()
}

func TestLoginFails(t *testing.T) {
	t.Parallel()
	ca := testregistry.NewAuthority(t)
	debian := testregistry.StartDebianWith(t, testregistry.DebianOptions{TLS: ca, User: "user", Password: password})
	bearer := startTokens(t, &tokens{user: "user", password: password})
	for _, c := range []struct {
		name     string
		keychain authn.Keychain
		host     *testregistry.Registry
		text     string
	}{
		{"basic, nobody", nobody{}, debian, "wants a login, and there are no credentials"},
		{"basic, wrong password", somebody{Username: "user", Password: "x" + password}, debian, "does not accept the credentials"},
		{"token, nobody", nobody{}, bearer, "wants a login, and there are no credentials"},
		{"token, wrong password", somebody{Username: "user", Password: "x" + password}, bearer, "does not accept the credentials"},
		{"broken keychain", broken{}, bearer, "the credentials cannot be read: exit status 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := quick()
			o.Keychain, o.CAFile = c.keychain, ca.File
			s := open(t, c.host.Ref("app"), o)
			_, err := s.Resolve(t.Context(), "v1")
			_, open := s.Open(t.Context(), descOf(layerType, []byte("data")))
			_, put := s.Put(t.Context(), ocispec.Descriptor{MediaType: layerType}, strings.NewReader("data"))
			for _, err := range []error{err, open, put} {
				if !errors.Is(err, registry.ErrUnauthorized) || !strings.Contains(err.Error(), c.text) {
					t.Errorf("got %v, want %q", err, c.text)
				}
				checkSecrets(t, err)
			}
		})
	}
}

type broken struct{}

func (broken) Resolve(authn.Resource) (authn.Authenticator, error) {
	return nil, errors.New("exit status 1\n" + password)
}

// Credentials that change while the store is open are asked for again.
func TestCredentialsChange(t *testing.T) {
	t.Parallel()
	server := &tokens{user: "user", password: password}
	r := startTokens(t, server)
	desc := put(t, open(t, r.Ref("app"), login(quick())), layerType, []byte("data"))
	// A token that is good, and then one that is not: the keychain's second answer.
	keychain := &changing{}
	o := quick()
	o.Keychain = keychain
	server.mu.Lock()
	server.valid["first"], server.valid["second"] = []string{"repository:app:pull"}, []string{"repository:app:pull"}
	server.mu.Unlock()
	s := open(t, r.Ref("app"), o)
	checkGet(t, s, desc, []byte("data"))
	server.mu.Lock()
	delete(server.valid, "first")
	server.mu.Unlock()
	checkGet(t, s, desc, []byte("data"))
}

type changing struct {
	mu    sync.Mutex
	calls int
}

func (c *changing) Resolve(authn.Resource) (authn.Authenticator, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	return authn.FromConfig(authn.AuthConfig{RegistryToken: []string{"first", "second"}[min(c.calls, 2)-1]}), nil
}

// A redirect to another server takes no credentials along, and its address, which may
// grant access, is in no error.
func TestRedirect(t *testing.T) {
	t.Parallel()
	data := noise(42, 100_000)
	desc := descOf(layerType, data)
	var mu sync.Mutex
	var seen []http.Header
	status := http.StatusOK
	storage := testregistry.StartWith(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, req.Header.Clone())
			if status != http.StatusOK {
				w.WriteHeader(status)
				w.Write([]byte("<Error>" + req.URL.String() + "</Error>"))
				return
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			w.Write(data)
		})
	})
	server := &tokens{user: "user", password: password}
	r := startTokens(t, server)
	put(t, open(t, r.Ref("app"), login(quick())), layerType, data)
	proxy := testfault.Start(t, r.Host(), testfault.Rule{Method: "GET", Path: "/blobs/", Times: -1, Fault: testfault.Fault{
		Name: "redirect",
		Wrap: func(http.Handler) http.Handler {
			return http.RedirectHandler("http://"+storage.Host()+"/blob?X-Signature=secret-abc", http.StatusTemporaryRedirect)
		},
	}})
	server.host = proxy.Host()
	s := open(t, proxy.Ref("app"), login(quick()))
	checkGet(t, s, desc, data)
	mu.Lock()
	status = http.StatusForbidden
	mu.Unlock()
	_, err := get(t.Context(), s, desc)
	if !errors.Is(err, registry.ErrForbidden) {
		t.Errorf("got %v", err)
	}
	checkSecrets(t, err)
	if err := storage.Close(); err != nil {
		t.Error(err)
	}
	_, err = get(t.Context(), s, desc)
	if !errors.Is(err, registry.ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	checkSecrets(t, err)
	for _, h := range seen {
		if h.Get("Authorization") != "" || h.Get("Cookie") != "" {
			t.Errorf("headers %v", h)
		}
	}
}

// The files of docker login and podman login are found as go-containerregistry finds
// them.
func TestDefaultKeychain(t *testing.T) {
	// Not parallel: it sets the environment.
	server := &tokens{user: "user", password: password}
	r := startTokens(t, server)
	file := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.Host(), base64.StdEncoding.EncodeToString([]byte("user:"+password)))
	for name, path := range map[string]string{"docker": ".docker/config.json", "podman": ".config/containers/auth.json"} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			for _, variable := range []string{"DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"} {
				t.Setenv(variable, "")
			}
			t.Setenv("HOME", home)
			path := filepath.Join(home, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
				t.Fatal(err)
			}
			o := quick()
			o.Keychain = nil
			put(t, open(t, r.Ref("app"), o), layerType, []byte("data of "+name))
		})
	}
}

// Who waits for the login of another one can be cancelled.
func TestLoginCancelled(t *testing.T) {
	t.Parallel()
	began := make(chan struct{}, 1)
	release := make(chan struct{})
	r := testregistry.StartWith(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			select {
			case began <- struct{}{}:
			default:
			}
			<-release
			next.ServeHTTP(w, req)
		})
	})
	s := open(t, r.Ref("app"), quick())
	done := make(chan error, 1)
	go func() {
		_, err := s.Has(t.Context(), descOf(layerType, nil))
		done <- err
	}()
	<-began
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Has(ctx, descOf(layerType, nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
