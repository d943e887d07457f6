package layout_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/store/layout"
	"imgcrypt/store/storetest"
)

// must is for what only fails where the machine is broken.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func create(t testing.TB, dir string) *layout.Store {
	t.Helper()
	s, err := layout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func open(t testing.TB, dir string) *layout.Store {
	t.Helper()
	s, err := layout.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// oddNames are no names of images by the specification, and would be surprising ones.
var oddNames = []string{
	" ", "a b", "-v1", "v1-", "a//b", "/a", "a/", "a..b", "../v1", "v1\n", "é", "a\x00b", `a"b`, "a,b", "@v1", "@0x", "@7",
	"@" + digest.FromString("none").String(), strings.Repeat("a", 1025),
}

func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		dir := filepath.Join(t.TempDir(), "new", "layout")
		return subject(t, dir, create(t, dir))
	})
}

func subject(t *testing.T, dir string, s *layout.Store) storetest.Subject {
	return storetest.Subject{
		Store: s, Tags: s, OddNames: oddNames, Names: []string{"v1", "example.test:5000/app_x/y.z:v1.2-rc+3", "a--b", "latest"},
		Leftovers: func(t *testing.T) []string { return leftovers(t, dir) },
		Reopen: func(t *testing.T) storetest.Subject {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			return subject(t, dir, open(t, dir))
		},
	}
}

// leftovers lists the files in a layout that do not belong there.
func leftovers(t testing.TB, dir string) (left []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name := must(filepath.Rel(dir, path))
		if parts := strings.Split(filepath.ToSlash(name), "/"); len(parts) == 3 && parts[0] == "blobs" && digest.Digest(parts[1]+":"+parts[2]).Validate() == nil {
			return nil
		}
		if !slices.Contains([]string{ocispec.ImageIndexFile, ocispec.ImageLayoutFile}, name) {
			left = append(left, name)
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	return left
}
