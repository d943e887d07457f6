package provider_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"imgcrypt/keys"
	"imgcrypt/keys/provider"
	"imgcrypt/layer"
)

// Whatever the configuration says, a provider that is needed can be used or is an error that names the file.
func FuzzProviderConfig(f *testing.F) {
	for _, seed := range []string{
		`{"key-providers":{"vault":{"cmd":{"path":"/no/such/program","args":["x"]}}}}`,
		`{"key-providers":{"vault":{"grpc":"unix:///no/such/socket","grpc-tls":{"root-ca-file":"x","server-name":"y"}}}}`,
		`{"key-providers":{"vault":{"grpc":"dns:///host:1"}}}`, `{"key-providers":{"vault":{"cmd":{"path":"x"},"grpc":"x"}}}`,
		`{"key-providers":{"vault":null}}`, `{"key-providers":{"other\n":{}}}`, `{"KEY-PROVIDERS":{}}`, `[]`, ``, `{`,
	} {
		f.Add([]byte(seed))
	}
	file := filepath.Join(f.TempDir(), "ocicrypt.conf")
	f.Fuzz(func(t *testing.T, data []byte) {
		write(t, file, string(data))
		s := provider.Scheme(provider.Config{File: file})
		_, err := s.Recipient(t.Context(), "vault", new(keys.Files))
		if err != nil && (!errors.Is(err, provider.ErrConfig) || !strings.HasPrefix(err.Error(), "vault: key-provider configuration "+file)) {
			t.Errorf("%v", err)
		}
		if _, again := s.Named("vault"); (again == nil) != (err == nil) {
			t.Errorf("%v, and then %v", err, again)
		}
	})
}

// Whatever a provider answers is taken apart without harm, and never quoted.
func FuzzProviderAnswer(f *testing.F) {
	for _, seed := range []string{
		`{"keyunwrapresults":{"optsdata":"c2VjcmV0"}}`, `{"keywrapresults":{"annotation":"c2VjcmV0"}}`, `{}`, `null`, `{"keyunwrapresults":null}`,
	} {
		f.Add([]byte(seed))
		f.Add(provider.Frame([]byte(seed)))
	}
	f.Add([]byte{0, 0, 0, 0, 4, 0x10, 0x07, 0x0a, 0x00})
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, op := range []string{"keywrap", "keyunwrap"} {
			out, err := provider.ParseAnswer(op, data)
			if (err == nil) != (len(out) > 0) || len(out) > layer.MaxPacketSize+len(data) {
				t.Errorf("%s: %q, %v", op, out, err)
			}
		}
		if field, err := provider.Unframe(data); err == nil && len(field) > len(data) {
			t.Errorf("%q", field)
		}
		if field, err := provider.Unframe(provider.Frame(data)); err != nil || !bytes.Equal(field, data) {
			t.Errorf("%q, %v", field, err)
		}
		if got := provider.Unescape(provider.Escape(string(data))); got != string(data) {
			t.Errorf("%q", got)
		}
		provider.Unescape(string(data))
		text := provider.Gist(string(data), []byte("secret"), data)
		if len(text) > 300 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) || strings.Contains(text, "c2VjcmV0") {
			t.Errorf("%q", text)
		}
	})
}

// Whatever the address, it can be dialled or is an error.
func FuzzProviderTarget(f *testing.F) {
	for _, seed := range []string{"localhost:1", "dns:///[::1]", "unix:a%20b", "unix-abstract:x", "passthrough:///a:b", ":0", "::", "%zz"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, target string) {
		network, address, authority, err := provider.ParseTarget(target)
		if err == nil && (network == "" || address == "" || authority == "") {
			t.Errorf("%q, %q, %q", network, address, authority)
		}
	})
}
