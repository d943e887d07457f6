package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testregistry"
)

// documents are those whose console blocks are run, each in one shell on a node of its own. A block has lines
// that begin with "$ ", and under each what it prints, in which "…" stands for anything and runs of blanks
// count as one. A command is expected to fail where it prints "ctr-enc: " and something other than a note or a warning.
func documents() []string { return []string{"README.md", "docs/containerd.md"} }

// What users read is what happens, with the configuration that they read.
func TestDocuments(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "openssl", "bash")
	for _, name := range documents() {
		text := document(t, name)
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			onEach(t, testnode.Config{}, func(t *testing.T, n *node) { follow(t, n, text) })
		})
	}
}

// follow does what a document says.
func follow(t *testing.T, n *node, text string) {
	t.Helper()
	dir := t.TempDir()
	text = here(t, n, dir).Replace(text)
	restart(t, n, processors(t, text))
	steps := console(text)
	if len(steps) == 0 {
		t.Fatal("it has no console block")
	}
	for i, got := range runSteps(t, n, dir, nil, steps) {
		steps[i].check(t, got)
	}
}

// here starts a registry with an image, and returns what puts the places of a document where they are on this machine,
// given pairs of more such places.
func here(t *testing.T, n *node, dir string, more ...string) *strings.Replacer {
	t.Helper()
	registry := testregistry.Start(t)
	spec := runnable(t)
	spec.Platforms = []string{testimage.HostPlatform(), "linux/s390x"}
	if _, err := spec.Write(filepath.Join(dir, "layout"), "busybox"); err != nil {
		t.Fatal(err)
	}
	registry.Push(t, filepath.Join(dir, "layout"), "library/busybox:latest")
	return strings.NewReplacer(append(more,
		"docker.io/", registry.Host()+"/",
		"127.0.0.1:5000", registry.Host(),
		"linux/amd64", testimage.HostPlatform(),
		// runc and cgroups know containers by namespace and name, whichever containerd they are of.
		"elsewhere", elsewhere(t, n),
		"/usr/local/bin/ctd-decoder", testenv.Build(t, "./cmd/ctd-decoder"),
		"/etc/containerd/ocicrypt", filepath.Join(dir, "node"),
	)...)
}

// elsewhere returns the name of a second namespace, and removes the control groups that runc leaves of it.
func elsewhere(t *testing.T, n *node) string {
	name := n.Namespace() + "-elsewhere"
	t.Cleanup(func() {
		for _, pattern := range []string{"/sys/fs/cgroup/%s", "/sys/fs/cgroup/*/%s"} {
			groups, err := filepath.Glob(fmt.Sprintf(pattern, name))
			if err != nil {
				t.Error(err)
			}
			for _, dir := range groups {
				if err := os.Remove(dir); err != nil {
					t.Error(err)
				}
			}
		}
	})
	return name
}

