package imports

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"

	"imgcrypt/internal/testenv"
)

// The module keeps its rules, on every system that it is built for, and where some of it is built with cgo.
func TestModule(t *testing.T) {
	t.Parallel()
	for name, env := range map[string][]string{
		"linux":          {"GOOS=linux", "CGO_ENABLED=0"},
		"linux with cgo": {"GOOS=linux", "CGO_ENABLED=1"},
		"windows":        {"GOOS=windows", "CGO_ENABLED=0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := load(t, env...)
			if _, ok := g[module+"/layer"]; !ok {
				t.Fatalf("%d packages, and not the module's", len(g))
			}
			for _, r := range rules() {
				for _, line := range r.check(g) {
					t.Error(line)
				}
			}
		})
	}
}

// load lists the module's packages and all that they depend on.
func load(t *testing.T, env ...string) graph {
	t.Helper()
	// -e: of a package that does not compile for a system the imports are known all the same.
	cmd := exec.Command("go", "list", "-e", "-deps", "-json=ImportPath,Imports", "./...")
	cmd.Dir = testenv.Root()
	cmd.Env = append(append(os.Environ(), "GOARCH=amd64"), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	g := make(graph)
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return g
		}
		if err != nil {
			t.Fatal(err)
		}
		g[p.ImportPath] = p.Imports
	}
}

