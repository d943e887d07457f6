// Package testregistry runs container registries for tests on 127.0.0.1: go-containerregistry's in this
// process, and Debian's docker-registry. Push fills them with images exactly as they are in an OCI layout.
package testregistry

import (
	"bytes"
	"cmp"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Registry is a running registry. Unless it was started with other options it speaks plain http and asks for no credentials.
type Registry struct {
	host string
	stop func() error
	// How to talk to it: by http with the default client, and without credentials, where these are zero.
	scheme         string
	client         *http.Client
	user, password string
	// data is the directory of StartDebian's.
	data string

	mu       sync.Mutex
	requests []string
}

// Host returns the registry's address as it stands in references: "127.0.0.1:PORT".
func (r *Registry) Host() string { return r.host }

// Ref returns the full reference of an image in the registry, "127.0.0.1:PORT/app:v1" for "app:v1".
func (r *Registry) Ref(name string) string { return r.host + "/" + name }

// Requests lists the requests since the start or the last Forget, "PUT /v2/app/manifests/v1", in the order in
// which they came. Of StartDebian's registry they are not known.
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// Forget empties the list of requests.
func (r *Registry) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

// Close ends the registry.
func (r *Registry) Close() error { return r.stop() }

// Start runs go-containerregistry's registry in this process until the end of the test. It keeps blobs in memory.
func Start(t testing.TB) *Registry {
	t.Helper()
	return StartWith(t, nil)
}

// StartWith is Start with a handler around the registry's, for tests of what goes wrong on the way.
func StartWith(t testing.TB, wrap func(http.Handler) http.Handler) *Registry {
	t.Helper()
	r, err := New(wrap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// New is StartWith for programs that are no tests; wrap may be nil.
func New(wrap func(http.Handler) http.Handler) (*Registry, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	handler := wholeManifests(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true)))
	if wrap != nil {
		handler = wrap(handler)
	}
	r := &Registry{host: listener.Addr().String()}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			r.mu.Lock()
			r.requests = append(r.requests, req.Method+" "+req.URL.Path)
			r.mu.Unlock()
			handler.ServeHTTP(w, req)
		}),
		ErrorLog:          log.New(io.Discard, "", 0),
		ReadHeaderTimeout: time.Minute,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	r.stop = sync.OnceValue(func() error {
		err := server.Close()
		<-served
		return err
	})
	return r, nil
}

// wholeManifests keeps what is left of a manifest whose connection broke from the registry, which would store it.
func wholeManifests(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodPut && strings.Contains(req.URL.Path, "/manifests/") {
			text, err := io.ReadAll(req.Body)
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			req.Body = io.NopCloser(bytes.NewReader(text))
		}
		next.ServeHTTP(w, req)
	})
}

// ready says whether the registry answers.
func (r *Registry) ready() bool {
	req, err := http.NewRequest(http.MethodGet, r.url("/v2/"), nil)
	if err != nil {
		return false
	}
	resp, err := r.do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// url returns the URL of a path in the registry.
func (r *Registry) url(path string) string { return cmp.Or(r.scheme, "http") + "://" + r.host + path }

// do sends a request with the registry's credentials, if it asks for some.
func (r *Registry) do(req *http.Request) (*http.Response, error) {
	if r.user != "" {
		req.SetBasicAuth(r.user, r.password)
	}
	return cmp.Or(r.client, http.DefaultClient).Do(req)
}
