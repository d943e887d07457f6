package pkcs7_test

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"imgcrypt/internal/testenv"
	"imgcrypt/keys"
	"imgcrypt/keys/pkcs7"
	"imgcrypt/layer"
)

// openssl runs the openssl command and returns its standard output.
func openssl(t testing.TB, stdin []byte, args ...string) []byte {
	t.Helper()
	testenv.Need(t, "openssl")
	cmd := exec.Command("openssl", args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %q: %v\n%s", args, err, stderr.Bytes())
	}
	return out
}

// opensslCMS encrypts for the certificates in files.
func opensslCMS(t testing.TB, secret string, args ...string) layer.Packet {
	t.Helper()
	return packet(openssl(t, []byte(secret), append([]string{"cms", "-encrypt", "-binary", "-outform", "DER"}, args...)...))
}

// opensslGCM is what openssl encrypts with AES-GCM, as EnvelopedData. openssl itself writes
// AuthEnvelopedData, which has the same parts, and the tag beside the content. With pieces, the
// content is in that many.
func opensslGCM(t testing.TB, secret string, pieces int, args ...string) layer.Packet {
	t.Helper()
	var info struct {
		Type    asn1.ObjectIdentifier
		Content struct {
			Version    int
			Recipients []asn1.RawValue `asn1:"set"`
			Content    struct {
				Type      asn1.ObjectIdentifier
				Algorithm pkix.AlgorithmIdentifier
				Content   asn1.RawValue
			}
			Tag []byte
		} `asn1:"explicit,tag:0"`
	}
	if rest, err := asn1.Unmarshal(opensslCMS(t, secret, args...).Data, &info); err != nil || len(rest) > 0 {
		t.Fatalf("openssl's CMS: %v", err)
	}
	body := &info.Content
	content := append(bytes.Clone(body.Content.Content.Bytes), body.Tag...)
	if pieces == 0 {
		return packet(buildPacket(t, &body.Content.Algorithm, content, body.Recipients...))
	}
	body.Content.Content = implicit(0, true, nil)
	for part := range slices.Chunk(content, len(content)/pieces+1) {
		body.Content.Content.Bytes = append(body.Content.Content.Bytes, marshal(t, part).FullBytes...)
	}
	return packet(indefinite(t, buildEnvelope(t, body.Recipients, body.Content)))
}

