package keys_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
)

type parameters = map[string][][]byte

func TestFromParameters(t *testing.T) {
	t.Parallel()
	ec, rsaKey := newEC(t, "P-256"), newRSA(t)
	locked := openssl(t, ec, "pkcs8", "-topk8", "-passout", "pass:"+password)
	annotations := wrapped(t, testSecret(), recipientFor(t, ec))
	for _, tt := range []struct {
		name   string
		params parameters
		ids    int
		want   string // of the error; empty if it opens
	}{
		{"nil", nil, 0, "no key was given"},
		{"plain", parameters{"privkeys": {ec}}, 1, ""},
		{"empty password", parameters{"privkeys": {ec}, "privkeys-passwords": {{}}}, 1, ""},
		{"password", parameters{"privkeys": {locked}, "privkeys-passwords": {[]byte(password)}}, 1, ""},
		{"second password", parameters{"privkeys": {rsaKey, locked}, "privkeys-passwords": {nil, []byte(password)}}, 2, ""},
		{"short list of passwords", parameters{"privkeys": {locked, rsaKey}, "privkeys-passwords": {[]byte(password)}}, 2, ""},
		{"no password", parameters{"privkeys": {locked}}, 1, "it is encrypted: give its password"},
		{"wrong password", parameters{"privkeys": {locked}, "privkeys-passwords": {[]byte("no")}}, 1, "privkeys[0] does not open it (encrypted for jwe): wrong password"},
		{"garbage beside a good one", parameters{"privkeys": {[]byte("garbage"), ec}}, 2, ""},
		{"garbage", parameters{"privkeys": {rsaKey, []byte("garbage")}}, 2, "none of the 2 keys opens it (encrypted for jwe)\n  key 1: not for this key\n  privkeys[1]: not a usable key: neither PEM, DER nor JWK"},
		{"not for it", parameters{"privkeys": {rsaKey}}, 1, "the key does not open it (encrypted for jwe)"},
		{"kinds that do not matter here", parameters{"privkeys": {ec}, "x509s": {{1}}, "gpg-privatekeys": {{1}}, "gpg-privatekeys-passwords": {{1}}, "pkcs11-yamls": {{1}}, "pkcs11-config": {{1}}, "vault": {[]byte("x")}}, 4, ""},
		{"empty lists", parameters{"privkeys": {}, "gpg-privatekeys": nil, "vault": {}}, 0, "no key was given"},
		{"certificate alone", parameters{"x509s": {{1}}}, 0, "no key was given"},
		{"provider alone", parameters{"vault": {[]byte(password)}}, 1, "provider vault does not open it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ids, err := keys.FromParameters(schemes.All(schemes.Options{}), tt.params)
			if err != nil || len(ids) != tt.ids {
				t.Fatalf("%d identities, want %d: %v", len(ids), tt.ids, err)
			}
			got, err := keys.Open(t.Context(), ids, annotations)
			if tt.want == "" {
				if err != nil || got != testSecret() {
					t.Errorf("got %v, %v", got, err)
				}
				return
			}
			if !errors.Is(err, keys.ErrNoKey) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), password) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	_, err := keys.FromParameters(schemes.All(schemes.Options{}), parameters{"privkeys": {ec}, "privkeys-passwords": {nil, nil}})
	if err == nil {
		t.Error("two passwords for one key: no error")
	}
}

func TestFromParametersOfUnknownSchemes(t *testing.T) {
	t.Parallel()
	only := []keys.Scheme{jwe.Scheme()}
	for kind, scheme := range map[string]string{"gpg-privatekeys": "pgp", "pkcs11-yamls": "pkcs11", "vault": "provider.vault"} {
		ids, err := keys.FromParameters(only, parameters{kind: {[]byte(password)}})
		if err != nil || len(ids) != 1 {
			t.Fatalf("%s: %d identities, %v", kind, len(ids), err)
		}
		_, err = keys.Open(t.Context(), ids, map[string]string{layer.KeysAnnotationPrefix + scheme: "AAAA"})
		if !errors.Is(err, keys.ErrUnknownScheme) || !strings.Contains(err.Error(), "keys are not supported here") {
			t.Errorf("%s: %v", kind, err)
		}
		if _, err = ids[0].Unwrap(t.Context(), []layer.Packet{{Scheme: "jwe", Data: []byte("x")}}); !errors.Is(err, keys.ErrNoMatch) {
			t.Errorf("%s meets jwe: %v", kind, err)
		}
	}
}

