package pkcs7_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imgcrypt/keys"
	"imgcrypt/keys/pkcs7"
)

func TestCertificateFiles(t *testing.T) {
	t.Parallel()
	caKey, leafKey := find("bob").key, find("alice").key
	caTemplate := template("ca", 1)
	caTemplate.IsCA, caTemplate.BasicConstraintsValid = true, true
	ca := issue(caKey, caTemplate)
	der, err := x509.CreateCertificate(rand.Reader, template("leaf", 2), ca, leafKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	alice := find("alice")
	for _, tt := range []struct {
		name string
		data []byte
		want string // of the packet's description, or of the error
	}{
		{"PEM", certPEM(alice.cert), `issuer="CN=alice,O=Acme" serial=5A3F`},
		{"DER", alice.cert.Raw, `issuer="CN=alice,O=Acme" serial=5A3F`},
		{"text before it", append([]byte("Certificate:\n  Data:\n"), certPEM(alice.cert)...), `issuer="CN=alice,O=Acme" serial=5A3F`},
		{"chain", certPEM(leaf, ca), `issuer="CN=ca,O=Acme" serial=02`},
		{"with its key", append(keyPEM(t, alice.key), certPEM(alice.cert)...), `issuer="CN=alice,O=Acme" serial=5A3F`},
		{"chain the wrong way", certPEM(ca, leaf), "cert.pem: not a usable key: several certificates that are no chain"},
		{"two", certPEM(alice.cert, find("bob").cert), "several certificates that are no chain"},
		{"empty", nil, "cert.pem: not a usable key: an empty file"},
		{"private key", keyPEM(t, alice.key), "cert.pem: not a usable key: it holds a private key"},
		{"damaged", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: append(slices.Clone(alice.cert.Raw[:len(alice.cert.Raw)-300]), make([]byte, 300)...)}), "not a usable key"},
	} {
		r, err := recipientOf(t, tt.data)
		if !strings.HasPrefix(tt.want, "issuer=") {
			if !errors.Is(err, keys.ErrNotKey) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "cert.pem: ") {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		p := wrap(t, r, "secret")
		if got := pkcs7.Describe(p); len(got) != 1 || got[0] != tt.want {
			t.Errorf("%s: described as %q, want %q", tt.name, got, tt.want)
		}
		unwrap(t, tt.name, alone(t, alice), "secret", p)
	}
	var p keys.Parser
	p.Schemes = []keys.Scheme{pkcs7.Scheme()}
	if _, err := p.Recipient(t.Context(), "pkcs7:"+filepath.Join(t.TempDir(), "missing.pem")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func TestUnusableCertificates(t *testing.T) {
	t.Parallel()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	even := *find("alice").cert
	even.PublicKey = &rsa.PublicKey{N: find("alice").key.Public().(*rsa.PublicKey).N, E: 4}
	for _, tt := range []struct {
		name string
		cert *x509.Certificate
		want string
	}{
		{"EC", issue(ec, template("ec", 1)), "a certificate of an EC key cannot be encrypted for with pkcs7, only RSA can"},
		{"Ed25519", issue(ed, template("ed", 1)), "a certificate of a key of this kind cannot be encrypted for"},
		{"RSA 1024", issue(small, template("small", 1)), "an RSA key of 1024 bits cannot be encrypted for (2048 to 16384 can)"},
		{"exponent 4", &even, "nothing can be encrypted for it"},
		{"nothing", &x509.Certificate{}, "a certificate of a key of this kind"},
	} {
		if _, err := pkcs7.NewRecipient("c", tt.cert); !errors.Is(err, keys.ErrNotKey) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if len(tt.cert.Raw) == 0 || tt.name == "exponent 4" {
			continue
		}
		if _, err := recipientOf(t, certPEM(tt.cert)); !errors.Is(err, keys.ErrNotKey) || !strings.Contains(err.Error(), "cert.pem: not a usable key: ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: file: %v", tt.name, err)
		}
		params := keys.Parameters{keys.ParamCertificates: {find("alice").cert.Raw, tt.cert.Raw}}
		if _, err := pkcs7.Scheme().Recipients(t.Context(), params); !errors.Is(err, keys.ErrNotKey) || !strings.HasPrefix(err.Error(), "x509s[1]: ") {
			t.Errorf("%s: parameters: %v", tt.name, err)
		}
	}
	if _, err := pkcs7.NewIdentity("k", nil, ec, ed, nil); !errors.Is(err, keys.ErrNoMatch) {
		t.Errorf("identity: %v", err)
	}
}

// An expired certificate is a key carrier all the same.
func TestCaution(t *testing.T) {
	t.Parallel()
	h := find("alice")
	at := func(text string) time.Time {
		when, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		return when
	}
	valid, expired, future := template("a", 1), template("a", 2), template("a", 3)
	expired.NotBefore, expired.NotAfter = at("2001-01-01T00:00:00Z"), at("2002-03-04T05:06:07Z")
	future.NotBefore, future.NotAfter = at("2048-01-02T03:04:05Z"), at("2049-01-01T00:00:00Z")
	for _, tt := range []struct {
		tmpl *x509.Certificate
		want string
	}{
		{valid, ""},
		{expired, "cert.pem: the certificate expired at 2002-03-04T05:06:07Z; it is used all the same"},
		{future, "cert.pem: the certificate is not valid before 2048-01-02T03:04:05Z; it is used all the same"},
	} {
		cert := issue(h.key, tt.tmpl)
		var warned []string
		p := keys.Parser{Schemes: []keys.Scheme{pkcs7.Scheme()}, Warn: func(err error) { warned = append(warned, err.Error()) }}
		path := writeFile(t, "cert.pem", certPEM(cert))
		r, err := p.Recipient(t.Context(), "pkcs7:"+path)
		if err != nil {
			t.Errorf("%q: %v", tt.want, err)
			continue
		}
		want := strings.ReplaceAll(tt.want, "cert.pem", path)
		if got := strings.Join(warned, "\n"); got != want && got != "recipient pkcs7: "+want {
			t.Errorf("warned %q, want %q", got, want)
		}
		unwrap(t, tt.want, newIdentity(t, h), "secret", wrap(t, r, "secret"))
	}
}
