package encryption_test

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"imgcrypt/images/encryption"
	"imgcrypt/store/storetest"
)

func TestStore(t *testing.T) {
	t.Parallel()
	for kind, client := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, func(t *testing.T) storetest.Subject {
				cs, _ := newContent(t)
				return storetest.Subject{
					Store:     encryption.NewStore(client(t, cs)),
					Leftovers: func(t *testing.T) []string { return ingests(t, cs, t.Context()) },
				}
			})
		})
	}
}

// With names, labels and garbage collection.
func TestStoreOfANode(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		n, ctx := newNode(t, "linux/amd64")
		leased, release := n.lease(t, ctx)
		leftovers := func(t *testing.T) []string { return ingests(t, n.cs, ctx) }
		open := func() storetest.Subject {
			return storetest.Subject{
				Store:     encryption.NewStore(n.cs),
				Tags:      encryption.NewTags(n.is),
				Context:   func(ctx context.Context) context.Context { return inherit(ctx, leased) },
				OddNames:  []string{""},
				Leftovers: leftovers,
				Collect:   func(t *testing.T) { release(); n.collect(t, ctx) },
			}
		}
		s := open()
		s.Reopen = func(*testing.T) storetest.Subject { return open() }
		return s
	})
}

// inherit returns ctx in the namespace and the lease of leased.
func inherit(ctx, leased context.Context) context.Context {
	id := must2(leases.FromContext(leased))
	return leases.WithLease(namespaces.WithNamespace(ctx, must(namespaces.NamespaceRequired(leased))), id)
}

// ingests lists what is half-written.
func ingests(t *testing.T, cs content.Store, ctx context.Context) []string {
	t.Helper()
	statuses, err := cs.ListStatuses(ctx)
	if err != nil {
		t.Error(err)
	}
	var refs []string
	for _, s := range statuses {
		refs = append(refs, s.Ref)
	}
	return refs
}