// Each scheme gets the kinds that are its own, with what helps them.
func TestFromParametersBySchemes(t *testing.T) {
	t.Parallel()
	got := make(map[string]parameters)
	scheme := func(name string) keys.Scheme {
		return keys.Scheme{Name: name, Identities: func(params keys.Parameters) []keys.Identity {
			got[name] = parameters(params)
			return []keys.Identity{fakeIdentity{scheme: name}}
		}}
	}
	a := [][]byte{{1}}
	ids, err := keys.FromParameters([]keys.Scheme{scheme("pgp"), scheme("pkcs11"), scheme("provider")}, parameters{
		"gpg-privatekeys": a, "gpg-privatekeys-passwords": a, "pkcs11-yamls": a, "pkcs11-config": a, "vault": a, "kms": a, "x509s": a, "privkeys-passwords": a, "none": nil,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]parameters{
		"pgp":      {"gpg-privatekeys": a, "gpg-privatekeys-passwords": a},
		"pkcs11":   {"pkcs11-yamls": a, "pkcs11-config": a},
		"provider": {"vault": a, "kms": a},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var order []string
	for _, id := range ids {
		order = append(order, id.(fakeIdentity).scheme)
	}
	if diff := cmp.Diff([]string{"pgp", "pkcs11", "provider"}, order); diff != "" {
		t.Error(diff)
	}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	a, b, none, pw := []byte("a"), []byte("b"), []byte{}, []byte("pw")
	got := keys.Parameters{}
	for _, more := range []keys.Parameters{
		{"privkeys": {a}, "privkeys-passwords": {pw}, "gpg-pubkeyringfile": {a}, "pkcs11-config": {a}, "x509s": {a}, "kms": {a}},
		{"privkeys": {a}, "privkeys-passwords": {pw}, "gpg-pubkeyringfile": {b}, "pkcs11-config": {b}, "x509s": {a, b}, "kms": {a}},
		{"privkeys": {a, b}, "gpg-privatekeys": {b}},
	} {
		got.Merge(more)
	}
	want := keys.Parameters{
		"privkeys": {a, a, b}, "privkeys-passwords": {pw, none, none}, "gpg-pubkeyringfile": {[]byte("ab")},
		"pkcs11-config": {a}, "x509s": {a, b}, "kms": {a}, "gpg-privatekeys": {b}, "gpg-privatekeys-passwords": {none},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestRecipientsFromParameters(t *testing.T) {
	t.Parallel()
	ec, rsaKey := newEC(t, "P-256"), newRSA(t)
	all, err := keys.RecipientsFromParameters(t.Context(), []keys.Scheme{jwe.Scheme()}, parameters{
		"pubkeys": {publicOf(t, ec), publicOf(t, rsaKey)}, "x509s": {}, "gpg-pubkeyringfile": {{1}}, "pkcs11-config": {{1}},
	})
	if err != nil || len(all) != 2 {
		t.Fatalf("%d recipients, %v", len(all), err)
	}
	for _, tt := range []struct {
		name   string
		params parameters
		is     error
		want   string
	}{
		{"nil", nil, keys.ErrNoRecipient, "no recipient"},
		{"helper only", parameters{"gpg-pubkeyringfile": {{1}}}, keys.ErrNoRecipient, "no recipient"},
		{"private key", parameters{"pubkeys": {publicOf(t, ec), ec}}, keys.ErrNotKey, "recipient jwe: pubkeys[1]: not a usable key: it holds a private key"},
		{"pgp", parameters{"pubkeys": {publicOf(t, ec)}, "gpg-recipients": {[]byte("a@b")}}, keys.ErrUnknownScheme, "pgp recipients are not supported here"},
		{"pkcs7", parameters{"x509s": {{1}}}, keys.ErrUnknownScheme, "pkcs7 recipients are not supported here"},
		{"pkcs11", parameters{"pkcs11-pubkeys": {{1}}}, keys.ErrUnknownScheme, "pkcs11 recipients"},
		{"provider", parameters{"vault": {{1}}}, keys.ErrUnknownScheme, "provider recipients"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := keys.RecipientsFromParameters(t.Context(), []keys.Scheme{jwe.Scheme()}, tt.params)
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