// Each rule of the module is broken by an import that it is there to prevent, and by nothing that is fine.
func TestRules(t *testing.T) {
	t.Parallel()
	const (
		client  = "github.com/containerd/containerd/v2/client"
		typeurl = "github.com/containerd/typeurl/v2"
		cli     = "github.com/urfave/cli/v3"
	)
	cases := []struct {
		name   string
		g      graph
		broken []string
	}{
		{name: "nothing there"},
		{name: "as designed", g: graph{
			"imgcrypt/layer":             {"crypto/aes", "imgcrypt/internal/rawjson"},
			"imgcrypt/keys":              {"imgcrypt/layer"},
			"imgcrypt/keys/jwe":          {"imgcrypt/keys", "imgcrypt/layer"},
			"imgcrypt":                   {"imgcrypt/keys", "imgcrypt/layer", typeurl},
			"imgcrypt/store/layout":      {"imgcrypt", "imgcrypt/store/internal"},
			"imgcrypt/store/storetest":   {"imgcrypt", "testing", "testing/iotest"},
			"imgcrypt/streamproc":        {"imgcrypt/keys"},
			"imgcrypt/images/encryption": {"imgcrypt", client},
			"imgcrypt/cmd/ctr-enc":       {"imgcrypt/images/encryption", client, cli},
			"imgcrypt/cmd/imgcrypt":      {"imgcrypt/internal/cli", client, cli},
			"imgcrypt/internal/cli":      {"imgcrypt", cli},
			"imgcrypt/cmd/ctd-decoder":   {"imgcrypt/streamproc"},
			"imgcrypt/internal/testnode": {client, "testing", "imgcrypt/internal/testenv"},
			"imgcrypt/internal/cmd/demo": {"imgcrypt", "imgcrypt/internal/testnode"},
			client:                       {"google.golang.org/grpc", "testing"},
		}},
		{"layer looks up", graph{"imgcrypt/layer": {"imgcrypt/keys"}}, []string{
			"imgcrypt/layer imports imgcrypt/keys: layer is the bottom",
		}},
		{"keys looks up", graph{"imgcrypt/keys/jwe": {"imgcrypt"}}, []string{
			"imgcrypt/keys/jwe imports imgcrypt: keys stands on layer",
		}},
		{"root knows a store", graph{"imgcrypt": {"imgcrypt/store/layout"}}, []string{
			"imgcrypt imports imgcrypt/store/layout: the root package stands on keys and layer",
		}},
		{"store knows containerd's", graph{"imgcrypt/store/archive": {"imgcrypt/images/encryption"}}, []string{
			"imgcrypt/store/archive imports imgcrypt/images/encryption: a store stands on the root package",
		}},
		{"protocol knows the root", graph{"imgcrypt/streamproc": {"imgcrypt"}}, []string{
			"imgcrypt/streamproc imports imgcrypt: the stream processor's protocol stands on keys and layer",
		}},
		{"library knows a command", graph{"imgcrypt/node": {"imgcrypt/cmd/imgcrypt"}}, []string{
			"imgcrypt/node imports imgcrypt/cmd/imgcrypt: what serves containerd knows no command",
		}},
		{"internal looks up", graph{"imgcrypt/internal/rawjson": {"imgcrypt"}}, []string{
			"imgcrypt/internal/rawjson imports imgcrypt: internal packages are below those that use them",
		}},
		{"harness in a command", graph{"imgcrypt/cmd/ctr-enc": {"imgcrypt/internal/testenv"}}, []string{
			"imgcrypt/cmd/ctr-enc imports imgcrypt/internal/testenv: test harness is for tests",
		}},
		{"containerd in parsing", graph{"imgcrypt/keys": {client}}, []string{
			"imgcrypt/keys imports " + client + ": only what serves containerd imports it",
			"imgcrypt/keys imports " + client + ": the library can be used without containerd",
		}},
		{"containerd by a detour", graph{
			"imgcrypt": {"example.test/a", "example.test/b"}, "example.test/b": {"example.test/c"}, "example.test/c": {client},
		}, []string{
			"imgcrypt imports example.test/b imports example.test/c imports " + client + ": the library can be used without containerd",
		}},
		{"heavy decoder", graph{
			"imgcrypt/cmd/ctd-decoder": {"imgcrypt/streamproc", "example.test/a"},
			"imgcrypt/streamproc":      {typeurl},
			"example.test/a":           {"google.golang.org/grpc/status", "imgcrypt/streamproc"},
		}, []string{
			"imgcrypt/cmd/ctd-decoder imports imgcrypt/streamproc imports " + typeurl +
				": the decoder is started for every layer: nothing of containerd, no gRPC in it",
			"imgcrypt/cmd/ctd-decoder imports example.test/a imports google.golang.org/grpc/status" +
				": the decoder is started for every layer: nothing of containerd, no gRPC in it",
		}},
		{"cgo", graph{
			"imgcrypt/keys/pkcs11":         {"imgcrypt/keys/pkcs11/module"},
			"imgcrypt/keys/pkcs11/module":  {"C", "github.com/miekg/pkcs11"},
			"imgcrypt/cmd/imgcrypt-pkcs11": {"imgcrypt/keys/pkcs11/module"},
			"imgcrypt/layer":               {"C"},
		}, []string{
			"imgcrypt/keys/pkcs11 imports imgcrypt/keys/pkcs11/module: only the helper for tokens needs a C compiler",
			"imgcrypt/layer imports C: only the helper for tokens needs a C compiler",
			"imgcrypt/keys/pkcs11 imports imgcrypt/keys/pkcs11/module imports github.com/miekg/pkcs11: keys on tokens are used by a program of their own",
		}},
		{"a token's library by a detour", graph{
			"imgcrypt/cmd/ctd-decoder": {"imgcrypt/streamproc"}, "imgcrypt/streamproc": {"example.test/a"}, "example.test/a": {"github.com/miekg/pkcs11"},
		}, []string{
			"imgcrypt/cmd/ctd-decoder imports imgcrypt/streamproc imports example.test/a imports github.com/miekg/pkcs11: keys on tokens are used by a program of their own",
			"imgcrypt/streamproc imports example.test/a imports github.com/miekg/pkcs11: keys on tokens are used by a program of their own",
		}},
		{"library with a CLI", graph{"imgcrypt/store/layout": {cli}}, []string{
			"imgcrypt/store/layout imports " + cli + ": only commands know a CLI library",
		}},
		{"library with tests", graph{"imgcrypt/keys": {"testing/fstest"}}, []string{
			"imgcrypt/keys imports testing/fstest: only tests and their harness import testing",
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var broken []string
			for _, r := range rules() {
				broken = append(broken, r.check(c.g)...)
			}
			if diff := cmp.Diff(c.broken, broken); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	cases := []struct {
		pattern, pkg string
		want         bool
	}{
		{"imgcrypt", "imgcrypt", true},
		{"imgcrypt", "imgcrypt/layer", false},
		{"imgcrypt/...", "imgcrypt", true},
		{"imgcrypt/...", "imgcrypt/layer", true},
		{"imgcrypt/...", "imgcrypt2", false},
		{"testing/...", "testing", true},
		{"x/test...", "x/testenv/y", true},
		{"x/test...", "x/tes", false},
	}
	for _, c := range cases {
		if got := matches(c.pattern, c.pkg); got != c.want {
			t.Errorf("%s matches %s: %v", c.pattern, c.pkg, got)
		}
	}
}
