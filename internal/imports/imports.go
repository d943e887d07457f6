// Package imports keeps the directions in which the module's packages import each other: its test loads
// them with `go list` and applies the rules. A rule about a package that does not exist (yet) holds.
package imports

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// module is the path of the root package.
const module = "imgcrypt"

// graph is what each package imports directly, without its tests.
type graph map[string][]string

// rule restricts what some packages import. Patterns are import paths; "x/..." is x and everything below it, "x..."
// everything that begins with x.
type rule struct {
	// why says in a sentence what the rule is for.
	why string
	// of are the packages that the rule is about.
	of []string
	// except are packages among them that it is not about.
	except []string
	// only are the packages of this module that they may import, besides those of the rule itself and internal ones; nil is
	// no restriction.
	only []string
	// never are packages that they must not import.
	never []string
	// transitive extends never to what the imported packages import, and so on.
	transitive bool
}

// harness is what exists for tests and the demo only.
var harness = []string{"imgcrypt/internal/test...", "imgcrypt/internal/cmd/...", "imgcrypt/e2e/..."}

const containerd = "github.com/containerd/containerd..."

// rules are the module's: lower layers know nothing of higher ones, and what is heavy stays at the edge.
func rules() []rule {
	return []rule{
		{
			why: "layer is the bottom",
			of:  []string{"imgcrypt/layer/..."}, only: []string{},
		},
		{
			why: "keys stands on layer",
			of:  []string{"imgcrypt/keys/..."}, only: []string{"imgcrypt/layer/..."},
		},
		{
			why: "the root package stands on keys and layer",
			of:  []string{module}, only: []string{"imgcrypt/layer/...", "imgcrypt/keys/..."},
		},
		{
			why: "the stream processor's protocol stands on keys and layer",
			of:  []string{"imgcrypt/streamproc/..."}, only: []string{"imgcrypt/layer/...", "imgcrypt/keys/..."},
		},
		{
			why: "a store stands on the root package",
			of:  []string{"imgcrypt/store/..."}, only: []string{module, "imgcrypt/layer/...", "imgcrypt/keys/..."},
		},
		{
			why: "what serves containerd knows no command",
			of:  []string{"imgcrypt/images/...", "imgcrypt/differ/...", "imgcrypt/node/..."}, never: []string{"imgcrypt/cmd/..."},
		},
		{
			why: "internal packages are below those that use them",
			of:  []string{"imgcrypt/internal/..."}, except: append([]string{"imgcrypt/internal/cli..."}, harness...), only: []string{},
		},
		{
			why: "test harness is for tests",
			of:  []string{"imgcrypt/..."}, except: harness, never: harness,
		},
		{
			why: "only what serves containerd imports it",
			of:  []string{"imgcrypt/..."}, never: []string{containerd},
			except: append([]string{
				"imgcrypt/images/encryption/...", "imgcrypt/differ/...", "imgcrypt/node/...",
				"imgcrypt/cmd/ctr-enc/...", "imgcrypt/cmd/imgcrypt/...",
			}, harness...),
		},
		{
			why: "the library can be used without containerd",
			of:  []string{module, "imgcrypt/layer/...", "imgcrypt/keys/...", "imgcrypt/store/...", "imgcrypt/streamproc/..."},
			// Its typeurl, platforms, errdefs are small modules of their own.
			never: []string{containerd}, transitive: true,
		},
		{
			why: "the decoder is started for every layer: nothing of containerd, no gRPC in it",
			of:  []string{"imgcrypt/cmd/ctd-decoder/..."},
			never: []string{
				"github.com/containerd/...", "google.golang.org/grpc/...", "github.com/urfave/cli/...",
			},
			transitive: true,
		},
		{
			why: "only the helper for tokens needs a C compiler",
			of:  []string{"imgcrypt/..."}, except: append([]string{"imgcrypt/keys/pkcs11/module/...", "imgcrypt/cmd/imgcrypt-pkcs11/..."}, harness...),
			never: []string{"C", "github.com/miekg/pkcs11/...", "imgcrypt/keys/pkcs11/module/..."},
		},
		{
			why: "keys on tokens are used by a program of their own",
			// ocicrypt's config, whose types the root package takes, imports it where there is cgo.
			of:     []string{"imgcrypt/keys/...", "imgcrypt/streamproc/...", "imgcrypt/cmd/ctd-decoder/..."},
			except: []string{"imgcrypt/keys/pkcs11/module/..."},
			never:  []string{"github.com/miekg/pkcs11/..."}, transitive: true,
		},
		{
			why: "only commands know a CLI library",
			of:  []string{"imgcrypt/..."}, except: []string{"imgcrypt/cmd/...", "imgcrypt/internal/cli..."},
			never: []string{"github.com/urfave/cli/...", "github.com/spf13/..."},
		},
		{
			why: "only tests and their harness import testing",
			of:  []string{"imgcrypt/..."}, except: append([]string{"imgcrypt/store/storetest/..."}, harness...),
			never: []string{"testing/..."},
		},
	}
}

// check returns a line for each import that breaks the rule: the packages from the one that the rule is about to the one
// that it must not import, and why.
func (r rule) check(g graph) []string {
	var broken []string
	for _, pkg := range slices.Sorted(maps.Keys(g)) {
		if !matchAny(r.of, pkg) || matchAny(r.except, pkg) {
			continue
		}
		for _, imported := range g[pkg] {
			if r.only != nil && matches("imgcrypt/...", imported) && !r.allows(imported) {
				broken = append(broken, fmt.Sprintf("%s imports %s: %s", pkg, imported, r.why))
			}
		}
		for _, chain := range r.forbidden(g, pkg) {
			broken = append(broken, fmt.Sprintf("%s: %s", strings.Join(chain, " imports "), r.why))
		}
	}
	return broken
}

func (r rule) allows(imported string) bool {
	return matchAny(r.only, imported) || matchAny(r.of, imported) || matches("imgcrypt/internal/...", imported)
}

// forbidden finds the shortest ways from pkg to packages that it must never import; beyond one of those it does not look.
func (r rule) forbidden(g graph, pkg string) [][]string {
	var found [][]string
	seen := map[string]bool{pkg: true}
	queue := [][]string{{pkg}}
	for len(queue) > 0 {
		chain := queue[0]
		queue = queue[1:]
		for _, imported := range g[chain[len(chain)-1]] {
			if seen[imported] {
				continue
			}
			seen[imported] = true
			next := append(slices.Clone(chain), imported)
			switch {
			case matchAny(r.never, imported):
				found = append(found, next)
			case r.transitive:
				queue = append(queue, next)
			}
		}
	}
	return found
}

func matchAny(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, pkg) })
}

func matches(pattern, pkg string) bool {
	prefix, open := strings.CutSuffix(pattern, "...")
	if !open {
		return pkg == pattern
	}
	return strings.HasPrefix(pkg, prefix) || pkg+"/" == prefix
}
