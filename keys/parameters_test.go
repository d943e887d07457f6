package keys_test

import (
	"errors"
	"strings"
	"testing"

	"imgcrypt/keys"
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
		{"no password", parameters{"privkeys": {locked}}, 1, "privkeys[0]: is encrypted: give its password"},
		{"wrong password", parameters{"privkeys": {locked}, "privkeys-passwords": {[]byte("no")}}, 1, "privkeys[0]: wrong password"},
		{"garbage beside a good one", parameters{"privkeys": {[]byte("garbage"), ec}}, 2, ""},
		{"garbage", parameters{"privkeys": {rsaKey, []byte("garbage")}}, 2, "none of the 2 keys opens it (encrypted for jwe): privkeys[1]: not a usable key: neither PEM, DER nor JWK"},
		{"not for it", parameters{"privkeys": {rsaKey}}, 1, "the key does not open it (encrypted for jwe)"},
		{"kinds that do not matter here", parameters{"privkeys": {ec}, "x509s": {{1}}, "gpg-privatekeys": {{1}}, "gpg-privatekeys-passwords": {{1}}, "pkcs11-yamls": {{1}}, "pkcs11-config": {{1}}, "vault": {[]byte("x")}}, 4, ""},
		{"empty lists", parameters{"privkeys": {}, "gpg-privatekeys": nil, "vault": {}}, 0, "no key was given"},
		{"certificate alone", parameters{"x509s": {{1}}}, 0, "no key was given"},
		{"provider alone", parameters{"vault": {[]byte(password)}}, 1, "key provider.vault does not open it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ids, err := keys.FromParameters(schemes.All(), tt.params)
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
	_, err := keys.FromParameters(schemes.All(), parameters{"privkeys": {ec}, "privkeys-passwords": {nil, nil}})
	if err == nil {
		t.Error("two passwords for one key: no error")
	}
}

func TestFromParametersOfOtherSchemes(t *testing.T) {
	t.Parallel()
	for kind, scheme := range map[string]string{"gpg-privatekeys": "pgp", "pkcs11-yamls": "pkcs11", "vault": "provider.vault"} {
		ids, err := keys.FromParameters(schemes.All(), parameters{kind: {[]byte(password)}})
		if err != nil || len(ids) != 1 {
			t.Fatalf("%s: %d identities, %v", kind, len(ids), err)
		}
		_, err = keys.Open(t.Context(), ids, map[string]string{layer.KeysAnnotationPrefix + scheme: "AAAA"})
		if !errors.Is(err, keys.ErrUnknownScheme) || !strings.Contains(err.Error(), scheme+" keys are not supported yet") {
			t.Errorf("%s: %v", kind, err)
		}
		if _, err = ids[0].Unwrap(t.Context(), []layer.Packet{{Scheme: "jwe", Data: []byte("x")}}); !errors.Is(err, keys.ErrNoMatch) {
			t.Errorf("%s meets jwe: %v", kind, err)
		}
	}
	// Once there is a scheme of that name, it gets the keys.
	pgp := keys.Scheme{Name: "pgp", Identity: func(k keys.Key) (keys.Identity, error) {
		if string(k.Password) != "pw" {
			t.Errorf("password %q", k.Password)
		}
		return fakeIdentity{scheme: "pgp"}, nil
	}}
	ids, err := keys.FromParameters([]keys.Scheme{pgp}, parameters{"gpg-privatekeys": {{1}}, "gpg-privatekeys-passwords": {[]byte("pw")}})
	if err != nil || len(ids) != 1 {
		t.Fatalf("%d identities, %v", len(ids), err)
	}
	if got, err := ids[0].Unwrap(t.Context(), []layer.Packet{{Scheme: "pgp"}}); err != nil || string(got) != "pgp" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestRecipientsFromParameters(t *testing.T) {
	t.Parallel()
	ec, rsaKey := newEC(t, "P-256"), newRSA(t)
	all, err := keys.RecipientsFromParameters(schemes.All(), parameters{
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
		{"pgp", parameters{"pubkeys": {publicOf(t, ec)}, "gpg-recipients": {[]byte("a@b")}}, keys.ErrUnknownScheme, "pgp recipients are not supported yet"},
		{"pkcs7", parameters{"x509s": {{1}}}, keys.ErrUnknownScheme, "pkcs7 recipients are not supported yet"},
		{"pkcs11", parameters{"pkcs11-pubkeys": {{1}}}, keys.ErrUnknownScheme, "pkcs11 recipients"},
		{"provider", parameters{"vault": {{1}}}, keys.ErrUnknownScheme, "provider.vault recipients"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := keys.RecipientsFromParameters(schemes.All(), tt.params)
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
