package testregistry

import (
	"crypto/tls"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"imgcrypt/internal/testenv"
)

// DockerRegistry is testenv's name for what StartDebian needs.
const DockerRegistry = "docker-registry"

// DebianOptions are how Debian's docker-registry is run. With the zero value it speaks plain http and lets everybody in.
type DebianOptions struct {
	// TLS makes it speak https, with a certificate of this authority for 127.0.0.1 and localhost.
	TLS *Authority
	// User and Password are what it asks for, unless they are empty.
	User, Password string
	// NoDelete makes it refuse to delete.
	NoDelete bool
}

// StartDebian runs Debian's docker-registry, which keeps blobs in files, until the end of the test, which it skips where
// there is none. When the test fails, the registry's log is part of its output.
func StartDebian(t testing.TB) *Registry {
	t.Helper()
	return StartDebianWith(t, DebianOptions{})
}

// StartDebianWith is StartDebian with options.
func StartDebianWith(t testing.TB, o DebianOptions) *Registry {
	t.Helper()
	testenv.Need(t, DockerRegistry)
	program, err := testenv.LookPath(DockerRegistry)
	if err != nil {
		t.Fatal(err)
	}
	d := &debian{program: program, dir: t.TempDir(), options: o}
	if o.TLS != nil {
		d.cert, d.key = o.TLS.Pair(t, "127.0.0.1", "localhost")
	}
	if o.User != "" {
		d.writePassword(t)
	}
	// Between the choice of a port and its use another process may take it: then the next one.
	for range 5 {
		var r *Registry
		if r, err = d.start(); err == nil {
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("log of %s:\n%s", DockerRegistry, d.log())
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

// Uploads lists the uploads that have been begun and neither ended nor cancelled, of StartDebian's registry only. Of a cancelled
// one that registry keeps an empty directory with the state of its digest, which nobody finds any more.
func (r *Registry) Uploads(t testing.TB) []string {
	t.Helper()
	var uploads []string
	err := filepath.WalkDir(r.data, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == "startedat" {
			uploads = append(uploads, filepath.Dir(path))
		}
		if os.IsNotExist(err) {
			// It has just been removed, or there is nothing yet.
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return uploads
}

// debian is a docker-registry to be started.
type debian struct {
	program, dir string
	options      DebianOptions
	cert, key    string
}

func (d *debian) writePassword(t testing.TB) {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(d.options.Password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	line := d.options.User + ":" + string(hash) + "\n"
	if err := os.WriteFile(d.passwords(), []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (d *debian) passwords() string { return filepath.Join(d.dir, "htpasswd") }

func (d *debian) start() (*Registry, error) {
	host, err := freeAddress()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(d.dir, "config.yml")
	if err := os.WriteFile(config, []byte(d.config(host)), 0o644); err != nil {
		return nil, err
	}
	logFile, err := os.OpenFile(filepath.Join(d.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	cmd := exec.Command(d.program, "serve", config)
	// Without the caller's environment: the registry takes settings from REGISTRY_… variables.
	cmd.Env = []string{"PATH=/usr/bin:/bin", "OTEL_TRACES_EXPORTER=none"}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	daemon, err := testenv.StartDaemon(cmd)
	if err != nil {
		return nil, err
	}
	r := &Registry{host: host, stop: daemon.Terminate, data: filepath.Join(d.dir, "data"), user: d.options.User, password: d.options.Password}
	if d.options.TLS != nil {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: d.options.TLS.Pool()}}
		r.scheme, r.client = "https", &http.Client{Transport: transport}
		r.stop = func() error {
			transport.CloseIdleConnections()
			return daemon.Terminate()
		}
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if r.ready() {
			return r, nil
		}
		select {
		case <-daemon.Ended():
			return nil, fmt.Errorf("%s ended at once:\n%s", DockerRegistry, d.log())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil, fmt.Errorf("%s does not answer (stopped: %v):\n%s", DockerRegistry, daemon.Kill(), d.log())
}

// config allows manifests whose layers are elsewhere (urls), as public registries do.
func (d *debian) config(host string) string {
	lines := []string{
		"version: 0.1",
		"log: {level: info, accesslog: {disabled: false}}",
		fmt.Sprintf("storage: {filesystem: {rootdirectory: %s}, delete: {enabled: %v}}", filepath.Join(d.dir, "data"), !d.options.NoDelete),
		"http:",
		"  addr: '" + host + "'",
		"  secret: test",
	}
	if d.cert != "" {
		lines = append(lines, "  tls: {certificate: "+d.cert+", key: "+d.key+"}")
	}
	lines = append(lines, "validation: {manifests: {urls: {allow: ['^https?://']}}}")
	if d.options.User != "" {
		lines = append(lines, "auth: {htpasswd: {realm: test, path: "+d.passwords()+"}}")
	}
	return strings.Join(lines, "\n") + "\n"
}

func (d *debian) log() string {
	data, err := os.ReadFile(filepath.Join(d.dir, "log"))
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
