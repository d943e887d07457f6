package registry_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"imgcrypt/internal/testregistry"
	"imgcrypt/store/registry"
	"imgcrypt/store/storetest"
)

// oddNames are no tags.
var oddNames = []string{"", "a b", "a/b", "a:b", "a@b", "ä", "a?b", "../x", strings.Repeat("a", 129), "sha256:00"}

// go-containerregistry's registry has one set of blobs for all repositories, so each of
// the suite's tests has a registry of its own.
func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		r := testregistry.Start(t)
		subject := func(t *testing.T) storetest.Subject {
			s := open(t, r.Ref("app"), quick())
			return storetest.Subject{Store: s, Tags: s, NoSHA512: true, OddNames: oddNames}
		}
		first := subject(t)
		first.Reopen = subject
		return first
	})
}

// Debian's registry has blobs for each repository, and uploads that can be seen. It is
// spoken to by https and with a password here, and by http in tests of their own.
func TestStoreDebian(t *testing.T) {
	t.Parallel()
	ca := testregistry.NewAuthority(t)
	r := testregistry.StartDebianWith(t, testregistry.DebianOptions{TLS: ca, User: "user", Password: password})
	o := login(quick())
	o.CAFile = ca.File
	// That registry fails now and then when a blob is looked at that is just being linked.
	o.Retry.Wait = 50 * time.Millisecond
	var n atomic.Int64
	// The subtests are parallel, and the registry is to outlive them.
	t.Run("suite", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) storetest.Subject { return debian(t, r, fmt.Sprintf("app/r%d", n.Add(1)), o) })
	})
	if left := r.Uploads(t); len(left) > 0 {
		t.Errorf("uploads are left: %q", left)
	}
}

func debian(t *testing.T, r *testregistry.Registry, repository string, o registry.Options) storetest.Subject {
	s := open(t, r.Ref(repository), o)
	return storetest.Subject{
		Store: s, Tags: s, OddNames: oddNames,
		Reopen: func(t *testing.T) storetest.Subject { return debian(t, r, repository, o) },
		Leftovers: func(t *testing.T) []string {
			var left []string
			// A PATCH that was given up may still be on its way to its end.
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				left = left[:0]
				for _, upload := range r.Uploads(t) {
					if strings.Contains(upload, "/"+repository+"/") {
						left = append(left, upload)
					}
				}
				if len(left) == 0 {
					break
				}
			}
			return left
		},
	}
}
