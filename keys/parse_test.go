package keys_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imgcrypt/keys"
	"imgcrypt/keys/provider"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
)

func newParser() *keys.Parser { return &keys.Parser{Schemes: schemes.All(schemes.Options{})} }

// wrapped returns the annotations of a layer with this secret for these recipients.
func wrapped(t testing.TB, secret layer.Secret, recipients ...keys.Recipient) map[string]string {
	t.Helper()
	data, err := layer.MarshalSecret(secret)
	if err != nil {
		t.Fatal(err)
	}
	annotations := map[string]string{}
	for _, r := range recipients {
		p, err := r.Wrap(context.Background(), data)
		if err != nil {
			t.Fatal(err)
		}
		name := layer.KeysAnnotationPrefix + p.Scheme
		annotations[name] = layer.AddPacket(annotations[name], p)
	}
	return annotations
}

func testSecret() layer.Secret {
	return layer.Secret{Key: [32]byte{1, 2, 3}, Nonce: [16]byte{4, 5}, Digest: "sha256:abc"}
}

func recipientFor(t testing.TB, private []byte) keys.Recipient {
	t.Helper()
	r, err := newParser().Recipient(t.Context(), "jwe:"+writeFile(t, "pub.pem", publicOf(t, private)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func identityOf(t testing.TB, label string, data []byte) keys.Identity {
	t.Helper()
	id, err := newParser().IdentityOf(keys.Key{Label: label, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestRecipientErrors(t *testing.T) {
	t.Parallel()
	ec := newEC(t, "P-256")
	private := writeFile(t, "key.pem", ec)
	dir := t.TempDir()
	for _, tt := range []struct {
		name, arg string
		is        error
		want      string
	}{
		{"no scheme", "pub.pem", keys.ErrUnknownScheme, `recipient "pub.pem" names no scheme, as in jwe:…: unknown scheme (known: jwe, pgp, pkcs11, pkcs7, provider)`},
		{"empty", "", keys.ErrUnknownScheme, "names no scheme"},
		{"unknown scheme", "x509:pub.pem", keys.ErrUnknownScheme, `recipient of unknown scheme "x509" (known: jwe, pgp, pkcs11, pkcs7, provider)`},
		{"case matters", "JWE:pub.pem", keys.ErrUnknownScheme, `"JWE"`},
		{"no file", "jwe:", nil, "names nothing after the scheme"},
		{"missing", "jwe:" + dir + "/none", os.ErrNotExist, "recipient jwe: " + dir + "/none: no such file"},
		{"directory", "jwe:" + dir, nil, "is a directory"},
		{"private key", "jwe:" + private, keys.ErrNotKey, "it holds a private key, and a recipient is its public half"},
		{"P-224", "jwe:" + writeFile(t, "p224", publicOf(t, newEC(t, "P-224"))), keys.ErrNotKey, "curve P-224 cannot be encrypted for"},
		{"Ed25519", "jwe:" + writeFile(t, "ed", publicOf(t, openssl(t, nil, "genpkey", "-algorithm", "ED25519"))), keys.ErrNotKey, "cannot be encrypted for (RSA and EC keys can)"},
		{"RSA 1024", "jwe:" + writeFile(t, "small", publicOf(t, openssl(t, nil, "genrsa", "1024"))), keys.ErrNotKey, "an RSA key of 1024 bits cannot be encrypted for"},
		{"public key with password", "jwe:" + private + ":" + password, nil, private + ": a recipient takes no password"},
		{"key with password", "key.pem:" + password, keys.ErrUnknownScheme, `unknown scheme "key.pem"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := newParser().Recipient(t.Context(), tt.arg)
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), password) {
				t.Errorf("the error repeats the password: %v", err)
			}
		})
	}
}

func TestNoSchemes(t *testing.T) {
	t.Parallel()
	var p keys.Parser
	if _, err := p.Recipient(t.Context(), "jwe:pub.pem"); !errors.Is(err, keys.ErrUnknownScheme) || !strings.Contains(err.Error(), "known: none") {
		t.Errorf("Recipient: %v", err)
	}
	if _, err := p.IdentityOf(keys.Key{Label: "k", Data: newEC(t, "P-256")}); !errors.Is(err, keys.ErrNotKey) {
		t.Errorf("IdentityOf: %v", err)
	}
}

func TestKeyPasswords(t *testing.T) {
	t.Parallel()
	path := writeFile(t, "key.pem", []byte("content"))
	long := strings.Repeat("long:", 1000)
	for _, tt := range []struct{ name, arg, want string }{
		{"plain", ":secret", "secret"},
		{"plain with colons", ":a:b:c", "a:b:c"},
		{"pass", ":pass=secret", "secret"},
		{"pass with colons", ":pass=a:b", "a:b"},
		{"pass with form", ":pass=file=x", "file=x"},
		{"pass with equals", ":pass=a=b", "a=b"},
		{"plain with equals", ":a=b", "a=b"},
		{"plain pass", ":pass", "pass"},
		{"empty", ":", ""},
		{"empty pass", ":pass=", ""},
		{"long", ":pass=" + long, long},
		{"file", ":file=" + writeFile(t, "pw", []byte("from file")), "from file"},
		{"file with line end", ":file=" + writeFile(t, "pw", []byte("x\n")), "x"},
		{"file with Windows line end", ":file=" + writeFile(t, "pw", []byte("x\r\n")), "x"},
		{"file with two line ends", ":file=" + writeFile(t, "pw", []byte("x\n\n")), "x\n"},
		{"file with blanks", ":file=" + writeFile(t, "pw", []byte(" x \n")), " x "},
		{"file of long password", ":file=" + writeFile(t, "pw", []byte(long+"\n")), long},
		{"empty file", ":file=" + writeFile(t, "pw", nil), ""},
		{"file with colon in its name", ":file=" + writeFile(t, "p:w", []byte("x")), "x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			k, err := newParser().Key(path + tt.arg)
			if err != nil {
				t.Fatal(err)
			}
			if string(k.Password) != tt.want || k.Password == nil {
				t.Errorf("password %q, want %q", k.Password, tt.want)
			}
			if string(k.Data) != "content" || k.Label != path {
				t.Errorf("data %q, label %q", k.Data, k.Label)
			}
			if s := fmt.Sprintf("%v %+v %#v %s", k, k, k, &k); tt.want != "" && strings.Contains(s, tt.want) {
				t.Errorf("printing a key shows its password: %s", s)
			}
		})
	}
	k, err := newParser().Key(path)
	if err != nil || k.Password != nil {
		t.Errorf("without password: %q, %v", k.Password, err)
	}
}

func TestKeyPasswordDescriptor(t *testing.T) {
	t.Parallel()
	path := writeFile(t, "key.pem", []byte("content"))
	long := strings.Repeat("0123456789", 5000) // more than fits a pipe, and far over 64 bytes
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() {
		io.WriteString(w, long+"\n")
		w.Close()
	}()
	p := newParser()
	for range 2 { // the second time from memory
		k, err := p.Key(fmt.Sprintf("%s:fd=%d", path, r.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		if string(k.Password) != long {
			t.Errorf("password of %d bytes, want %d", len(k.Password), len(long))
		}
	}
}

func TestKeyErrors(t *testing.T) {
	t.Parallel()
	path := writeFile(t, "key.pem", []byte("content"))
	none := filepath.Join(t.TempDir(), "none")
	for _, tt := range []struct {
		name, arg string
		is        error
		want      string
	}{
		{"empty", "", nil, "no file is named"},
		{"only a password", ":" + password, nil, "no file is named"},
		{"missing", none + ":" + password, os.ErrNotExist, "key " + none + ": no such file"},
		{"missing password file", path + ":file=" + none, keys.ErrPassword, "password of key " + path + ": " + none + ": no such file"},
		{"no password file", path + ":file=", keys.ErrPassword, "no file is named"},
		{"no number", path + ":fd=" + password, keys.ErrPassword, "fd= takes the number of a file descriptor"},
		{"negative", path + ":fd=-1", keys.ErrPassword, "fd= takes the number"},
		{"not open", path + ":fd=99999", keys.ErrPassword, "file descriptor 99999: bad file descriptor"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := newParser().Key(tt.arg)
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), password) {
				t.Errorf("the error repeats the password: %v", err)
			}
		})
	}
}

// Who gives a key instead of the file that it is in does not find it in a log.
func TestPastedSecrets(t *testing.T) {
	t.Parallel()
	p := newParser()
	for _, secret := range []string{
		string(newEC(t, "P-256")), strings.ReplaceAll(string(newRSA(t)), "\n", " "), `{"kty":"EC","d":"` + password + `"}`,
		"pkcs11:object=o?pin-value=" + password, "object=o?pin-value=" + password,
	} {
		_, key := p.Key(secret)
		_, certificate := p.Identities(nil, []string{"pkcs7:" + secret})
		errs := map[string]error{"key": key, "certificate": certificate}
		for _, prefix := range []string{"", "jwe:", "pgp:", "pgp:./", "pkcs7:", "pkcs11:"} {
			_, errs["recipient "+prefix] = p.Recipient(t.Context(), prefix+secret)
		}
		for what, err := range errs {
			if err == nil || leaks(err.Error(), []byte(password)) != "" || leaks(err.Error(), body([]byte(secret))) != "" {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	// A parameter of a key provider may be anything.
	_, err := p.Recipient(t.Context(), "provider:hsm:pkcs11:object=o?pin-value="+password)
	if !errors.Is(err, provider.ErrConfig) {
		t.Errorf("%v", err)
	}
}

func TestKeyOnADrive(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, tt := range []struct{ arg, file, password string }{
		{`C:\k.pem:pw`, `C:\k.pem`, "pw"},
		{`c:\k.pem:pass=a:b`, `c:\k.pem`, "a:b"},
		{`C:\k.pem`, `C:\k.pem`, ""},
		{`C:pw`, `C`, "pw"},
		{`C:/pw`, `C`, "/pw"}, // on Windows this is a path
		{`1:\pw`, `1`, `\pw`},
	} {
		if err := os.WriteFile(tt.file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := newParser().Key(tt.arg)
		if err != nil || k.Label != tt.file || string(k.Password) != tt.password {
			t.Errorf("%s: label %q, password %q, error %v", tt.arg, k.Label, k.Password, err)
		}
	}
}

func TestIdentityErrors(t *testing.T) {
	t.Parallel()
	ec := newEC(t, "P-256")
	locked := writeFile(t, "locked.pem", openssl(t, ec, "pkcs8", "-topk8", "-passout", "pass:"+password))
	for _, tt := range []struct {
		name, arg string
		is        error
		want      string
	}{
		{"public key", writeFile(t, "pub", publicOf(t, ec)), keys.ErrNotKey, "pub: not a usable key: it holds a public key"},
		{"certificate", writeFile(t, "crt", certificateOf(t, ec)), keys.ErrNotKey, "it holds a certificate"},
		{"no password", locked, keys.ErrPassword, "locked.pem: it is encrypted: give its password as KEY:file=PATH"},
		{"wrong password", locked + ":no" + password, keys.ErrPassword, "locked.pem: wrong password"},
		{"Ed25519", writeFile(t, "ed", openssl(t, nil, "genpkey", "-algorithm", "ED25519")), keys.ErrNotKey, "an Ed25519 key cannot open anything (known schemes: jwe, pgp, pkcs11, pkcs7, provider)"},
		{"P-224", writeFile(t, "p224", newEC(t, "P-224")), keys.ErrNotKey, "curve P-224 cannot open anything"},
		{"garbage", writeFile(t, "g", []byte(password)), keys.ErrNotKey, "neither PEM, DER nor JWK"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := newParser().Identity(tt.arg)
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), password) {
				t.Errorf("the error repeats the password: %v", err)
			}
		})
	}
}

func TestIdentityOpens(t *testing.T) {
	t.Parallel()
	for kind, private := range testKeys(t) {
		annotations := wrapped(t, testSecret(), recipientFor(t, private))
		for name, data := range encrypted(t, private) {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				id, err := newParser().Identity(writeFile(t, "key", data) + ":pass=" + password)
				if err != nil {
					t.Fatal(err)
				}
				got, err := keys.Open(t.Context(), []keys.Identity{id}, annotations)
				if err != nil || got != testSecret() {
					t.Errorf("got %v, %v", got, err)
				}
			})
		}
	}
}

// Two schemes that can use the same key file share it.
func TestIdentityOfSeveralSchemes(t *testing.T) {
	t.Parallel()
	other := keys.Scheme{Name: "other", Identity: func(k keys.Key) (keys.Identity, error) {
		return fakeIdentity{scheme: "other"}, nil
	}}
	broken := keys.Scheme{Name: "broken", Identity: func(k keys.Key) (keys.Identity, error) {
		return nil, errors.New("broken")
	}}
	ec := newEC(t, "P-256")
	p := &keys.Parser{Schemes: append(schemes.All(schemes.Options{}), other, broken)}
	id, err := p.IdentityOf(keys.Key{Label: "k", Data: ec})
	if err != nil {
		t.Fatal(err)
	}
	if n := id.(keys.Named).Name(); n != "k" {
		t.Errorf("name %q", n)
	}
	got, err := id.Unwrap(t.Context(), []layer.Packet{{Scheme: "other"}})
	if err != nil || string(got) != "other" {
		t.Errorf("other: %q, %v", got, err)
	}
	p2, err := recipientFor(t, ec).Wrap(t.Context(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err = id.Unwrap(t.Context(), []layer.Packet{p2}); err != nil || string(got) != "x" {
		t.Errorf("jwe: %q, %v", got, err)
	}
	if _, err = id.Unwrap(t.Context(), nil); !errors.Is(err, keys.ErrNoMatch) {
		t.Errorf("neither: %v", err)
	}
	if _, err = id.Unwrap(t.Context(), []layer.Packet{{Scheme: "jwe", Data: []byte("x")}}); !errors.Is(err, layer.ErrMalformed) {
		t.Errorf("malformed: %v", err)
	}
}

// fakeIdentity opens every packet of its scheme; its secret is the scheme's name.
type fakeIdentity struct {
	scheme string
	err    error
}

func (f fakeIdentity) Unwrap(_ context.Context, packets []layer.Packet) ([]byte, error) {
	for _, p := range packets {
		if p.Scheme == f.scheme {
			return []byte(f.scheme), nil
		}
	}
	if f.err != nil {
		return nil, f.err
	}
	return nil, keys.ErrNoMatch
}
