package registry_test

import (
	"testing"

	"imgcrypt/internal/testregistry"
	"imgcrypt/store/registry"
	"imgcrypt/store/storetest"
)

// go-containerregistry's registry has one set of blobs for all repositories, so each of
// the suite's tests has a registry of its own.
func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		s, err := registry.Open(testregistry.Start(t).Ref("app"), registry.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return storetest.Subject{Store: s, Tags: s, NoSHA512: true}
	})
}
