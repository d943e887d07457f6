package archive_test

import (
	"path/filepath"
	"testing"

	"imgcrypt/store/archive"
	"imgcrypt/store/storetest"
)

func TestDockerWriter(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		path := filepath.Join(t.TempDir(), "d.tar")
		d, err := archive.CreateDocker(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return storetest.Subject{
			Store: d, Tags: d, Names: []string{"app:v1", "example.test:5000/a/b_c:v2", "localhost/x", "a.b/c-d/e__f:V_3.x-y"},
			OddNames: []string{" ", "App:v1", "a b", "a:", ":v1", "a:b:c", "a//b", "/a", "a/", "-a", "a@sha256:x", "@0", "a:v1\n", "é", "a:.b"},
			NoLayers: true, NoIndexes: true, Prunes: true,
		}
	})
}
