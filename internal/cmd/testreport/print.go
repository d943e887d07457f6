package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// print writes text and ends its last line.
func (r *reporter) print(text string) {
	if text == "" {
		return
	}
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	fmt.Fprint(r.out, text)
}

// printFailure shows a failed test with all its output. A test that failed by a subtest, and wrote nothing
// itself but that it failed, is not worth a heading of its own.
func (r *reporter) printFailure(p *packageRun, t *testRun) {
	output := t.output.String()
	if t.childFailed && strings.Count(output, "\n") <= 1 {
		return
	}
	fmt.Fprintf(r.out, "\n=== failed: %s %s\n", p.path, t.name)
	r.print(output)
	fmt.Fprintln(r.out)
}

// printBuild shows the output of a build, once.
func (r *reporter) printBuild(path string) {
	if b := r.builds[path]; b != nil {
		r.print(b.output.String())
		delete(r.builds, path)
	}
}

// printPackage is the line of a package that has ended.
func (r *reporter) printPackage(p *packageRun) {
	switch {
	case p.result == skip && len(p.order) == 0:
		fmt.Fprintf(r.out, "-     %s: no test files\n", p.path)
	case p.result == fail:
		fmt.Fprintf(r.out, "FAIL  %s (%.1fs)%s\n", p.path, p.elapsed, because(p.reason))
	default:
		fmt.Fprintf(r.out, "ok    %s (%.1fs)\n", p.path, p.elapsed)
	}
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// printSummary ends the report; orphans are failed builds that no package accounts for.
func (r *reporter) printSummary(strict bool, orphans int) (ok bool) {
	var passed, failed, skipped int
	paths := slices.Sorted(maps.Keys(r.packages))
	var failures, skips, reports strings.Builder

	fmt.Fprintln(r.out)
	table := tabwriter.NewWriter(r.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "passed\tfailed\tskipped\ttime\t  package")
	for _, path := range paths {
		p := r.packages[path]
		if p.result == skip && len(p.order) == 0 {
			continue
		}
		fmt.Fprintf(table, "%d\t%d\t%d\t%.1fs\t  %s%s\n", p.count(pass), p.failures(), p.count(skip), p.elapsed, p.path, because(p.reason))
		passed, failed, skipped = passed+p.count(pass), failed+p.failures(), skipped+p.count(skip)
		for _, t := range p.order {
			if len(t.report) > 0 {
				fmt.Fprintf(&reports, "\n%s %s:\n  %s\n", p.path, t.name, strings.Join(t.report, "\n  "))
			}
			switch {
			case !t.counted():
			case t.result == skip:
				fmt.Fprintf(&skips, "  %s %s: %s\n", p.path, t.name, t.skipReason())
			case t.result == fail:
				fmt.Fprintf(&failures, "  %s %s\n", p.path, t.name)
			}
		}
		if p.reason != "" {
			fmt.Fprintf(&failures, "  %s: %s\n", p.path, p.reason)
		}
	}
	// Writing to the report's buffer cannot fail before its flush.
	_ = table.Flush()
	if orphans > 0 {
		failed += orphans
		fmt.Fprintf(&failures, "  builds that failed: %d\n", orphans)
	}

	r.print(reports.String())
	r.printList("skipped:", skips.String())
	r.printList("failed:", failures.String())
	fmt.Fprintln(r.out)
	ok = failed == 0
	if passed+failed+skipped == 0 {
		fmt.Fprintln(r.out, "no test ran, which is a failure")
		ok = false
	}
	if strict && skipped > 0 {
		fmt.Fprintln(r.out, "a skipped test is a failure here (CI=true or -strict)")
		ok = false
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	return ok
}

func (r *reporter) printList(title, list string) {
	if list != "" {
		fmt.Fprintf(r.out, "\n%s\n%s", title, list)
	}
}