// document returns the text of a document.
func document(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testenv.Root(), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// processors returns the stream processors of the first toml block in a document.
func processors(t *testing.T, text string) string {
	t.Helper()
	_, block, found := strings.Cut(text, "```toml\n")
	block, _, closed := strings.Cut(block, "```\n")
	i := strings.Index(block, "[stream_processors.")
	if !found || !closed || i < 0 || !strings.HasPrefix(block, "version = ") {
		t.Fatal("no configuration of stream processors in the document")
	}
	return block[i:]
}

// restart restarts the node with other stream processors, and with the CRI plugin.
func restart(t *testing.T, n *node, config string) {
	t.Helper()
	path := filepath.Join(n.Dir(), "config.toml")
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, _, _ := strings.Cut(string(old), "[stream_processors.")
	before = regexp.MustCompile(`(?m)^disabled_plugins = .*$`).ReplaceAllString(before, `disabled_plugins = ["io.containerd.nri.v1.nri"]`)
	if err := os.WriteFile(path, []byte(before+config), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// consoleStep is one command line of a document.
type consoleStep struct {
	line string
	want []string
	// before are commands that are run before it, with a line end.
	before string
}

// console returns the commands in a document's console blocks.
func console(text string) []consoleStep {
	var steps []consoleStep
	inside := false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		command, isCommand := strings.CutPrefix(line, "$ ")
		switch {
		case line == "```console":
			inside = true
		case strings.HasPrefix(line, "```"):
			inside = false
		case inside && isCommand:
			steps = append(steps, consoleStep{line: command})
		case inside:
			last := &steps[len(steps)-1]
			last.want = append(last.want, line)
		}
	}
	return steps
}

// consoleResult is what came of a step.
type consoleResult struct {
	output string
	code   string
}

// runSteps runs all commands in one shell, so that they share variables. env are more of these.
func runSteps(t *testing.T, n *node, dir string, env []string, steps []consoleStep) []consoleResult {
	t.Helper()
	const mark = "=== end of step "
	var script strings.Builder
	fmt.Fprintf(&script, "cd %q\n", dir)
	for _, s := range steps {
		line := s.line
		if strings.Contains(line, "ctr-enc ") && strings.Contains(line, " run --rm ") {
			// As testnode does: ctr may lose the output of a container that ends at once.
			line = "for try in 1 2 3; do out=$({ " + line + "\n} 2>&1); code=$?; [ $code = 0 ] && [ -z \"$out\" ] || break; done\n" +
				"[ -z \"$out\" ] || printf '%s\\n' \"$out\"; (exit $code)"
		}
		fmt.Fprintf(&script, "%s%s\nprintf '\\n%s%%s\\n' \"$?\"\n", s.before, line, mark)
	}
	testenv.Build(t, "./cmd/imgcrypt") // beside ctr-enc
	cmd := n.Command(t.Context(), "bash", "-c", script.String())
	cmd.Env = append(append(cmd.Env, "PATH="+filepath.Dir(n.ctrEnc)+":"+os.Getenv("PATH")), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	var results []consoleResult
	var output strings.Builder
	for line := range strings.Lines(string(out)) {
		code, isEnd := strings.CutPrefix(strings.TrimSuffix(line, "\n"), mark)
		if !isEnd {
			output.WriteString(line)
			continue
		}
		// The line end before the mark is not the command's.
		results = append(results, consoleResult{output: strings.TrimSuffix(output.String(), "\n"), code: code})
		output.Reset()
	}
	if len(results) != len(steps) {
		t.Fatalf("%d of %d commands came to their end:\n%s", len(results), len(steps), out)
	}
	return results
}

// check compares what a command printed with what the document says.
func (s consoleStep) check(t *testing.T, got consoleResult) {
	t.Helper()
	fails := false
	pattern := "^"
	for _, line := range s.want {
		said, isError := strings.CutPrefix(line, "ctr-enc: ")
		fails = fails || isError && !strings.HasPrefix(said, "note: ") && !strings.HasPrefix(said, "warning: ")
		if line == "…" {
			pattern += "(?:.*\n)*"
			continue
		}
		line = regexp.QuoteMeta(strings.Join(strings.Fields(line), " "))
		pattern += strings.ReplaceAll(line, "…", ".*") + "\n"
	}
	var plain strings.Builder
	for line := range strings.Lines(got.output) {
		plain.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
	}
	if !regexp.MustCompile(pattern + "$").MatchString(plain.String()) {
		t.Errorf("$ %s\nprinted:\n%s\nthe document says:\n%s", s.line, got.output, strings.Join(s.want, "\n"))
	}
	if fails == (got.code == "0") {
		t.Errorf("$ %s\nexit code %s, and the document says that it fails: %t\n%s", s.line, got.code, fails, got.output)
	}
}

// What the documents link to is there.
func TestDocumentLinks(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`)
	err := filepath.WalkDir(testenv.Root(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", path, m[1], err)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Every containerd understands the configurations in the versions that are for it, and then has three stream
// processors with our decoder.
func TestDocumentedConfiguration(t *testing.T) {
	t.Parallel()
	for _, version := range testnode.Versions() {
		t.Run("containerd "+string(version), func(t *testing.T) {
			t.Parallel()
			requirement, known := testenv.Containerd24, []string{"2", "3", "4"}
			if version == testnode.V16 {
				requirement, known = testenv.Containerd16, []string{"2"}
			}
			testenv.Need(t, requirement)
			for _, v := range known {
				file := filepath.Join(t.TempDir(), "config.toml")
				if err := os.WriteFile(file, []byte("version = "+v+"\n"+processors(t, document(t, "docs/containerd.md"))), 0o644); err != nil {
					t.Fatal(err)
				}
				out, err := exec.Command(testenv.Containerd(requirement), "--config", file, "config", "dump").CombinedOutput()
				if err != nil {
					t.Fatalf("version %s: %v: %s", v, err, out)
				}
				if n := strings.Count(string(out), "/usr/local/bin/ctd-decoder"); n != 3 {
					t.Errorf("version %s: %d stream processors, want 3", v, n)
				}
			}
		})
	}
}

// What the document says about Kubernetes: containerd's CRI plugin pulls with the node's keys, in 2.4 with the
// setting that is given, and not in zstd.
func TestDocumentedKubernetes(t *testing.T) {
	t.Parallel()
	text := document(t, "docs/containerd.md")
	_, setting, found := strings.Cut(text, "[plugins.\"io.containerd.cri.v1.images\"]\n")
	setting, _, _ = strings.Cut(setting, "```")
	if !found {
		t.Fatal("no setting for the CRI plugin")
	}
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		registry, k := testregistry.Start(t), rsaKeys(t)
		for name, compression := range map[string]testimage.Compression{"gzip": testimage.Gzip, "zstd": testimage.Zstd} {
			spec := runnable(t)
			spec.Salt += name
			for i := range spec.Layers {
				spec.Layers[i].Compression = compression
			}
			n.load(t, spec, plainName)
			n.enc("images", "encrypt", "--recipient", k.recipient(), plainName, registry.Ref("app:"+name)).OK(t)
			n.enc("images", "push", registry.Ref("app:"+name)).OK(t)
		}
		n.Clean(t)
		here := strings.NewReplacer("/usr/local/bin/ctd-decoder", testenv.Build(t, "./cmd/ctd-decoder"),
			"/etc/containerd/ocicrypt/keys", filepath.Dir(k.private))
		config := here.Replace(processors(t, text))
		if n.Version() == testnode.V2 {
			restart(t, n, config)
			if err := pullForKubernetes(t, n, registry.Ref("app:gzip")); err == nil || !strings.Contains(err.Error(), "sent no payload") {
				t.Errorf("by the transfer service: %v", err)
			}
			config += "[plugins.\"io.containerd.cri.v1.images\"]\n" + setting
		}
		restart(t, n, config)
		if err := pullForKubernetes(t, n, registry.Ref("app:gzip")); err != nil {
			t.Errorf("gzip: %v", err)
		}
		if err := pullForKubernetes(t, n, registry.Ref("app:zstd")); err == nil || !strings.Contains(err.Error(), "sent no payload") {
			t.Errorf("zstd: %v", err)
		}
	})
}

// pullForKubernetes asks containerd's CRI plugin to pull an image: PullImageRequest{image: ImageSpec{image: ref}},
// put together by hand, for this is all that is needed of Kubernetes.
func pullForKubernetes(t *testing.T, n *node, ref string) error {
	t.Helper()
	spec := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), ref)
	request := new(emptypb.Empty)
	request.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), spec))
	conn := n.Client(t).Conn().(grpc.ClientConnInterface)
	return conn.Invoke(t.Context(), "/runtime.v1.ImageService/PullImage", request, new(emptypb.Empty))
}
