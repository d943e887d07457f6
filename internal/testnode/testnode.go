// Package testnode starts real containerds for tests and for the demo, each with its own directory, sockets,
// namespace and configuration, next to whatever the machine runs, and removes every trace of them.
//
// A package whose tests start nodes has this TestMain:
//
//	func TestMain(m *testing.M) { testnode.Main(m) }
//
// and a test then says
//
//	n := testnode.Start(t, testnode.Config{Version: testnode.V2, DecoderPath: testenv.Build(t, "./cmd/ctd-decoder"), KeysDir: keys})
//	n.Ctr("images", "pull", ref).OK(t)
//
// Nothing special is needed for runc: containers run with its defaults, on cgroup v1 and v2, without
// systemd. Containerd 2.4 is content with Debian's runc 1.1.
package testnode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imgcrypt/internal/testenv"
)

// Version selects a containerd.
type Version string

const (
	// V2 is containerd 2.4, built by scripts/setup.
	V2 Version = "2.4"
	// V16 is the distribution's containerd 1.6.
	V16 Version = "1.6"
)

// Versions lists all, for tests that run on each.
func Versions() []Version { return []Version{V2, V16} }

// requirement is what testenv calls the version.
func (v Version) requirement() string {
	if v == V16 {
		return testenv.Containerd16
	}
	return testenv.Containerd24
}

// Config describes a node. The zero value is a containerd 2.4 that decrypts nothing.
type Config struct {
	// Version is the containerd to run; V2 if empty.
	Version Version
	// DecoderPath is the stream processor for encrypted layers, configured for the three compressions; none if empty.
	DecoderPath string
	// KeysDir is the directory that the decoder takes keys from: its --decryption-keys-path; not given to it if empty.
	KeysDir string
	// DecoderEnv are additional variables, "NAME=value", for the decoder.
	DecoderEnv []string
	// WithoutProcessors configures no decoder even with a DecoderPath.
	WithoutProcessors bool
	// ExtraTOML is appended to the configuration, so it has to begin with a table's header.
	ExtraTOML string
	// CtrPath is what Ctr runs; containerd's own ctr of this version if empty.
	CtrPath string
	// Snapshotter is the default one; overlayfs if empty, or native on a file system that cannot carry it.
	Snapshotter string
	// RootSize limits the node's disk to so many bytes, for tests that fill it; 0 is no limit.
	RootSize int64
}

// Node is a running containerd. Its methods may be called at the same time, except for Kill, Restart and Stop.
type Node struct {
	cfg         Config
	dir         string
	snapshotter string
	containerd  *testenv.Daemon // nil while stopped
}

// Start runs a node until the end of the test, which it skips where the machine cannot run one. When the
// test fails, the node's log is part of its output.
func Start(t testing.TB, cfg Config) *Node {
	t.Helper()
	cfg = cfg.withDefaults()
	testenv.Need(t, requirements(cfg.Version.requirement())...)
	n, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of containerd %s, without the loading of plugins:\n%s", cfg.Version, n.logWithoutStart())
		}
		if err := n.Stop(); err != nil {
			t.Errorf("stop containerd %s: %v", cfg.Version, err)
		}
	})
	return n
}

// Run starts a node for a program that is no test. The caller has called Isolate, and calls Stop. ctx limits
// the start only.
func Run(ctx context.Context, cfg Config) (_ *Node, err error) {
	cfg = cfg.withDefaults()
	if err := missing(cfg.Version.requirement()); err != nil {
		return nil, err
	}
	if os.Getenv(isolatedEnv) == "" {
		return nil, errors.New("testnode: not isolated: call testnode.Main from TestMain (or Isolate from main)")
	}
	n := &Node{cfg: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start containerd %s: %w", n.cfg.Version, err), n.Stop())
		}
	}()
	if n.dir, err = shortTempDir(); err != nil {
		return nil, err
	}
	for _, sub := range []string{n.rootDir(), n.path("tmp")} {
		if err := os.Mkdir(sub, 0o711); err != nil {
			return nil, err
		}
	}
	if err := n.prepareRoot(); err != nil {
		return nil, err
	}
	if err := os.WriteFile(n.path("config.toml"), []byte(n.toml()), 0o644); err != nil {
		return nil, err
	}
	return n, n.startContainerd(ctx)
}

func (c Config) withDefaults() Config {
	if c.Version == "" {
		c.Version = V2
	}
	if c.CtrPath == "" {
		c.CtrPath = "/usr/bin/ctr"
		if c.Version == V2 {
			c.CtrPath = filepath.Join(testenv.CacheBin(), "ctr")
		}
	}
	return c
}

// Kill ends containerd as a crash would: by SIGKILL, its shims and containers live on.
func (n *Node) Kill() error { return n.containerd.Kill() }

// Restart starts containerd again, with the same data: after Kill, or else after having it end orderly.
func (n *Node) Restart(ctx context.Context) error {
	if err := n.containerd.Terminate(); err != nil {
		return err
	}
	return n.startContainerd(ctx)
}

// Stop ends containerd, its shims and their containers, unmounts what is mounted below the
// node's directory, and removes it. A second call does nothing.
func (n *Node) Stop() error {
	if n.dir == "" {
		return nil
	}
	errs := []error{n.containerd.Terminate(), n.killShims(), unmountBelow(n.dir), n.removeCgroups()}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.RemoveAll(n.dir); err != nil {
		return err
	}
	n.dir = ""
	return nil
}

// Version returns the containerd that the node runs.
func (n *Node) Version() Version { return n.cfg.Version }

// Address returns the path of containerd's socket.
func (n *Node) Address() string { return n.path("c.sock") }

// Dir returns the node's directory: all that it writes is below it.
func (n *Node) Dir() string { return n.dir }

// Namespace returns the containerd namespace that Ctr works in. It is the node's own: runc's state and
// cgroups are named by namespace and container, without regard to which containerd they belong to.
func (n *Node) Namespace() string { return filepath.Base(n.dir) }

// Snapshotter returns the name of the node's default snapshotter.
func (n *Node) Snapshotter() string { return n.snapshotter }

// Pid returns the process id of containerd, 0 while it is not running.
func (n *Node) Pid() int { return n.containerd.Pid() }

// Log returns what containerd, and the decoders that it started, have logged so far.
func (n *Node) Log() string {
	log, err := os.ReadFile(n.path("log"))
	if err != nil {
		return err.Error()
	}
	return string(log)
}

// logWithoutStart is the log without the hundred lines about plugins that each start has.
func (n *Node) logWithoutStart() string {
	var b strings.Builder
	for line := range strings.Lines(n.Log()) {
		if !strings.Contains(line, "level=info") || !strings.Contains(line, "loading plugin") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func (n *Node) path(name string) string { return filepath.Join(n.dir, name) }

func (n *Node) rootDir() string { return n.path("root") }

// maxSocketPath is what fits into a sockaddr_un.
const maxSocketPath = 107

// shortTempDir makes a directory under the usual place for temporary files, or under /tmp where the paths of
// the sockets in it would become too long. The name is valid as a containerd namespace.
func shortTempDir() (string, error) {
	parent := os.TempDir()
	if len(filepath.Join(parent, "imgcrypt-0123456789", "t.sock")) > maxSocketPath {
		parent = "/tmp"
	}
	return os.MkdirTemp(parent, "imgcrypt-")
}
