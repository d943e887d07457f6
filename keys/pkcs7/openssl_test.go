package pkcs7_test

import (
	"bytes"
	"os/exec"
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

// secretJSON is a layer's secret: content without a check of its own must be one.
func secretJSON(t testing.TB) string {
	t.Helper()
	data, err := layer.MarshalSecret(layer.Secret{Key: [32]byte{1, 2, 3}, Nonce: [16]byte{4, 5, 6}})
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// opensslCMS encrypts for the certificates in files.
func opensslCMS(t testing.TB, secret string, args ...string) layer.Packet {
	t.Helper()
	return packet(openssl(t, []byte(secret), append([]string{"cms", "-encrypt", "-binary", "-outform", "DER"}, args...)...))
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
	secret := secretJSON(t)
	for _, tt := range []struct {
		name string
		args []string
		want string // of the description
	}{
		{"AES-128", []string{"-aes128", cert}, `issuer="CN=alice,O=Acme" serial=5A3F`},
		{"AES-192", []string{"-aes192", cert}, ""},
		{"AES-256", []string{"-aes256", cert}, ""},
		{"3DES", []string{"-des3", cert}, ""},
		{"in pieces of unknown length", []string{"-aes256", "-stream", cert}, `issuer="CN=alice,O=Acme" serial=5A3F`},
		{"second of two", []string{"-aes256", other, cert}, `issuer="CN=alice,O=Acme" serial=5A3F`},
		{"beside an EC key", []string{"-aes256", ecCert, cert}, "[pkcs7]"},
		{"key id", []string{"-aes256", "-keyid", keyID}, "keyid=ABCDEF"},
		{"OAEP", []string{"-aes256", "-recip", cert, "-keyopt", "rsa_padding_mode:oaep"}, `issuer="CN=alice,O=Acme" serial=5A3F`},
		{"OAEP SHA-256", []string{"-aes256", "-recip", cert, "-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256"}, ""},
		{"OAEP SHA-512, MGF1 SHA-1", []string{"-aes256", "-recip", cert, "-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha512", "-keyopt", "rsa_mgf1_md:sha1"}, ""},
		{"OAEP with a label", []string{"-aes256", "-recip", cert, "-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_label:0102"}, ""},
	} {
		p := opensslCMS(t, secret, tt.args...)
		unwrap(t, tt.name, newIdentity(t, alice), secret, p)
		unwrap(t, tt.name+" without certificate", alone(t, alice), secret, p)
		if got := strings.Join(pkcs7.Describe(p), ", "); !strings.Contains(got, tt.want) {
			t.Errorf("%s: described as %q, want %q", tt.name, got, tt.want)
		}
		if _, err := newIdentity(t, find("carol")).Unwrap(t.Context(), []layer.Packet{p}); err == nil {
			t.Errorf("%s: a stranger opens it", tt.name)
		}
	}
	if p := opensslCMS(t, secret, "-aes256", "-keyid", keyID); !newRecipient(t, alice.cert).Owns(p) {
		t.Error("the key id's recipient does not own the packet")
	}
}

// What is not authenticated is a secret only if it looks like one.
func TestUnauthenticatedContent(t *testing.T) {
	t.Parallel()
	alice := find("alice")
	cert := writeFile(t, "alice.pem", certPEM(alice.cert))
	id := newIdentity(t, alice)
	p := opensslCMS(t, "no secret of a layer", "-aes256", cert)
	if secret, err := id.Unwrap(t.Context(), []layer.Packet{p}); err == nil {
		t.Errorf("opened: %q", secret)
	}
	// Whatever byte changes, there is no panic, and what comes out is a secret.
	good := opensslCMS(t, secretJSON(t), "-aes256", cert)
	for i := range good.Data {
		bad := packet(bytes.Clone(good.Data))
		bad.Data[i] ^= 1 << (i % 8)
		if data, err := id.Unwrap(t.Context(), []layer.Packet{bad}); err == nil {
			if _, err := layer.ParseSecret(data); err != nil {
				t.Errorf("byte %d: %q", i, data)
			}
		}
		// A good packet after it is found, if the bad one is not taken for good.
		if _, err := id.Unwrap(t.Context(), []layer.Packet{bad, good}); err != nil {
			t.Errorf("byte %d beside a good packet: %v", i, err)
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
