package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// events writes lines of `go test -json` in short: "package action", "package.Test action", or either with
// "output" and the text, "attr", a key and a value.
func events(lines ...string) string {
	var b strings.Builder
	for _, line := range lines {
		what, rest, _ := strings.Cut(line, " ")
		action, output, _ := strings.Cut(rest, " ")
		pkg, test, _ := strings.Cut(what, ".")
		fmt.Fprintf(&b, `{"Action":%q,"Package":%q`, action, pkg)
		if test != "" {
			fmt.Fprintf(&b, `,"Test":%q`, test)
		}
		if action == "output" {
			fmt.Fprintf(&b, `,"Output":%q`, output+"\n")
		}
		if key, value, _ := strings.Cut(output, " "); action == "attr" {
			fmt.Fprintf(&b, `,"Key":%q,"Value":%q`, key, value)
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func TestReport(t *testing.T) {
	t.Parallel()
	passing := []string{"p start", "p.A run", "p.A output === RUN   A", "p.A output noise", "p.A pass", "p pass"}
	skipping := []string{"q start", "q.S run", "q.S output     s_test.go:7: needs x: not on PATH", "q.S output --- SKIP: S (0.00s)", "q.S skip", "q pass"}
	cases := []struct {
		name   string
		input  string
		strict bool
		code   int
		last   string
		has    []string
		hasNot []string
	}{
		{
			name: "pass", input: events(passing...), last: "1 passed, 0 failed, 0 skipped",
			has: []string{"ok    p "}, hasNot: []string{"noise", "=== RUN"},
		},
		{
			name: "lines of a report", last: "1 passed, 0 failed, 0 skipped",
			input: events("p.A run", "p.A attr report of an earlier run", "p.A pass", "p.A run", "p.A attr report |one", "p.A attr other two",
				"p.A output === ATTR  A report |one", "p.A attr report three", "p.A pass", "p pass"),
			has: []string{"\np A:\n  |one\n  three\n"}, hasNot: []string{"two", "earlier", "ATTR"},
		},
		{
			name: "skip", input: events(append(passing, skipping...)...), last: "1 passed, 0 failed, 1 skipped",
			has: []string{"\nskipped:\n  q S: needs x: not on PATH\n"},
		},
		{
			name: "skip, strict", input: events(append(passing, skipping...)...), strict: true, code: 1,
			last: "1 passed, 0 failed, 1 skipped", has: []string{"a skipped test is a failure here"},
		},
		{
			name: "skipped, then passed", input: events("q.S run", "q.S output     s_test.go:7: needs x: no", "q.S skip", "q.S run", "q.S pass", "q pass"),
			strict: true, code: 1, last: "0 passed, 0 failed, 1 skipped", has: []string{"  q S: needs x: no\n"},
		},
		{
			name: "failed, then passed", input: events("q.S run", "q.S output why", "q.S fail", "q.S run", "q.S pass", "q fail"),
			code: 1, last: "0 passed, 1 failed, 0 skipped", has: []string{"\nfailed:\n  q S\n"}, hasNot: []string{"outside of any test"},
		},
		{
			name: "skip without reason", input: events("q.S run", "q.S output --- SKIP: S (0.00s)", "q.S skip", "q pass"),
			last: "0 passed, 0 failed, 1 skipped", has: []string{"  q S: no reason given\n"},
		},
		{
			name:  "reason of several lines",
			input: events("q.S run", "q.S output     s_test.go:7: needs x: a", "q.S output         b", "q.S skip", "q pass"),
			last:  "0 passed, 0 failed, 1 skipped", has: []string{"  q S: needs x: a b\n"},
		},
		{
			name: "failure with all its output", code: 1,
			input: events("p.A run", "p.A output one", "p.A output "+strings.Repeat("x", 1<<20), "p.A output last", "p.A fail", "p fail"),
			last:  "0 passed, 1 failed, 0 skipped",
			has:   []string{"=== failed: p A\none\n" + strings.Repeat("x", 1<<20) + "\nlast\n", "\nfailed:\n  p A\n"},
		},
		{
			name: "failures of parallel tests are not mixed", code: 1,
			input: events("p.A run", "p.B run", "p.A output a1", "p.B output b1", "p.A output a2", "p.B output b2", "p.B fail", "p.A fail", "p fail"),
			last:  "0 passed, 2 failed, 0 skipped", has: []string{"=== failed: p A\na1\na2\n", "=== failed: p B\nb1\nb2\n"},
		},
		{
			name: "subtests count, their test does not", code: 1,
			input: events("p.A run", "p.A/x run", "p.A/y run", "p.A/x output why", "p.A/x fail", "p.A/y pass",
				"p.A output --- FAIL: A (0.00s)", "p.A fail", "p fail"),
			last: "1 passed, 1 failed, 0 skipped", has: []string{"=== failed: p A/x\nwhy\n"}, hasNot: []string{"=== failed: p A\n"},
		},
		{
			name: "a test fails by itself after its subtests", code: 1,
			input: events("p.A run", "p.A/x/y run", "p.A/x/y pass", "p.A output why", "p.A fail", "p fail"),
			last:  "1 passed, 1 failed, 0 skipped", has: []string{"=== failed: p A\nwhy\n"},
		},
		{
			name: "what a test writes beside a failed subtest is shown", code: 1,
			input: events("p.A run", "p.A/x run", "p.A/x output why", "p.A/x fail", "p.A output more", "p.A output --- FAIL: A (0.00s)", "p.A fail", "p fail"),
			last:  "0 passed, 1 failed, 0 skipped", has: []string{"=== failed: p A/x\nwhy\n", "=== failed: p A\nmore\n"},
		},
		{
			name: "package fails without a test", code: 1, input: events(append(passing, "q output exit status 3", "q fail")...),
			last: "1 passed, 1 failed, 0 skipped", has: []string{"exit status 3\nFAIL  q (0.0s): failed outside of any test\n", "\n  q: failed outside"},
		},
		{
			name: "test that does not end", code: 1, input: events("p.A run", "p.A/x run", "p.A/x output panic: boom", "p output exit status 2", "p fail"),
			last: "0 passed, 1 failed, 0 skipped", has: []string{"=== failed: p A/x\npanic: boom\nA/x did not end\n", "exit status 2\n"},
		},
		{
			name: "input ends in the middle of a test", code: 1, input: events("p start", "p.A run", "p.A output here"),
			last: "0 passed, 1 failed, 0 skipped", has: []string{"here\nA did not end\n", "the test of p did not end\n"},
		},
		{
			name: "input ends in the middle of a package", code: 1, input: events("p start", "p.A run", "p.A pass"),
			last: "1 passed, 1 failed, 0 skipped", has: []string{"the test of p did not end\n"},
		},
		{
			name: "package that does not build", code: 1,
			input: `{"ImportPath":"d","Action":"build-output","Output":"d.go:1: undefined\n"}` + "\n" +
				`{"ImportPath":"d","Action":"build-fail"}` + "\n" +
				`{"Package":"p","Action":"fail","FailedBuild":"d"}` + "\n" + `{"Package":"q","Action":"fail","FailedBuild":"d"}` + "\n",
			last: "0 passed, 2 failed, 0 skipped", has: []string{"d.go:1: undefined\n", "FAIL  p (0.0s): does not build\n", "FAIL  q (0.0s): does not build\n"},
		},
		{
			name: "build that no package accounts for", code: 1,
			input: events(passing...) + `{"ImportPath":"d","Action":"build-fail"}`,
			last:  "1 passed, 1 failed, 0 skipped", has: []string{"builds that failed: 1\n"},
		},
		{
			name: "no test files", code: 1, input: events("p start", "p output ?   p [no test files]", "p skip"),
			last: "0 passed, 0 failed, 0 skipped", has: []string{"-     p: no test files\n", "no test ran"},
		},
		{name: "nothing", code: 1, last: "0 passed, 0 failed, 0 skipped", has: []string{"no test ran"}},
		{
			name: "other output", input: "go: downloading x\n{}\n\n" + events(passing...) + "the end", last: "1 passed, 0 failed, 0 skipped",
			has: []string{"go: downloading x\n{}\n\n", "the end\n"},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var args []string
			if c.strict {
				args = []string{"-strict"}
			}
			var stdout, stderr strings.Builder
			code := run(args, iotest.HalfReader(strings.NewReader(c.input)), &stdout, &stderr, false)
			out := stdout.String()
			if code != c.code || stderr.Len() > 0 {
				t.Errorf("exit code %d, want %d; %s", code, c.code, stderr.String())
			}
			if !strings.HasSuffix(out, "\n"+c.last+"\n") {
				t.Errorf("does not end with %q", c.last)
			}
			for _, s := range c.has {
				if !strings.Contains(out, s) {
					t.Errorf("lacks %.100q", s)
				}
			}
			for _, s := range c.hasNot {
				if strings.Contains(out, s) {
					t.Errorf("has %q", s)
				}
			}
			if t.Failed() && len(out) < 1<<16 {
				t.Log(out)
			}
		})
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	var out, stderr strings.Builder
	input := events("long/package pass", "a.X run", "a.X pass", "a pass", "b start", "b.Y run", "b.Y output why", "b.Y fail", "b fail")
	run(nil, strings.NewReader(input), &out, &stderr, false)
	want := `  passed  failed  skipped  time  package
       1       0        0  0.0s  a
       0       1        0  0.0s  b
       0       0        0  0.0s  long/package

failed:
  b Y

1 passed, 1 failed, 0 skipped
`
	i := strings.Index(out.String(), "  passed  failed")
	if i < 0 {
		t.Fatalf("no table:\n%s", out.String())
	}
	if diff := cmp.Diff(want, out.String()[i:]); diff != "" {
		t.Error(diff)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-unknown"}, {"file"}} {
		var out, stderr strings.Builder
		if code := run(args, strings.NewReader(""), &out, &stderr, false); code != 2 || stderr.Len() == 0 {
			t.Errorf("%q: exit code %d, %q", args, code, stderr.String())
		}
	}
}

func TestBrokenPipe(t *testing.T) {
	t.Parallel()
	var out, stderr strings.Builder
	code := run(nil, iotest.ErrReader(errors.New("broken")), &out, &stderr, false)
	if code != 1 || stderr.String() != "testreport: broken\n" {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
}

// What the go command of today writes is understood.
func TestGoTest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := map[string]string{
		"go.mod":           "module m\n\ngo 1.26\n",
		"ok/ok_test.go":    "package ok\n\nimport \"testing\"\n\nfunc TestA(t *testing.T) { t.Run(\"x\", func(t *testing.T) {}) }\nfunc TestB(t *testing.T) { t.Skip(\"needs y: no\") }\n",
		"bad/bad_test.go":  "package bad\n\nfunc f() { undefined() }\n",
		"dies/die_test.go": "package dies\n\nimport (\n\t\"os\"\n\t\"testing\"\n)\n\nfunc TestMain(m *testing.M) { println(\"dying\"); os.Exit(3) }\n",
		"boom/b_test.go":   "package boom\n\nimport \"testing\"\n\nfunc TestP(t *testing.T) { t.Run(\"s\", func(t *testing.T) { panic(\"boom\") }) }\nfunc TestNever(t *testing.T) {}\n",
		"none/none.go":     "package none\n",
	}
	for name, body := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "test", "-json", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	input, err := cmd.Output()
	if err == nil {
		t.Fatal("go test succeeded")
	}
	var stdout, stderr strings.Builder
	code := run(nil, strings.NewReader(string(input)), &stdout, &stderr, false)
	out := stdout.String()
	if code != 1 || !strings.HasSuffix(out, "\n1 passed, 3 failed, 1 skipped\n") {
		t.Errorf("exit code %d", code)
	}
	for _, s := range []string{
		"undefined: undefined", "FAIL  m/bad (0.0s): does not build", "dying\n", ": failed outside of any test", "=== failed: m/boom TestP",
		"panic: boom", "  m/ok TestB: needs y: no\n", "-     m/none: no test files\n",
	} {
		if !strings.Contains(out, s) {
			t.Errorf("lacks %q", s)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}
