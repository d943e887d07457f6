package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testregistry"
)

// documents are those whose console blocks are run, each in one shell on a node of its own. A block has lines
// that begin with "$ ", and under each what it prints, in which "…" stands for anything and runs of blanks
// count as one. A command is expected to fail where it prints "ctr-enc: " and something other than a note.
func documents() []string { return []string{"README.md"} }

// What users read is what happens, with the configuration that they read.
func TestDocuments(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "openssl", "bash")
	for _, document := range documents() {
		text, err := os.ReadFile(filepath.Join(testenv.Root(), document))
		if err != nil {
			t.Fatal(err)
		}
		t.Run(filepath.Base(document), func(t *testing.T) {
			t.Parallel()
			onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
				follow(t, n, string(text))
			})
		})
	}
}

// follow does what a document says.
func follow(t *testing.T, n *node, text string) {
	t.Helper()
	registry, dir := testregistry.Start(t), t.TempDir()
	spec := runnable(t)
	spec.Platforms = []string{testimage.HostPlatform(), "linux/s390x"}
	if _, err := spec.Write(filepath.Join(dir, "layout"), "busybox"); err != nil {
		t.Fatal(err)
	}
	registry.Push(t, filepath.Join(dir, "layout"), "library/busybox:latest")
	// Where everything is on the machine of the reader, and here.
	here := strings.NewReplacer(
		"docker.io/", registry.Host()+"/",
		"127.0.0.1:5000", registry.Host(),
		"linux/amd64", testimage.HostPlatform(),
		// runc and cgroups know containers by namespace and name, whichever containerd they are of.
		"elsewhere", elsewhere(t, n),
		"/usr/local/bin/ctd-decoder", testenv.Build(t, "./cmd/ctd-decoder"),
		"/etc/containerd/ocicrypt/keys", filepath.Join(dir, "keys"),
	)
	text = here.Replace(text)
	configure(t, n, text)
	steps := console(text)
	if len(steps) == 0 {
		t.Fatal("it has no console block")
	}
	for i, got := range runSteps(t, n, dir, steps) {
		steps[i].check(t, got)
	}
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

// configure restarts the node with the stream processors of the first toml block.
func configure(t *testing.T, n *node, text string) {
	t.Helper()
	_, block, found := strings.Cut(text, "```toml\n")
	block, _, closed := strings.Cut(block, "```\n")
	i := strings.Index(block, "[stream_processors.")
	if !found || !closed || i < 0 || !strings.HasPrefix(block, "version = ") {
		t.Fatal("no configuration of stream processors in the document")
	}
	path := filepath.Join(n.Dir(), "config.toml")
	config, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, _, _ := strings.Cut(string(config), "[stream_processors.")
	if err := os.WriteFile(path, []byte(before+block[i:]), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// consoleStep is one command line of a document.
type consoleStep struct {
	line string
	want []string
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

// runSteps runs all commands in one shell, so that they share variables.
func runSteps(t *testing.T, n *node, dir string, steps []consoleStep) []consoleResult {
	t.Helper()
	const mark = "=== end of step "
	var script strings.Builder
	fmt.Fprintf(&script, "cd %q\n", dir)
	for _, s := range steps {
		fmt.Fprintf(&script, "%s\nprintf '%s%%s\\n' \"$?\"\n", s.line, mark)
	}
	cmd := n.Command(t.Context(), "bash", "-c", script.String())
	cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(n.ctrEnc)+":"+os.Getenv("PATH"))
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
		results = append(results, consoleResult{output: output.String(), code: code})
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
		fails = fails || strings.HasPrefix(line, "ctr-enc: ") && !strings.HasPrefix(line, "ctr-enc: note: ")
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

// Both containerds understand the configurations, and see three stream processors with our decoder in them.
func TestDocumentedConfigurations(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(testenv.Root(), "docs/containerd.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	for _, version := range testnode.Versions() {
		t.Run("containerd "+string(version), func(t *testing.T) {
			t.Parallel()
			requirement := map[testnode.Version]string{testnode.V2: testenv.Containerd24, testnode.V16: testenv.Containerd16}[version]
			testenv.Need(t, requirement)
			checked := 0
			for _, block := range blocks {
				if version == testnode.V16 && !strings.HasPrefix(block[1], "version = 2") {
					continue
				}
				checked++
				file := filepath.Join(t.TempDir(), "config.toml")
				if err := os.WriteFile(file, []byte(block[1]), 0o644); err != nil {
					t.Fatal(err)
				}
				out, err := exec.Command(testenv.Containerd(requirement), "--config", file, "config", "dump").CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s\n%s", err, out, block[1])
				}
				if n := strings.Count(string(out), "/usr/local/bin/ctd-decoder"); n != 3 {
					t.Errorf("%d stream processors, want 3:\n%s", n, block[1])
				}
			}
			if checked == 0 {
				t.Error("no configuration in the document")
			}
		})
	}
}
