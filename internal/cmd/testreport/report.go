package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// event is a line of `go test -json`, described by `go doc test2json` and `go help buildjson`.
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Output      string
	Elapsed     float64
	Key, Value  string // of an attribute
	FailedBuild string
}

// result is how a test or a package ended.
type result string

// The results are the names of the actions that announce them.
const (
	running result = ""
	pass    result = "pass"
	fail    result = "fail"
	skip    result = "skip"
)

// testRun is a test or subtest.
type testRun struct {
	name        string
	result      result
	output      strings.Builder
	report      []string // attributes that are to be seen
	hasChildren bool
	childFailed bool
}

// packageRun is the test of a package.
type packageRun struct {
	path    string
	result  result
	elapsed float64
	output  strings.Builder // what belongs to no test
	tests   map[string]*testRun
	order   []*testRun
	reason  string // why it failed, where no test did
}

// reporter collects events and prints what cannot wait.
type reporter struct {
	out      io.Writer
	packages map[string]*packageRun
	builds   map[string]*build // by import path, until they are printed
}

// build is the compilation of a package.
type build struct {
	output strings.Builder
	failed bool
}

func newReport(out io.Writer) *reporter {
	return &reporter{
		out:      out,
		packages: make(map[string]*packageRun),
		builds:   make(map[string]*build),
	}
}

func (r *reporter) build(path string) *build {
	b := r.builds[path]
	if b == nil {
		b = new(build)
		r.builds[path] = b
	}
	return b
}

// line takes one line of input. What is no event (the output of another program in the pipe) is passed on.
func (r *reporter) line(line []byte) {
	var e event
	if err := json.Unmarshal(line, &e); err != nil || e.Action == "" {
		fmt.Fprintf(r.out, "%s\n", strings.TrimSuffix(string(line), "\n"))
		return
	}
	switch {
	case e.Action == "build-output":
		r.build(e.ImportPath).output.WriteString(e.Output)
	case e.Action == "build-fail":
		r.build(e.ImportPath).failed = true
	case e.Package == "":
	case e.Test != "":
		r.testEvent(r.packageOf(e), e)
	default:
		r.packageEvent(r.packageOf(e), e)
	}
}

func (r *reporter) packageOf(e event) *packageRun {
	p := r.packages[e.Package]
	if p == nil {
		p = &packageRun{path: e.Package, tests: make(map[string]*testRun)}
		r.packages[e.Package] = p
	}
	return p
}

func (p *packageRun) test(name string) *testRun {
	t := p.tests[name]
	if t == nil {
		t = &testRun{name: name}
		p.tests[name] = t
		p.order = append(p.order, t)
		if parent := p.parent(name); parent != nil {
			parent.hasChildren = true
		}
	}
	return t
}

// parent returns the test that a subtest belongs to, nil for a test. A subtest's own name may contain slashes too.
func (p *packageRun) parent(name string) *testRun {
	for i := strings.LastIndexByte(name, '/'); i >= 0; i = strings.LastIndexByte(name[:i], '/') {
		if t := p.tests[name[:i]]; t != nil {
			return t
		}
	}
	return nil
}

func (r *reporter) testEvent(p *packageRun, e event) {
	t := p.test(e.Test)
	switch result(e.Action) {
	case "run":
		t.report = nil // with -count, of an earlier run
	case "attr":
		if e.Key == reportKey {
			t.report = append(t.report, e.Value)
		}
	case "output":
		if !isFrame(e.Output) {
			t.output.WriteString(e.Output)
		}
	case pass, skip:
		// With -count a test runs several times, of which the worst counts.
		if t.result == fail || t.result == skip {
			return
		}
		t.result = result(e.Action)
		if t.result == pass {
			t.output.Reset()
		}
	case fail:
		p.fail(t)
		r.printFailure(p, t)
	}
}

// fail marks a test as failed, and its parents as having a failed subtest.
func (p *packageRun) fail(t *testRun) {
	t.result = fail
	for parent := p.parent(t.name); parent != nil; parent = p.parent(parent.name) {
		parent.childFailed = true
	}
}

// reportKey is the key of the attributes that are lines of the report.
const reportKey = "report"

// frame is what the testing package writes to tell the output of parallel tests apart.
var frame = regexp.MustCompile(`^=== (RUN|PAUSE|CONT|NAME|ATTR) `)

func isFrame(output string) bool { return frame.MatchString(output) }

func (r *reporter) packageEvent(p *packageRun, e event) {
	switch result(e.Action) {
	case "output":
		p.output.WriteString(e.Output)
	case pass, skip:
		p.result, p.elapsed = result(e.Action), e.Elapsed
		r.printPackage(p)
	case fail:
		p.result, p.elapsed = fail, e.Elapsed
		r.endFailedPackage(p, e.FailedBuild)
	}
}

// endFailedPackage finds out why a package failed, and prints what no test's failure has shown.
func (r *reporter) endFailedPackage(p *packageRun, failedBuild string) {
	r.endUnfinished(p)
	switch {
	case failedBuild != "":
		p.reason = "does not build"
		r.printBuild(failedBuild)
	case p.failures() == 0:
		p.reason = "failed outside of any test"
	}
	r.print(p.output.String())
	r.printPackage(p)
}

// endUnfinished fails the tests that have begun and not ended: the process crashed or was ended. Subtests come before
// the tests that they belong to.
func (r *reporter) endUnfinished(p *packageRun) {
	for _, t := range slices.Backward(p.order) {
		if t.result != running {
			continue
		}
		p.fail(t)
		fmt.Fprintf(&t.output, "%s did not end\n", t.name)
		r.printFailure(p, t)
	}
}

// finish closes what has not ended, prints the summary, and says whether all is well.
func (r *reporter) finish(strict bool) bool {
	for _, path := range slices.Sorted(maps.Keys(r.packages)) {
		if p := r.packages[path]; p.result == running {
			p.result = fail
			fmt.Fprintf(&p.output, "the test of %s did not end\n", path)
			r.endFailedPackage(p, "")
		}
	}
	// A build that failed without the test of a package, of a dependency of several say, is told once all the same.
	orphans := 0
	for _, path := range slices.Sorted(maps.Keys(r.builds)) {
		if r.builds[path].failed {
			orphans++
		}
		r.printBuild(path)
	}
	return r.printSummary(strict, orphans)
}

// counted reports whether a test counts: one with subtests only where it has a result of its own.
func (t *testRun) counted() bool {
	return !t.hasChildren || t.result == skip || (t.result == fail && !t.childFailed)
}

func (p *packageRun) count(want result) int {
	n := 0
	for _, t := range p.order {
		if t.result == want && t.counted() {
			n++
		}
	}
	return n
}

// failures counts failed tests, and the package itself where it failed for another reason.
func (p *packageRun) failures() int {
	n := p.count(fail)
	if p.reason != "" {
		n++
	}
	return n
}

// position is where testing says that a line was logged.
var position = regexp.MustCompile(`^[^ :]+\.go:\d+: `)

// skipReason is what the test gave to t.Skip, on one line.
func (t *testRun) skipReason() string {
	var reason []string
	for line := range strings.Lines(t.output.String()) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "--- SKIP: ") {
			reason = append(reason, position.ReplaceAllString(line, ""))
		}
	}
	if len(reason) == 0 {
		return "no reason given"
	}
	return strings.Join(reason, " ")
}
