package keys_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
)

func TestIdentities(t *testing.T) {
	t.Parallel()
	a, b := newRSA(t), newRSA(t)
	keyA, keyB := writeFile(t, "a.pem", a), writeFile(t, "b.pem", b)
	certA, certB := writeFile(t, "a.crt", certificateOf(t, a)), writeFile(t, "b.crt", certificateOf(t, b))
	both := writeFile(t, "both.pem", concat(certificateOf(t, a), a))
	chain := writeFile(t, "chain.crt", concat(certificateOf(t, a), certificateOf(t, b)))
	for _, tt := range []struct {
		name             string
		keys, recipients []string
		ids              int
		want             string // of the error
		is               error
	}{
		{"none", nil, nil, 0, "", nil},
		{"key", []string{keyA}, nil, 1, "", nil},
		{"certificate among the keys", []string{keyA, certA}, nil, 1, "", nil},
		{"certificate before its key", []string{certA, keyB, keyA}, nil, 2, "", nil},
		{"certificate as recipient", []string{keyA}, []string{"pkcs7:" + certA}, 1, "", nil},
		{"one file", []string{both}, nil, 1, "", nil},
		{"chain", []string{keyA}, []string{"pkcs7:" + chain}, 1, "", nil},
		{"other schemes", []string{keyA}, []string{"jwe:whatever", "pgp:alice", "provider:kms"}, 1, "", nil},
		{"certificate alone", []string{certA}, nil, 0, "it holds a certificate, and opening takes the private key", keys.ErrNotKey},
		{"certificates alone", []string{certA, certB}, nil, 0, "it is the certificate of none of the private keys", keys.ErrNotKey},
		{"certificate of another", []string{keyA, certB}, nil, 0, certB + ": not a usable key: it is the certificate of none", keys.ErrNotKey},
		{"recipient of another", []string{keyA}, []string{"pkcs7:" + certB}, 0, certB + ": not a usable key: it is the certificate of none", keys.ErrNotKey},
		{"recipient without key", nil, []string{"pkcs7:" + certB}, 0, "it is the certificate of none", keys.ErrNotKey},
		{"key as recipient", []string{keyA}, []string{"pkcs7:" + keyA}, 0, "recipient pkcs7: " + keyA + ": not a usable key: it holds a private key", keys.ErrNotKey},
		{"missing", []string{keyA}, []string{"pkcs7:/nowhere"}, 0, "recipient pkcs7: /nowhere: no such file", nil},
		{"unknown scheme", []string{keyA}, []string{"smime:" + certA}, 0, "recipient of unknown scheme \"smime\"", keys.ErrUnknownScheme},
		{"no scheme", []string{keyA}, []string{certA}, 0, "unknown scheme", keys.ErrUnknownScheme},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ids, err := newParser().Identities(tt.keys, tt.recipients)
			if tt.want == "" && tt.is == nil {
				if err != nil || len(ids) != tt.ids {
					t.Errorf("%d identities, %v", len(ids), err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// Keys that are no files are left to their scheme, and their order stays.
func TestNamedKeys(t *testing.T) {
	t.Parallel()
	refused := errors.New("no such provider")
	p := &keys.Parser{Schemes: append(schemes.All(schemes.Options{}), keys.Scheme{Name: "vault", Named: func(arg string) (keys.Identity, error) {
		if arg == "none" {
			return nil, refused
		}
		return named{"vault " + arg, fakeIdentity{scheme: "vault"}}, nil
	}})}
	file := writeFile(t, "key.pem", newEC(t, "P-256"))
	ids, err := p.Identities([]string{"vault:a:b=c", file, "vault:"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, id := range ids {
		names = append(names, id.(keys.Named).Name())
	}
	if diff := cmp.Diff([]string{"vault a:b=c", file, "vault "}, names); diff != "" {
		t.Error(diff)
	}
	if _, err = p.Identities([]string{"vault:none"}, nil); !errors.Is(err, refused) || err.Error() != "key vault: no such provider" {
		t.Errorf("got %v", err)
	}
}

// A fallback comes last, and is mentioned only where it had something to say.
func TestFallbacks(t *testing.T) {
	t.Parallel()
	broken := errors.New("kms: gone")
	all := []keys.Scheme{
		{Name: "none"},
		{Name: "ring", Fallback: func(given []keys.Identity) keys.Identity {
			if len(given) > 0 {
				return nil
			}
			return named{"ring", fakeIdentity{scheme: "jwe"}}
		}},
		{Name: "provider", Fallback: func([]keys.Identity) keys.Identity {
			return named{"providers", fakeIdentity{err: broken}}
		}},
		{Name: "silent", Fallback: func([]keys.Identity) keys.Identity { return named{"silent", fakeIdentity{}} }},
	}
	if n := len(keys.Fallbacks(all, nil)); n != 3 {
		t.Errorf("%d fallbacks, want 3", n)
	}
	ec := newEC(t, "P-256")
	given := []keys.Identity{identityOf(t, "mine", newEC(t, "P-256"))}
	_, err := keys.Open(t.Context(), append(given, keys.Fallbacks(all, given)...), wrapped(t, testSecret(), recipientFor(t, ec)))
	want := "none of the 2 keys opens it (encrypted for jwe)\n  mine: not for this key\n  providers: kms: gone"
	if !errors.Is(err, broken) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

type cautious struct{ keys.Recipient }

func (cautious) Caution() error { return errors.New("old.crt: expired") }

func TestCaution(t *testing.T) {
	t.Parallel()
	var warned []string
	p := &keys.Parser{
		Schemes: []keys.Scheme{{Name: "x", Recipient: func(context.Context, string, *keys.Files) (keys.Recipient, error) { return cautious{}, nil }}},
		Warn:    func(err error) { warned = append(warned, err.Error()) },
	}
	if _, err := p.Recipient(t.Context(), "x:old.crt"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"recipient x: old.crt: expired"}, warned); diff != "" {
		t.Error(diff)
	}
	p.Warn = nil
	if _, err := p.Recipient(t.Context(), "x:old.crt"); err != nil {
		t.Error(err)
	}
}

func TestOwns(t *testing.T) {
	t.Parallel()
	s := keys.Scheme{Name: "provider"}
	for name, want := range map[string]bool{"provider": true, "provider.kms": true, "providers": false, "jwe": false, "": false} {
		if s.Owns(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}
