package pgp_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unicode"

	"imgcrypt/keys"
	"imgcrypt/keys/pgp"
	"imgcrypt/layer"
)

// messageSeeds are messages of all kinds for the test's keys.
func messageSeeds(f *testing.F) {
	f.Helper()
	e, r := testRecipients(f)
	f.Add(wrap(f, e, secret).Data)
	f.Add(wrap(f, r, secret).Data)
	key := bytes.Repeat([]byte{5}, 32)
	f.Add(append(sessionECDH(f, 0, block(9, key)), sealOCB(f, key, 4, literal(secret))...))
	for _, data := range hostile(f) {
		f.Add(data)
	}
}

func FuzzPGPUnwrap(f *testing.F) {
	id := testIdentity(f)
	messageSeeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		secret, err := id.Unwrap(t.Context(), []layer.Packet{message(data)})
		if err == nil && len(secret) > layer.MaxSecretSize {
			t.Errorf("a secret of %d bytes", len(secret))
		}
		if err != nil && !errors.Is(err, keys.ErrNoMatch) && !errors.Is(err, layer.ErrMalformed) {
			t.Errorf("an error of no kind: %v", err)
		}
	})
}

func FuzzPGPDescribe(f *testing.F) {
	s := noGPG()
	messageSeeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		p := message(data)
		names := s.Describe(p)
		if len(names) == 0 || len(names) < len(pgp.KeyIDs(p)) || len(names) > 1024 {
			t.Errorf("described as %d names", len(names))
		}
		for _, name := range names {
			for _, r := range name {
				if !unicode.IsPrint(r) {
					t.Fatalf("%q does not print", name)
				}
			}
		}
	})
}

func FuzzPGPKeyFile(f *testing.F) {
	ring, armored := testKeys()
	f.Add(armored, "")
	var both []byte
	for _, e := range ring {
		var public, private bytes.Buffer
		if err := errors.Join(e.Serialize(&public), e.SerializePrivateWithoutSigning(&private, nil)); err != nil {
			f.Fatal(err)
		}
		f.Add(public.Bytes(), "")
		f.Add(private.Bytes(), "password")
		both = append(both, public.Bytes()...)
	}
	f.Add(both, "")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte, password string) {
		s := noGPG()
		id, err := s.Identity(keys.Key{Label: "key", Data: data, Password: []byte(password)})
		if err == nil {
			if _, err := id.(keys.Portable).Parameters(); err != nil && !errors.Is(err, keys.ErrNotKey) {
				t.Errorf("parameters: %v", err)
			}
		} else if !errors.Is(err, keys.ErrNoMatch) && !errors.Is(err, keys.ErrNotKey) && !errors.Is(err, keys.ErrPassword) {
			t.Errorf("an error of no kind: %v", err)
		}
		path := filepath.Join(dir, "key")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := s.Recipient(t.Context(), path, new(keys.Files))
		if err != nil {
			if !errors.Is(err, keys.ErrNotKey) && len(data) <= keys.MaxFileSize {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		if _, err := r.Wrap(t.Context(), []byte("secret")); err != nil {
			t.Errorf("a recipient that cannot be wrapped for: %v", err)
		}
	})
}