func TestOpensWhatOpensslWrapped(t *testing.T) {
	t.Parallel()
	alice, bob := find("alice"), find("bob")
	cert, other := writeFile(t, "alice.pem", certPEM(alice.cert)), writeFile(t, "bob.pem", certPEM(bob.cert))
	ecKey := openssl(t, nil, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
	ecCert := writeFile(t, "ec.pem", openssl(t, nil, "req", "-x509", "-new", "-key", writeFile(t, "ec-key.pem", ecKey), "-subj", "/CN=ec"))
	withKeyID := template("alice", 7)
	withKeyID.SubjectKeyId = []byte{0xab, 0xcd, 0xef}
	alice.cert = issue(alice.key, withKeyID)
	keyID := writeFile(t, "keyid.pem", certPEM(alice.cert))
	for _, tt := range []struct {
		name   string
		pieces int
		args   []string
		want   string // of the description
	}{
		{"AES-128", 0, []string{"-aes-128-gcm", cert}, `issuer="CN=alice,O=Acme" serial=5A3F`},
		{"AES-192", 0, []string{"-aes-192-gcm", cert}, ""},
		{"AES-256", 0, []string{"-aes-256-gcm", cert}, ""},
		{"in one piece of unknown length", 1, []string{"-aes-256-gcm", cert}, `issuer="CN=alice,O=Acme" serial=5A3F`},
		{"in pieces", 5, []string{"-aes-256-gcm", cert}, `issuer="CN=alice,O=Acme" serial=5A3F`},
		{"second of two", 0, []string{"-aes-256-gcm", other, cert}, `issuer="CN=alice,O=Acme" serial=5A3F`},
		{"beside an EC key", 0, []string{"-aes-256-gcm", ecCert, cert}, "[pkcs7]"},
		{"key id", 0, []string{"-aes-256-gcm", "-keyid", keyID}, "keyid=ABCDEF"},
		{"OAEP", 0, []string{"-aes-256-gcm", "-recip", cert, "-keyopt", "rsa_padding_mode:oaep"}, `issuer="CN=alice,O=Acme" serial=5A3F`},
		{"OAEP SHA-256", 0, []string{"-aes-256-gcm", "-recip", cert, "-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256"}, ""},
		{"OAEP SHA-512, MGF1 SHA-1", 0, []string{"-aes-256-gcm", "-recip", cert, "-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha512", "-keyopt", "rsa_mgf1_md:sha1"}, ""},
		{"OAEP with a label", 0, []string{"-aes-256-gcm", "-recip", cert, "-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_label:0102"}, ""},
	} {
		p := opensslGCM(t, "a secret", tt.pieces, tt.args...)
		unwrap(t, tt.name, newIdentity(t, alice), "a secret", p)
		unwrap(t, tt.name+" without certificate", alone(t, alice), "a secret", p)
		if got := strings.Join(pkcs7.Describe(p), ", "); !strings.Contains(got, tt.want) {
			t.Errorf("%s: described as %q, want %q", tt.name, got, tt.want)
		}
		if _, err := newIdentity(t, find("carol")).Unwrap(t.Context(), []layer.Packet{p}); !errors.Is(err, keys.ErrNoMatch) {
			t.Errorf("%s: a stranger: %v", tt.name, err)
		}
	}
	if p := opensslGCM(t, "a secret", 0, "-aes-256-gcm", "-keyid", keyID); !newRecipient(t, alice.cert).Owns(p) {
		t.Error("the key id's recipient does not own the packet")
	}
}

// What openssl writes if nobody asks for something else is refused, whoever it is for.
func TestRefusesWhatOpensslWrapped(t *testing.T) {
	t.Parallel()
	alice := find("alice")
	cert := writeFile(t, "alice.pem", certPEM(alice.cert))
	secret, err := layer.MarshalSecret(layer.Secret{Key: [32]byte{1, 2, 3}, Nonce: [16]byte{4, 5, 6}})
	if err != nil {
		t.Fatal(err)
	}
	good := wrap(t, newRecipient(t, alice.cert), "secret")
	cbc := "pkcs7 packet: malformed: content encrypted in a way that is not supported (CBC)"
	for _, tt := range []struct{ arg, want string }{
		{"-aes128", cbc},
		{"-aes192", cbc},
		{"-aes256", cbc},
		{"-des3", cbc},
		{"-camellia256", "pkcs7 packet: malformed: content encrypted in a way that is not supported (1.2.392.200011.61.1.1.1.4)"},
		{"-aes-256-gcm", "pkcs7 packet: malformed: CMS of a type that is not supported (1.2.840.113549.1.9.16.1.23)"},
	} {
		p := opensslCMS(t, string(secret), tt.arg, cert)
		for who, id := range map[string]keys.Identity{"holder": newIdentity(t, alice), "key alone": alone(t, alice), "stranger": alone(t, find("bob"))} {
			if _, err := id.Unwrap(t.Context(), []layer.Packet{p}); !errors.Is(err, layer.ErrMalformed) || err.Error() != tt.want {
				t.Errorf("%s, %s: %v, want %s", tt.arg, who, err, tt.want)
			}
		}
		unwrap(t, tt.arg+" before a good one", newIdentity(t, alice), "secret", p, good)
		if newRecipient(t, alice.cert).Owns(p) {
			t.Errorf("%s: owned, though nobody can open it", tt.arg)
		}
	}
}

// Keys and certificates as the manual makes them.
func TestOpensslKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key, cert := dir+"/key.pem", dir+"/cert.pem"
	openssl(t, nil, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-subj", "/C=DE/O=Acme, Inc./CN=alice/emailAddress=alice@example.com", "-set_serial", "0x0ABC")
	openssl(t, nil, "x509", "-in", cert, "-outform", "DER", "-out", dir+"/cert.der")
	openssl(t, nil, "pkey", "-in", key, "-aes256", "-passout", "pass:geheim", "-out", dir+"/locked.pem")
	openssl(t, nil, "rsa", "-in", key, "-traditional", "-out", dir+"/pkcs1.pem")
	openssl(t, nil, "pkcs8", "-topk8", "-in", key, "-nocrypt", "-outform", "DER", "-out", dir+"/key.der")
	if got := openssl(t, nil, "x509", "-in", cert, "-noout", "-serial"); string(got) != "serial=0ABC\n" {
		t.Fatalf("openssl prints %q", got)
	}
	parser := keys.Parser{Schemes: []keys.Scheme{pkcs7.Scheme()}}
	var all []layer.Packet
	for _, file := range []string{cert, dir + "/cert.der"} {
		r, err := parser.Recipient(t.Context(), "pkcs7:"+file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, wrap(t, r, "secret"))
	}
	for _, p := range all {
		want := `issuer="emailAddress=alice@example.com,CN=alice,O=Acme\\, Inc.,C=DE" serial=0ABC`
		if got := pkcs7.Describe(p); len(got) != 1 || got[0] != want {
			t.Errorf("described as %s, want %s", got, want)
		}
		for _, arg := range []string{key, dir + "/pkcs1.pem", dir + "/key.der", dir + "/locked.pem:pass=geheim"} {
			for _, recipients := range [][]string{nil, {"pkcs7:" + cert}} {
				ids, err := parser.Identities([]string{arg}, recipients)
				if err != nil {
					t.Fatal(err)
				}
				unwrap(t, arg, ids[0], "secret", p)
			}
			ids, err := parser.Identities([]string{arg, dir + "/cert.der"}, nil)
			if err != nil || len(ids) != 1 {
				t.Fatalf("%d identities, %v", len(ids), err)
			}
			unwrap(t, arg, ids[0], "secret", p)
		}
	}
	for arg, want := range map[string]string{dir + "/locked.pem": "is encrypted", dir + "/locked.pem:pass=falsch": "wrong password"} {
		_, err := parser.Identity(arg)
		if err == nil || !strings.HasPrefix(err.Error(), dir+"/locked.pem: ") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "falsch") {
			t.Errorf("%s: %v", arg, err)
		}
	}
}
