package archive_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"imgcrypt/store/archive"
	"imgcrypt/store/storetest"
)

// must is for what only fails where the machine is broken.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func create(t testing.TB, path string) *archive.OCI {
	t.Helper()
	a, err := archive.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func open(t testing.TB, path string) *archive.OCI {
	t.Helper()
	a, err := archive.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

// oddNames are no names of images by the specification, and would be surprising ones.
var oddNames = []string{
	" ", "a b", "-v1", "v1-", "a//b", "/a", "a/", "a..b", "../v1", "v1\n", "é", "a\x00b", `a"b`, "a,b", "@v1", "@0x", "@7",
	"@" + digest.FromString("none").String(), strings.Repeat("a", 1025),
}

func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		path := filepath.Join(t.TempDir(), "a.tar")
		return subject(path, create(t, path))
	})
}

func subject(path string, a *archive.OCI) storetest.Subject {
	return storetest.Subject{
		Store: a, Tags: a, OddNames: oddNames, Names: []string{"v1", "example.test:5000/app_x/y.z:v1.2-rc+3", "a--b", "latest"}, Prunes: true,
		Reopen: func(t *testing.T) storetest.Subject {
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			if left := leftovers(t, path); len(left) > 0 {
				t.Error("left behind", left)
			}
			return subject(path, open(t, path))
		},
	}
}

// leftovers lists what is beside an archive.
func leftovers(t testing.TB, path string) (left []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(path) {
			left = append(left, e.Name())
		}
	}
	return left
}
