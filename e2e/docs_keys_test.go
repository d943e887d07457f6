package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testnode"
)

// Each command of docs/keys.md does what the page says, with the files that are on it. What is printed on the node comes of
// the layers, not of an earlier command's: before each pull nothing is unpacked there.
func TestDocumentedKeys(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "openssl", "bash", "gpg", testenv.SoftHSM, testenv.Cgo)
	onEach(t, testnode.Config{}, func(t *testing.T, n *node) {
		testenv.Build(t, testenv.TokenHelper)
		module, err := testenv.SoftHSMModule()
		if err != nil {
			t.Fatal(err)
		}
		dir, short := t.TempDir(), shortDir(t)
		replacer := here(t, n, dir,
			"/home/alice", dir,
			"/run/vault.sock", filepath.Join(short, "vault.sock"),
			"/usr/lib/softhsm/libsofthsm2.so", module,
			"/usr/lib/softhsm/", filepath.Dir(module)+"/",
		)
		text := replacer.Replace(document(t, "docs/keys.md"))
		writeFiles(t, dir, text)
		if err := os.Symlink(testenv.Root(), filepath.Join(dir, "imgcrypt")); err != nil {
			t.Fatal(err)
		}
		restart(t, n, withEnv(t, processors(t, replacer.Replace(document(t, "README.md"))), text))

		steps := console(text)
		for i := range steps {
			_, after, ok := strings.Cut(steps[i].line, "ctr-enc -n ")
			if name, rest, _ := strings.Cut(after, " "); ok && strings.HasPrefix(rest, "images pull ") {
				steps[i].before = "ctr-enc -n " + name + " images ls -q | xargs -r ctr-enc -n " + name + " images rm --sync >/dev/null\n" +
					"ctr-enc -n " + name + " snapshots ls | tail -n +2\n"
			}
		}
		for i, got := range runSteps(t, n, dir, append(goEnv(t), "GNUPGHOME="+short), steps) {
			steps[i].check(t, got)
		}
	})
}

// shortDir makes a directory whose path leaves room for the name of a socket. It is gpg's, too, whose agent is ended.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "gpg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("gpgconf", "--homedir", dir, "--kill", "all").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// writeFiles writes the files that are on a page: the blocks after a line that ends with a name, "`vault.go`:".
func writeFiles(t *testing.T, dir, text string) {
	t.Helper()
	files := regexp.MustCompile("(?ms)`([a-z.]+)`:\n\n```[a-z]+\n(.*?)^```$").FindAllStringSubmatch(text, -1)
	if len(files) == 0 {
		t.Fatal("no file on the page")
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f[1]), []byte(f[2]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// withEnv returns a configuration of stream processors with the env that is on the page.
func withEnv(t *testing.T, config, text string) string {
	t.Helper()
	env := regexp.MustCompile(`(?m)^ *env = \[.*\]$`)
	line := env.FindString(text)
	if line == "" || len(env.FindAllString(config, -1)) != 3 {
		t.Fatal("no env on the page, or not in all stream processors")
	}
	return env.ReplaceAllLiteralString(config, line)
}

// goEnv is what the go command needs to find its caches where HOME is another, and to build offline.
func goEnv(t *testing.T) []string {
	t.Helper()
	names := []string{"GOCACHE", "GOMODCACHE", "GOPATH"}
	out, err := exec.Command("go", append([]string{"env"}, names...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"GOFLAGS=-buildvcs=false", "GOPROXY=off"}
	for i, value := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		env = append(env, names[i]+"="+value)
	}
	return env
}
