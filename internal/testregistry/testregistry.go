// Package testregistry runs container registries for tests on 127.0.0.1: go-containerregistry's in this
// process, and Debian's docker-registry. Push fills them with images exactly as they are in an OCI layout.
package testregistry

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"imgcrypt/internal/testenv"
)

// DockerRegistry is testenv's name for what StartDebian needs.
const DockerRegistry = "docker-registry"

// Registry is a running registry that speaks plain http and asks for no credentials.
type Registry struct {
	host string
	stop func() error

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
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))
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
	r.stop = func() error {
		err := server.Close()
		<-served
		return err
	}
	return r, nil
}

// StartDebian runs Debian's docker-registry, which keeps blobs in files, until the end of the test, which it skips where
// there is none. When the test fails, the registry's log is part of its output.
func StartDebian(t testing.TB) *Registry {
	t.Helper()
	testenv.Need(t, DockerRegistry)
	program, err := testenv.LookPath(DockerRegistry)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// Between the choice of a port and its use another process may take it: then the next one.
	for range 5 {
		var r *Registry
		if r, err = startDebian(program, dir); err == nil {
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("log of %s:\n%s", DockerRegistry, readLog(dir))
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			})
			return r
		}
	}
	t.Fatal(err)
	return nil
}

func startDebian(program, dir string) (*Registry, error) {
	host, err := freeAddress()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(config, []byte(debianConfig(host, dir)), 0o644); err != nil {
		return nil, err
	}
	logFile, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	cmd := exec.Command(program, "serve", config)
	// Without the caller's environment: the registry takes settings from REGISTRY_… variables.
	cmd.Env = []string{"PATH=/usr/bin:/bin", "OTEL_TRACES_EXPORTER=none"}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	daemon, err := testenv.StartDaemon(cmd)
	if err != nil {
		return nil, err
	}
	r := &Registry{host: host, stop: daemon.Terminate}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if ready(host) {
			return r, nil
		}
		select {
		case <-daemon.Ended():
			return nil, fmt.Errorf("%s ended at once:\n%s", DockerRegistry, readLog(dir))
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil, fmt.Errorf("%s does not answer (stopped: %v):\n%s", DockerRegistry, daemon.Kill(), readLog(dir))
}

// debianConfig allows manifests whose layers are elsewhere (urls), as public registries do.
func debianConfig(host, dir string) string {
	return strings.Join([]string{
		"version: 0.1",
		"log: {level: info, accesslog: {disabled: false}}",
		"storage: {filesystem: {rootdirectory: " + filepath.Join(dir, "data") + "}, delete: {enabled: true}}",
		"http: {addr: '" + host + "', secret: test}",
		"validation: {manifests: {urls: {allow: ['^https?://']}}}",
		"",
	}, "\n")
}

func readLog(dir string) string {
	data, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func ready(host string) bool {
	resp, err := http.Get("http://" + host + "/v2/")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
