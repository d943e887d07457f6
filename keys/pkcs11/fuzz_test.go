package pkcs11_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imgcrypt/keys"
	"imgcrypt/keys/pkcs11"
	"imgcrypt/layer"
)

// noHelper is a configuration with which everything works but the token.
func noHelper(t testing.TB) pkcs11.Config {
	t.Helper()
	dir := t.TempDir()
	c := pkcs11.Config{File: filepath.Join(dir, "ocicrypt.conf"), Helper: filepath.Join(dir, "none")}
	if err := os.WriteFile(c.File, []byte("pkcs11: {module-directories: ["+dir+"], allowed-module-paths: ["+dir+"/]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "module.so"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// Whatever a key file is, it is an identity, or not one, or a bad one; and what is sent elsewhere is the same there.
func FuzzPKCS11KeyFile(f *testing.F) {
	c := noHelper(f)
	const uri = "pkcs11:token=t;object=o;id=%01;slot-id=1?module-name=module&pin-value=1234"
	f.Add([]byte("pkcs11:\n  uri: "+uri+"\nmodule:\n  env:\n    A: b\n"), []byte(nil))
	f.Add([]byte(`{"pkcs11":{"uri":"`+uri+`"}}`), []byte("pin"))
	f.Add([]byte("pkcs11: {uri: 'pkcs11:id=%01?module-path=/m.so&pin-source=file:/no'}"), []byte("\x00"))
	f.Add([]byte("a: &a [x,x]\nb: &b [*a,*a]\npkcs11: {uri: *b}"), []byte(nil))
	f.Add([]byte("- pkcs11:\n"), []byte(nil))
	f.Fuzz(func(t *testing.T, data, password []byte) {
		id, err := pkcs11.Scheme(c).Identity(keys.Key{Label: "key.yaml", Data: data, Password: password})
		r, rErr := pkcs11.Scheme(c).Recipients(t.Context(), keys.Parameters{keys.ParamPKCS11Keys: {data}})
		if err != nil {
			if !errors.Is(err, keys.ErrNoMatch) && !errors.Is(err, keys.ErrNotKey) {
				t.Errorf("an error of no kind: %v", err)
			}
			if errors.Is(err, keys.ErrNotKey) && rErr == nil {
				t.Error("a recipient, but no identity")
			}
			return
		}
		if rErr != nil || len(r) != 1 {
			t.Errorf("an identity, but no recipient: %v", rErr)
		}
		packet := layer.Packet{Scheme: "pkcs11", Data: []byte(`{"recipients":[{"blob":"AAAA"}]}`)}
		_, err = id.Unwrap(t.Context(), []layer.Packet{packet})
		if !errors.Is(err, keys.ErrUnreachable) && !errors.Is(err, keys.ErrPassword) {
			t.Errorf("an error of no kind: %v", err)
		}
		params, pErr := id.(keys.Portable).Parameters()
		if pErr != nil {
			t.Fatal(pErr)
		}
		_, again := pkcs11.Scheme(c).Identities(params)[0].Unwrap(t.Context(), []layer.Packet{packet})
		if text := strings.ReplaceAll(again.Error(), keys.ParamPKCS11Config, c.File); text != err.Error() {
			t.Errorf("%s, sent elsewhere: %s", err, text)
		}
	})
}

// Whatever a packet is, it is described, and tried or not.
func FuzzPKCS11Packet(f *testing.F) {
	c := noHelper(f)
	path := filepath.Join(f.TempDir(), "key.yaml")
	if err := os.WriteFile(path, []byte("pkcs11: {uri: 'pkcs11:token=t;object=o?module-name=module'}\n"), 0o600); err != nil {
		f.Fatal(err)
	}
	id := newIdentity(f, c, path)
	f.Add([]byte(`{"version":0,"recipients":[{"version":0,"blob":"AAAA","hash":"sha256","kid":"x"}]}`))
	f.Add([]byte(`{"recipients":[{"blob":"AAAA"},{"blob":"AAAA","hash":"md5","kid":5}]}`))
	f.Add([]byte(`{"recipients":[{}]}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := layer.Packet{Scheme: "pkcs11", Data: data}
		_, err := id.Unwrap(t.Context(), []layer.Packet{p})
		if !errors.Is(err, keys.ErrUnreachable) && !errors.Is(err, layer.ErrMalformed) {
			t.Errorf("an error of no kind: %v", err)
		}
	})
}

// Whoever a packet says it is for is a word that prints.
func FuzzPKCS11Describe(f *testing.F) {
	f.Add([]byte(`{"version":0,"recipients":[{"version":0,"blob":"AAAA","hash":"sha256","kid":"x"},{}]}`))
	f.Add([]byte(`{"recipients":[{"kid":"\u001b[2J\n,"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		names := pkcs11.Describe(layer.Packet{Scheme: "pkcs11", Data: data})
		if len(names) == 0 {
			t.Error("described as nothing")
		}
		for _, name := range names {
			if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0x9b }) {
				t.Errorf("described as %q", name)
			}
		}
	})
}
