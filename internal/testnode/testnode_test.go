package testnode_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testregistry"
)

func TestMain(m *testing.M) { testnode.Main(m) }

const imageName = "example.test/hello:v1"

// archive builds an image that runs and returns its tar.
func archive(t *testing.T) string {
	t.Helper()
	testenv.Need(t, testenv.Busybox)
	spec, err := testimage.Runnable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := spec.Write(filepath.Join(dir, "layout"), imageName); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "image.tar")
	if err := testimage.ArchiveFile(file, filepath.Join(dir, "layout")); err != nil {
		t.Fatal(err)
	}
	return file
}

// Both containerds run side by side, with a container of the same name in each.
func TestRunContainer(t *testing.T) {
	for _, version := range testnode.Versions() {
		for _, snapshotter := range []string{"", "native"} {
			t.Run(string(version)+" "+snapshotter, func(t *testing.T) {
				t.Parallel()
				n := testnode.Start(t, testnode.Config{Version: version, Snapshotter: snapshotter})
				t.Log(n.Ctr("version").OK(t))
				t.Log(n.Ctr("images", "import", archive(t)).OK(t))
				run := n.Ctr("run", "--rm", "--snapshotter", n.Snapshotter(), imageName, "c1").OK(t)
				t.Log(run)
				if run.Stdout != "Hello World!\n" {
					t.Errorf("output %q", run.Stdout)
				}
				exit := n.Ctr("run", "--rm", "--snapshotter", n.Snapshotter(), imageName, "c2", "/bin/sh", "-c", "echo no >&2; exit 7")
				t.Log(exit)
				if exit.Code != 7 || exit.Stderr != "no\n" {
					t.Errorf("got %v, want exit code 7", exit)
				}
				n.Clean(t)
			})
		}
	}
}

// What runs on when the test ends is ended and removed, also after a crash of containerd.
func TestStopLeavesNothing(t *testing.T) {
	for _, version := range testnode.Versions() {
		for _, crash := range []bool{false, true} {
			name := string(version)
			if crash {
				name += " after a crash"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				n := testnode.Start(t, testnode.Config{Version: version})
				n.Ctr("images", "import", archive(t)).OK(t)
				n.Ctr("run", "--detach", imageName, "sleeper", "/bin/sleep", "12345").OK(t)
				dir, namespace := n.Dir(), n.Namespace()
				if got := traces(t, dir, namespace); !strings.Contains(got, "containerd-shim") {
					t.Fatalf("no shim among %q", got)
				}
				if crash {
					if err := n.Kill(); err != nil {
						t.Fatal(err)
					}
				}
				if err := n.Stop(); err != nil {
					t.Fatal(err)
				}
				if got := traces(t, dir, namespace); got != "" {
					t.Errorf("left behind:\n%s", got)
				}
			})
		}
	}
}

// traces lists processes, mounts, control groups and files that mention a node.
func traces(t *testing.T, dir, namespace string) string {
	t.Helper()
	var found []string
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range cmdlines {
		cmdline, _ := os.ReadFile(file)
		if line := strings.ReplaceAll(string(cmdline), "\x00", " "); strings.Contains(line, dir) {
			found = append(found, line)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			found = append(found, line)
		}
	}
	for _, pattern := range []string{dir, "/sys/fs/cgroup/*/" + namespace, "/sys/fs/cgroup/" + namespace} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, paths...)
	}
	return strings.Join(found, "\n")
}

func TestRestart(t *testing.T) {
	t.Parallel()
	for _, version := range testnode.Versions() {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			n := testnode.Start(t, testnode.Config{Version: version})
			n.Ctr("images", "import", archive(t)).OK(t)
			if err := n.Kill(); err != nil {
				t.Fatal(err)
			}
			n.Ctr("--connect-timeout", "1s", "images", "ls").Fails(t)
			if err := n.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if out := n.Ctr("images", "ls", "-q").OK(t).Stdout; out != imageName+"\n" {
				t.Errorf("images after the restart: %q", out)
			}
			n.Ctr("run", "--detach", imageName, "c", "/bin/sleep", "12345").OK(t)
			if err := n.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if out := n.Ctr("tasks", "ls").OK(t).Stdout; !strings.Contains(out, "RUNNING") {
				t.Errorf("tasks after the restart: %q", out)
			}
			n.Clean(t)
			if out := n.Ctr("images", "ls", "-q").OK(t).Stdout; out != "" {
				t.Errorf("images after cleaning: %q", out)
			}
		})
	}
}

// A disk of limited size is full when it is full.
func TestRootSize(t *testing.T) {
	t.Parallel()
	n := testnode.Start(t, testnode.Config{RootSize: 4 << 20})
	dir := t.TempDir()
	if _, err := (testimage.Spec{Layers: []testimage.Layer{{RandomSize: 8 << 20}}}).Write(dir, imageName); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "big.tar")
	if err := testimage.ArchiveFile(file, dir); err != nil {
		t.Fatal(err)
	}
	if r := n.Ctr("images", "import", file).Fails(t); !strings.Contains(r.Stderr, "no space left on device") {
		t.Error(r)
	}
}

// The machine's own /run/containerd is out of reach.
func TestIsolated(t *testing.T) {
	t.Parallel()
	testenv.Need(t, testenv.SuperUser, testenv.MountNamespace, "runc")
	out, err := exec.Command("cat", "/proc/self/mountinfo").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), " /run/containerd ") {
		t.Errorf("/run/containerd is the machine's:\n%s", out)
	}
}

// Both ways to pull, and the push, work with a registry on 127.0.0.1 without any configuration for it.
func TestPullPush(t *testing.T) {
	t.Parallel()
	testenv.Need(t, testenv.Busybox)
	registry := testregistry.Start(t)
	spec, err := testimage.Runnable()
	if err != nil {
		t.Fatal(err)
	}
	spec.Platforms = []string{"linux/amd64", "linux/arm64"}
	dir := t.TempDir()
	if _, err := spec.Write(dir, "v1"); err != nil {
		t.Fatal(err)
	}
	ref := registry.Push(t, dir, "hello:v1")
	cases := []struct {
		name    string
		version testnode.Version
		pull    []string
		push    []string
	}{
		{"transfer service", testnode.V2, []string{"images", "pull"}, []string{"images", "push"}},
		{"local", testnode.V2, []string{"images", "pull", "--local"}, []string{"images", "push", "--local"}},
		{"1.6", testnode.V16, []string{"images", "pull"}, []string{"images", "push"}},
	}
	for _, c := range cases {
		for _, snapshotter := range []string{"overlayfs", "native"} {
			t.Run(c.name+" "+snapshotter, func(t *testing.T) {
				t.Parallel()
				n := testnode.Start(t, testnode.Config{Version: c.version, Snapshotter: snapshotter})
				n.Ctr(append(c.pull, "--snapshotter", snapshotter, ref)...).OK(t)
				if out := n.Ctr("run", "--rm", "--snapshotter", snapshotter, ref, "c").OK(t).Stdout; out != "Hello World!\n" {
					t.Errorf("output %q", out)
				}
				tag := registry.Ref("hello:" + n.Namespace())
				n.Ctr("images", "tag", ref, tag).OK(t)
				n.Ctr(append(c.push, "--platform", testimage.HostPlatform(), tag)...).OK(t)
				n.Clean(t)
			})
		}
	}
}
