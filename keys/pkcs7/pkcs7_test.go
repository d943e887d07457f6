package pkcs7_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"imgcrypt/keys"
	"imgcrypt/keys/pkcs7"
	"imgcrypt/layer"
)

// holder is a private key and its certificate.
type holder struct {
	key  crypto.Signer
	cert *x509.Certificate
}

// holders are made once, since RSA keys take long.
var holders = sync.OnceValue(func() map[string]holder {
	all := make(map[string]holder)
	for i, name := range []string{"alice", "bob", "carol"} {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		all[name] = holder{key, issue(key, template(name, int64(0x5a3f+i)))}
	}
	return all
})

func template(name string, serial int64) *x509.Certificate {
	return &x509.Certificate{
		Subject:      pkix.Name{CommonName: name, Organization: []string{"Acme"}},
		SerialNumber: big.NewInt(serial),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
}

// issue makes a self-signed certificate.
func issue(key crypto.Signer, tmpl *x509.Certificate) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return cert
}

func find(name string) holder { return holders()[name] }

func newRecipient(t testing.TB, cert *x509.Certificate) *pkcs7.Recipient {
	t.Helper()
	r, err := pkcs7.NewRecipient("cert.pem", cert)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// newIdentity knows the certificates of the holders; alone does not.
func newIdentity(t testing.TB, all ...holder) *pkcs7.Identity {
	t.Helper()
	var certs []*x509.Certificate
	var private []crypto.PrivateKey
	for _, h := range all {
		certs, private = append(certs, h.cert), append(private, h.key)
	}
	id, err := pkcs7.NewIdentity("key.pem", certs, private...)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func alone(t testing.TB, h holder) *pkcs7.Identity {
	t.Helper()
	id, err := pkcs7.NewIdentity("key.pem", nil, h.key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func wrap(t testing.TB, r keys.Recipient, secret string) layer.Packet {
	t.Helper()
	p, err := r.Wrap(context.Background(), []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func packet(data []byte) layer.Packet { return layer.Packet{Scheme: "pkcs7", Data: data} }

// unwrap fails the test if id does not find want in packets.
func unwrap(t testing.TB, what string, id keys.Identity, want string, packets ...layer.Packet) {
	t.Helper()
	if got, err := id.Unwrap(context.Background(), packets); err != nil || string(got) != want {
		t.Errorf("%s: got %q, %v", what, got, err)
	}
}

func certPEM(certs ...*x509.Certificate) []byte {
	var all []byte
	for _, cert := range certs {
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return all
}

func keyPEM(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func writeFile(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// recipientOf reads a file as users name it.
func recipientOf(t testing.TB, data []byte) (keys.Recipient, error) {
	t.Helper()
	p := keys.Parser{Schemes: []keys.Scheme{pkcs7.Scheme()}}
	return p.Recipient(t.Context(), "pkcs7:"+writeFile(t, "cert.pem", data))
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for name, h := range holders() {
		r := newRecipient(t, h.cert)
		p := wrap(t, r, "secret of "+name)
		if p.Scheme != "pkcs7" || !r.Owns(p) || r.Owns(layer.Packet{Scheme: "jwe", Data: p.Data}) || r.Owns(packet([]byte("text"))) {
			t.Errorf("%s: packet of %s, owned: %v", name, p.Scheme, r.Owns(p))
		}
		for other, o := range holders() {
			if other == name {
				unwrap(t, name, newIdentity(t, o), "secret of "+name, layer.Packet{Scheme: "jwe", Data: []byte("x")}, p)
				unwrap(t, name+" without certificate", alone(t, o), "secret of "+name, p)
				continue
			}
			for kind, id := range map[string]keys.Identity{"": newIdentity(t, o), " without certificate": alone(t, o)} {
				if got, err := id.Unwrap(t.Context(), []layer.Packet{p}); !errors.Is(err, keys.ErrNoMatch) || got != nil {
					t.Errorf("%s%s opens what is for %s: %q, %v", other, kind, name, got, err)
				}
			}
			if newRecipient(t, o.cert).Owns(p) {
				t.Errorf("%s owns what is for %s", other, name)
			}
		}
	}
	// Wrapping twice never yields the same.
	r := newRecipient(t, find("alice").cert)
	if bytes.Equal(wrap(t, r, "s").Data, wrap(t, r, "s").Data) {
		t.Error("the same packet twice")
	}
	for _, secret := range []string{"", strings.Repeat("x", 300), strings.Repeat("x", layer.MaxSecretSize)} {
		unwrap(t, "length", newIdentity(t, find("alice")), secret, wrap(t, r, secret))
	}
}

// A certificate that was renewed has the same key and another serial number.
func TestRenewed(t *testing.T) {
	t.Parallel()
	h := find("alice")
	renewed := holder{h.key, issue(h.key, template("alice", 77))}
	p := wrap(t, newRecipient(t, renewed.cert), "secret")
	unwrap(t, "by the old certificate", newIdentity(t, h), "secret", p)
	unwrap(t, "by both", newIdentity(t, h, renewed), "secret", p)
	if newRecipient(t, h.cert).Owns(p) {
		t.Error("the old certificate owns the packet")
	}
}

func TestKeyFiles(t *testing.T) {
	t.Parallel()
	alice, bob := find("alice"), find("bob")
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := wrap(t, newRecipient(t, alice.cert), "secret")
	spoilt := packet(spoil(t, p.Data))
	for _, tt := range []struct {
		name  string
		key   keys.Key
		knows bool // the certificate
		err   error
	}{
		{name: "key", key: keys.Key{Data: keyPEM(t, alice.key)}},
		{name: "key and certificate in one file", key: keys.Key{Data: append(keyPEM(t, alice.key), certPEM(alice.cert)...)}, knows: true},
		{name: "the other way round", key: keys.Key{Data: append(certPEM(alice.cert), keyPEM(t, alice.key)...)}, knows: true},
		{name: "certificate beside it", key: keys.Key{Data: keyPEM(t, alice.key), Certificates: []*x509.Certificate{bob.cert, alice.cert}}, knows: true},
		{name: "another's certificate", key: keys.Key{Data: keyPEM(t, alice.key), Certificates: []*x509.Certificate{bob.cert}}},
		{name: "a damaged certificate", key: keys.Key{Data: append(keyPEM(t, alice.key), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: alice.cert.Raw[:100]})...)}},
		{name: "two keys", key: keys.Key{Data: slices.Concat(keyPEM(t, bob.key), keyPEM(t, alice.key), certPEM(alice.cert))}, knows: true},
		{name: "an EC key, too", key: keys.Key{Data: slices.Concat(keyPEM(t, ec), keyPEM(t, alice.key))}},
		{name: "EC key", key: keys.Key{Data: keyPEM(t, ec)}, err: keys.ErrNoMatch},
		{name: "certificate", key: keys.Key{Data: certPEM(alice.cert)}, err: keys.ErrNoMatch},
		{name: "text", key: keys.Key{Data: []byte("text")}, err: keys.ErrNoMatch},
		{name: "nothing", err: keys.ErrNoMatch},
	} {
		tt.key.Label = "key.pem"
		id, err := pkcs7.Scheme().Identity(tt.key)
		if tt.err != nil || err != nil {
			if !errors.Is(err, tt.err) {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		unwrap(t, tt.name, id, "secret", p)
		want := keys.ErrNoMatch
		if tt.knows {
			want = layer.ErrMalformed
		}
		if _, err := id.Unwrap(t.Context(), []layer.Packet{spoilt}); !errors.Is(err, want) {
			t.Errorf("%s: damaged packet: %v", tt.name, err)
		}
		if got := id.(keys.Named).Name(); got != "key.pem" {
			t.Errorf("%s: named %q", tt.name, got)
		}
	}
}

// spoil damages the content of a packet.
func spoil(t testing.TB, data []byte) []byte {
	t.Helper()
	data = bytes.Clone(data)
	data[len(data)-1] ^= 1
	return data
}

func TestDamage(t *testing.T) {
	t.Parallel()
	alice, bob := find("alice"), find("bob")
	good := wrap(t, newRecipient(t, alice.cert), "secret")
	bad := packet(spoil(t, good.Data))
	other := wrap(t, newRecipient(t, bob.cert), "other")
	id := newIdentity(t, find("carol"), alice)
	var damaged *pkcs7.DamagedError
	_, err := id.Unwrap(t.Context(), []layer.Packet{other, bad})
	if !errors.As(err, &damaged) || !errors.Is(err, layer.ErrMalformed) || errors.Is(err, keys.ErrNoMatch) {
		t.Fatalf("got %v", err)
	}
	if want := `damaged pkcs7 packet: it names the certificate issuer="CN=alice,O=Acme" serial=5A3F but does not open with its key`; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	unwrap(t, "beside a good one", id, "secret", bad, other, good)
	for name, id := range map[string]keys.Identity{"stranger": newIdentity(t, bob), "key alone": alone(t, alice)} {
		if _, err := id.Unwrap(t.Context(), []layer.Packet{bad}); !errors.Is(err, keys.ErrNoMatch) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The content key, not the content.
	forged := bytes.Clone(good.Data)
	i := bytes.Index(forged, []byte{0x04, 0x82, 0x01, 0x00})
	if i < 0 {
		t.Fatal("no content key of 256 bytes")
	}
	clear(forged[i+4 : i+4+256])
	if _, err := id.Unwrap(t.Context(), []layer.Packet{packet(forged)}); !errors.As(err, &damaged) {
		t.Errorf("forged key: %v", err)
	}
}

// No byte of a packet can be changed so that it panics or opens as another secret. What
// names the recipient may change, as the key is tried anyway.
func TestFlipEveryByte(t *testing.T) {
	t.Parallel()
	alice := find("alice")
	good := wrap(t, newRecipient(t, alice.cert), "secret").Data
	id := newIdentity(t, alice)
	opened, masks := 0, []byte{1, 4, 0x20, 0xff}
	for i := range good {
		for _, mask := range masks {
			bad := packet(bytes.Clone(good))
			bad.Data[i] ^= mask
			switch secret, err := id.Unwrap(t.Context(), []layer.Packet{bad}); {
			case err == nil && string(secret) == "secret":
				opened++
			case err == nil:
				t.Errorf("byte %d ^ %#x: another secret: %q", i, mask, secret)
			case !errors.Is(err, layer.ErrMalformed) && !errors.Is(err, keys.ErrNoMatch):
				t.Errorf("byte %d ^ %#x: %v", i, mask, err)
			}
			if len(pkcs7.Describe(bad)) == 0 {
				t.Errorf("byte %d ^ %#x: described as nothing", i, mask)
			}
		}
	}
	if opened > len(masks)*120 {
		t.Errorf("%d of %d changes open", opened, len(masks)*len(good))
	}
	for n := range good {
		if _, err := id.Unwrap(t.Context(), []layer.Packet{packet(good[:n])}); !errors.Is(err, layer.ErrMalformed) {
			t.Errorf("%d bytes of %d: %v", n, len(good), err)
		}
	}
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	alice := find("alice")
	good := wrap(t, newRecipient(t, alice.cert), "secret")
	replace := func(old, new string) []byte {
		if !bytes.Contains(good.Data, []byte(old)) {
			t.Fatalf("%x is not in the packet", old)
		}
		return bytes.Replace(good.Data, []byte(old), []byte(new), 1)
	}
	gcm := "\x60\x86\x48\x01\x65\x03\x04\x01\x06"
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"empty":         {nil, "no CMS"},
		"text":          {[]byte("text"), "no CMS"},
		"half":          {good.Data[:len(good.Data)/2], "no CMS"},
		"more":          {append(bytes.Clone(good.Data), 0), "no CMS"},
		"signed":        {replace("\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03", "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02"), "CMS of a type that is not supported (1.2.840.113549.1.7.2)"},
		"other content": {replace(gcm, gcm[:8]+"\x07"), "content encrypted in a way that is not supported (2.16.840.1.101.3.4.1.7)"},
		"CBC":           {replace(gcm, gcm[:8]+"\x02"), "content encrypted in a way that is not supported (CBC)"},
		"long":          {wrap(t, newRecipient(t, alice.cert), strings.Repeat("x", layer.MaxSecretSize+17)).Data, "content over 65568 bytes"},
		"other key":     {replace("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x09"), "a content key encrypted in a way that is not supported (1.2.840.113549.1.1.9)"},
	} {
		_, err := newIdentity(t, alice).Unwrap(t.Context(), []layer.Packet{packet(tt.data)})
		if !errors.Is(err, layer.ErrMalformed) || errors.Is(err, keys.ErrNoMatch) || !strings.HasPrefix(err.Error(), "pkcs7 packet: ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		unwrap(t, name+" before a good one", newIdentity(t, alice), "secret", packet(tt.data), good)
		unwrap(t, name+" after a good one", alone(t, alice), "secret", good, packet(tt.data))
	}
	two := []layer.Packet{packet([]byte("a")), packet([]byte("b"))}
	if _, err := alone(t, alice).Unwrap(t.Context(), two); !errors.Is(err, layer.ErrMalformed) || !strings.Contains(err.Error(), "(and 1 more such packets)") {
		t.Errorf("two: %v", err)
	}
	for name, packets := range map[string][]layer.Packet{"none": nil, "other scheme": {{Scheme: "pgp", Data: []byte("x")}}} {
		if _, err := alone(t, alice).Unwrap(t.Context(), packets); !errors.Is(err, keys.ErrNoMatch) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCanceled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := newRecipient(t, find("alice").cert)
	if _, err := r.Wrap(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Wrap: %v", err)
	}
	if _, err := newIdentity(t, find("alice")).Unwrap(ctx, []layer.Packet{wrap(t, r, "s")}); !errors.Is(err, context.Canceled) {
		t.Errorf("Unwrap: %v", err)
	}
}

func TestParameters(t *testing.T) {
	t.Parallel()
	alice, bob := find("alice"), find("bob")
	params, err := newRecipient(t, alice.cert).Parameters()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(keys.Parameters{"x509s": {alice.cert.Raw}}, params); d != "" {
		t.Errorf("recipient (-want +got):\n%s", d)
	}
	back, err := pkcs7.Scheme().Recipients(t.Context(), params)
	if err != nil || len(back) != 1 {
		t.Fatalf("back: %v, %v", back, err)
	}
	p := wrap(t, back[0], "secret")

	id, err := pkcs7.NewIdentity("k", []*x509.Certificate{bob.cert, alice.cert, alice.cert}, alice.key)
	if err != nil {
		t.Fatal(err)
	}
	if params, err = id.Parameters(); err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(alice.key)
	if err != nil {
		t.Fatal(err)
	}
	want := keys.Parameters{"privkeys": {der}, "privkeys-passwords": {{}}, "x509s": {alice.cert.Raw}}
	if d := cmp.Diff(want, params); d != "" {
		t.Errorf("identity (-want +got):\n%s", d)
	}
	ids, err := keys.FromParameters([]keys.Scheme{pkcs7.Scheme()}, params)
	if err != nil || len(ids) != 1 {
		t.Fatalf("back: %v, %v", ids, err)
	}
	unwrap(t, "back", ids[0], "secret", p)
}
