package e2e

import (
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testenv"
	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
)

// What can go wrong with secrets in it. The image "stranger" is one that nobody here can open.

// situations are the command lines that fail.
func (s *secretKeeper) situations(t *testing.T) []situation {
	t.Helper()
	var all []situation
	for _, part := range [][]situation{s.wrongKeys(t), s.garbage(t), s.mistakes(t), s.brokenTokens(t), s.brokenProviders(t), s.echoes(t)} {
		all = append(all, part...)
	}
	return all
}

func opens(name, image string, flags ...string) situation {
	return situation{name: name, args: append(append([]string{"images", "decrypt"}, flags...), image, "opened")}
}

func encrypts(name, recipient string, flags ...string) situation {
	return situation{name: name, args: append(append([]string{"images", "encrypt", "--recipient", recipient}, flags...), plainName, "encrypted")}
}

func (s *secretKeeper) wrongKeys(t *testing.T) []situation {
	wrong, typed := s.file(t, "wrong password", s.secrets.word(t, "a wrong password")), s.typedWord(t, "a typed password")
	ring := s.holders["pgp"].Files[0]
	all := []situation{
		opens("wrong key", "stranger", "--key", s.wrong.private),
		opens("all keys", "stranger", s.keys("jwe")...),
		opens("all keys, with debug log", "stranger", s.keys("a")...),
		opens("no password", "stranger", "--key", s.locked),
		opens("no passphrase", "stranger", "--key", ring),
		opens("no password of an old file", "stranger", "--key", s.old),
		opens("wrong PIN", "for:pkcs11", "--key", s.tokenFile(t, "wrong-pin.yaml", s.Token().Module, s.secrets.word(t, "a wrong PIN"))),
		opens("no module", "for:pkcs11", "--key", s.tokenFile(t, "no-module.yaml", "/no/such/module.so", s.secrets.word(t, "the PIN of no module"))),
		{name: "run", args: []string{"run", "--rm", "--key", s.locked + ":file=" + s.password, "--key", s.wrong.private, "stranger", "e2e"}},
		{name: "run by the node's keys", args: []string{"--debug", "run", "--rm", "--skip-decrypt-auth", "--key", s.wrong.private, "stranger", "e2e"}},
	}
	all[2].args = append([]string{"--debug"}, all[2].args...)
	for _, key := range []string{s.locked, s.old, ring} {
		name := filepath.Base(key)
		all = append(all, opens("wrong password of "+name, "stranger", "--key", key+":file="+wrong),
			opens("typed wrong password of "+name, "stranger", "--key", key+":pass="+typed),
			opens("typed wrong password of "+name+" without pass=", "stranger", "--key", key+":"+typed))
	}
	return all
}

// garbage are files that are no keys, as keys and as recipients of every scheme.
func (s *secretKeeper) garbage(t *testing.T) []situation {
	g := s.secrets.word(t, "the garbage")
	key := string(readFile(t, s.plain.private))
	block, _ := pem.Decode([]byte(key))
	contents := map[string]string{
		"text": g, "lines": "user: root\npassword: " + g + "\n", "shell": "export PASSWORD='" + g + "'\n", "XML": "<key>" + g + "</key>",
		"PEM": "-----BEGIN PRIVATE KEY-----\n" + g + "\n-----END PRIVATE KEY-----\n", "PEM of base64": pemOf("PRIVATE KEY", []byte(g)),
		"PEM of RSA": pemOf("RSA PRIVATE KEY", append([]byte{0x30, 0x20, 2, 1, 0, 2, 0x1b}, g...)), "PEM of EC": pemOf("EC PRIVATE KEY", []byte(g)),
		"PEM of encrypted": pemOf("ENCRYPTED PRIVATE KEY", []byte(g)), "OpenSSH": pemOf("OPENSSH PRIVATE KEY", []byte("openssh-key-v1\x00"+g)),
		"PEM of something": pemOf("SOMETHING", []byte(g)), "headers": "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: " + g + "\n\n" + g + "\n-----END RSA PRIVATE KEY-----\n",
		"half": key[:len(key)*3/4], "end": key[len(key)/2:], "misspelt": strings.Replace(key, "PRIVATE", "PIRVATE", 2), "DER half": string(block.Bytes[:len(block.Bytes)*3/4]),
		"JSON": `{"password": "` + g + `"}`, "JSON list": `["` + g + `"]`, "JSON half": `{"kty":"EC","d":"` + g, "JWK": `{"kty":"EC","crv":"P-256","d":"` + g + `"}`,
		"JWK of odd type": `{"kty":"` + g + `"}`, "JWK of numbers": `{"kty":"EC","crv":"P-256","x":1,"d":"` + g + `"}`, "JWK set": `{"keys":[{"kty":"oct","k":"` + g + `"}]}`,
		"PGP": "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n" + g + "\n-----END PGP PRIVATE KEY BLOCK-----\n", "PGP half": string(readFile(t, s.holders["keyring"].Files[0])[:900]),
		"PuTTY": "PuTTY-User-Key-File-3: ssh-rsa\nEncryption: none\nPrivate-Lines: 1\n" + g + "\n", "age": "AGE-SECRET-KEY-1" + g + "\n",
	}
	var all []situation
	for name, content := range contents {
		path := s.file(t, "garbage "+name, content)
		all = append(all, opens("key of garbage: "+name, "stranger", "--key", path))
		for _, scheme := range []string{"jwe", "pkcs7", "pgp", "pkcs11"} {
			if name == "misspelt" || strings.HasPrefix(name, "P") || strings.HasPrefix(name, "J") || scheme == "jwe" {
				all = append(all, encrypts(scheme+" of garbage: "+name, scheme+":"+path))
			}
		}
	}
	return all
}

func pemOf(kind string, data []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}))
}

// mistakes are keys for recipients, recipients for keys, and secrets for their files.
func (s *secretKeeper) mistakes(t *testing.T) []situation {
	var all []situation
	ring := s.holders["keyring"].Files[0]
	for _, file := range []string{s.plain.private, s.locked, s.old, ring, s.holders["pkcs7"].Files[0], s.password} {
		for _, scheme := range []string{"jwe", "pkcs7", "pgp", "pkcs11", "provider"} {
			if scheme == "pgp" && file == ring {
				continue // which can be encrypted for
			}
			all = append(all, encrypts(filepath.Base(file)+" as recipient", scheme+":"+file))
		}
		all = append(all, opens(filepath.Base(file)+" as certificate", "stranger", "--key", s.wrong.private, "--dec-recipient", "pkcs7:"+file))
	}
	all = append(all, encrypts("YAML as jwe", "jwe:"+s.yaml), encrypts("YAML as pkcs7", "pkcs7:"+s.yaml),
		opens("public key as key", "stranger", "--key", s.plain.public), opens("recipient as key", "stranger", "--key", "jwe:"+s.plain.private))
	param, pin, pasted := s.typedWord(t, "a typed parameter"), s.typedWord(t, "a typed PIN"), ecKeys(t).private
	s.secrets.keyFile(t, "a pasted key", pasted, "")
	s.typed = append(s.typed, "a pasted key")
	key, uri := string(readFile(t, pasted)), "pkcs11:token=t;object=o?module-path=/usr/lib/module.so&pin-value="+url.QueryEscape(pin)
	return append(all,
		opens("file that is not there, with password", "stranger", "--key", "/no/such.pem:pass="+param),
		opens("file that is not there, with old password", "stranger", "--key", "/no/such.pem:"+param),
		opens("unknown provider", "stranger", "--key", "provider:nobody:"+param),
		opens("provider without a name", "stranger", "--key", "provider::"+param),
		opens("URI as key", "stranger", "--key", uri), opens("URI as recipient of a key", "stranger", "--key", s.wrong.private, "--dec-recipient", uri),
		opens("pasted key", "stranger", "--key", key), opens("pasted key on a line", "stranger", "--key", strings.ReplaceAll(key, "\n", " ")),
		opens("pasted certificate", "stranger", "--key", s.wrong.private, "--dec-recipient", "pkcs7:"+key),
		opens("no image", "nothing", "--key", "provider:a:"+param), opens("wrong flag", "stranger", "--kye", "provider:a:"+param),
		opens("wrong flag behind", "stranger", "--key", "provider:a:"+param, "--kye"),
		situation{name: "usage", args: []string{"images", "decrypt", "--key", "provider:a:" + param}},
		encrypts("URI as recipient", uri), encrypts("URI behind the scheme", "pkcs11:"+uri), encrypts("pasted recipient", key), encrypts("pasted behind jwe", "jwe:"+key),
		encrypts("pasted behind pgp", "pgp:"+key), encrypts("pasted behind pkcs7", "pkcs7:"+key), encrypts("pasted behind pkcs11", "pkcs11:"+key),
		encrypts("unknown provider as recipient", "provider:nobody:"+param), encrypts("nameless provider as recipient", "provider::"+param),
		encrypts("unknown scheme", "vault:"+param), encrypts("unknown cipher", "provider:a:"+param, "--cipher", "x"),
	)
}

// brokenTokens are key files for tokens, and configurations, that cannot be used.
func (s *secretKeeper) brokenTokens(t *testing.T) []situation {
	p := s.secrets.word(t, "the PIN of a broken file")
	var all []situation
	for i, content := range []string{
		"pkcs11:\n  uri: [pkcs11:token=x?pin-value=" + p, "pkcs11:\n  uri: {a: " + p + "}\n", "pkcs11: " + p + "\n", "pkcs11:\n\turi: " + p + "\n",
		"pkcs11:\n  uri: token=x?pin-value=" + p + "\n", "pkcs11:\n  uri: pkcs11:token=" + p + ";token=" + p + "?pin-value=" + p + "\n",
		"pkcs11:\n  uri: pkcs11:object=k?pin-value=" + p + "%zz\n", "pkcs11:\n  uri: pkcs11:object=k?pin-value=" + p + "&pin-value=" + p + "\n",
		"pkcs11:\n  uri: pkcs11:object=k?pin-value=" + p + "&" + p + "\n", "pkcs11:\n  uri: pkcs11:object=k;slot-id=" + p + "?pin-value=" + p + "\n",
		"pkcs11:\n  uri: pkcs11:object=k?pin-value=" + p + "\nmodule:\n  env: " + p + "\n", "pkcs11:\n  uri: pkcs11:object=k\nmodule:\n  env:\n    A: [" + p + "]\n",
		"pkcs11:\n  uri: pkcs11:object=k?pin-value=" + p + "\n  uri: " + p + "\n", "pkcs11:\n  uri: *" + p + "\n", "pkcs11:\n  uri: !!" + p + " x\n",
		"pkcs11:\n  uri: pkcs11:object=k?pin-value=" + p + "\nmodule:\n  env:\n    A=" + p + ": x\n",
		"pkcs11:\n  uri: pkcs11:object=k?module-name=none&pin-value=" + p + "\n", "pkcs11:\n  uri: pkcs11:object=k?pin-source=/no/such/file&pin-value=" + p + "\n",
	} {
		path := s.file(t, fmt.Sprintf("broken%d.yaml", i), content)
		all = append(all, opens("key "+path, "for:pkcs11", "--key", path), encrypts("recipient "+path, "pkcs11:"+path))
	}
	for i, content := range []string{p, "pkcs11: " + p + "\n", "pkcs11:\n  module-directories: " + p + "\n", "pkcs11:\n  allowed-module-paths: {" + p + ": " + p + "}\n", "\t" + p, "{" + p} {
		path := s.file(t, fmt.Sprintf("broken%d.conf", i), content)
		c := opens("configuration "+path, "for:pkcs11", "--key", s.yaml)
		c.env = []string{schemes.EnvPKCS11Config + "=" + path}
		all = append(all, c)
	}
	return all
}

// brokenProviders are configurations of providers that cannot be used.
func (s *secretKeeper) brokenProviders(t *testing.T) []situation {
	p := s.secrets.word(t, "the password of a provider")
	garbage, cert := s.file(t, "garbage.key", pemOf("PRIVATE KEY", []byte(p))), s.b.Entry.TLS.CertFile
	var all []situation
	for i, content := range []string{
		p, `"` + p + `"`, `{"` + p, `{"key-providers": "` + p + `"}`, `{"key-providers": {"a": "` + p + `"}}`, `{"key-providers": {"a": {"cmd": "` + p + `"}}}`,
		`{"key-providers": {"a": {"cmd": {"path": "/bin/false", "args": "` + p + `"}}}}`, `{"key-providers": {"a": {"cmd": {"path": "/no/such", "args": ["` + p + `"]}}}}`,
		`{"key-providers": {"a": {"cmd": {"path": "/bin/false", "args": ["--password", "` + p + `"]}}}}`, `{"key-providers": {"a": {"password": "` + p + `"}}}`,
		`{"key-providers": {"a": {"grpc": "127.0.0.1:1", "grpc-tls": "` + p + `"}}}`, `{"key-providers": {"a": {"grpc": "127.0.0.1:1", "grpc-tls": {"key-file": ` + p + `}}}}`,
		fmt.Sprintf(`{"key-providers": {"a": {"grpc": %q, "grpc-tls": {"cert-file": %q, "key-file": %q}}}}`, s.b.Entry.GRPC, cert, garbage),
		fmt.Sprintf(`{"key-providers": {"a": {"grpc": %q, "grpc-tls": {"cert-file": %q, "key-file": %q}}}}`, s.b.Entry.GRPC, cert, s.wrong.private),
		fmt.Sprintf(`{"key-providers": {"a": {"grpc": %q, "grpc-tls": {"cert-file": %q, "key-file": %q}}}}`, s.b.Entry.GRPC, s.b.Entry.TLS.KeyFile, cert),
		fmt.Sprintf(`{"key-providers": {"a": {"grpc": %q, "grpc-tls": {"root-ca-file": %q}}}}`, s.b.Entry.GRPC, s.b.Entry.TLS.KeyFile),
	} {
		path := s.file(t, fmt.Sprintf("providers%d.conf", i), content)
		for _, c := range []situation{opens("key with "+path, "for:a", s.keys("a")...), opens("fallback with "+path, "for:a", "--key", s.wrong.private), encrypts("recipient with "+path, s.holders["a"].Recipient)} {
			c.env = []string{schemes.EnvProviderConfig + "=" + path}
			all = append(all, c)
		}
	}
	return all
}

// echoes are providers that tell everything they are told.
func (s *secretKeeper) echoes(t *testing.T) []situation {
	requests := t.TempDir()
	keep := "file=" + requests + "/$$; cat >$file; "
	providers := map[string]any{}
	for name, lines := range map[string]string{
		"stderr": "cat $file >&2; exit 1", "beginning": "head -c 300 $file >&2; exit 1", "end": "tail -c 300 $file >&2; exit 1",
		"lines": "fold -w 40 $file >&2; exit 1", "hexadecimal": "od -An -v -tx1 $file | tr -d ' \\n' >&2; exit 1", "base64": "base64 -w0 $file >&2; exit 1",
		"stdout": "cat $file", "both": "cat $file; cat $file >&2", "decoded": `sed 's/.*optsdata":"\([^"]*\).*/\1/' $file | base64 -d >&2; exit 1`,
		"killed": "cat $file >&2; kill -9 $$",
	} {
		providers["echo-"+name] = map[string]any{"cmd": map[string]any{"path": "/bin/sh", "args": []string{"-c", keep + lines}}}
	}
	var service map[string]any
	serve := http2(func(w http.ResponseWriter, r *http.Request) {
		body := make([]byte, 4096)
		n, _ := r.Body.Read(body)
		_, request, _ := strings.Cut(string(body[:n]), "{")
		_ = os.WriteFile(filepath.Join(requests, rand.Text()), []byte("{"+request), 0o600)
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", "3")
		w.Header().Set("Grpc-Message", url.PathEscape("malformed request {"+request))
	})
	unmarshal(t, serve(t), &service)
	providers["echo-service"] = service["key-providers"].(map[string]any)["vault"]
	path := s.file(t, "echoes.conf", string(marshal(t, map[string]any{"key-providers": providers})))
	var all []situation
	for name := range providers {
		param := s.typedWord(t, "the parameter of "+name)
		for _, c := range []situation{
			encrypts(name+" as recipient", "provider:"+name+":"+param), opens(name+" as key", "stranger", "--key", "provider:"+name+":"+param),
		} {
			c.env, c.requests = []string{schemes.EnvProviderConfig + "=" + path}, requests
			all = append(all, c)
		}
		s.echoing = append(s.echoing, name)
	}
	return all
}

// nodeKeys is a directory of keys for a node. One of them opens what was encrypted for the token.
func (s *secretKeeper) nodeKeys(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	files, err := filepath.Glob(filepath.Join(s.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, s.wrong.private, s.holders["pgp"].Files[0]) {
		writeFile(t, filepath.Join(dir, filepath.Base(file)), readFile(t, file))
	}
	return dir
}

// payloads are what a client may send, whole and spoilt, and nothing of which opens the layer.
func (s *secretKeeper) payloads(t *testing.T) map[string][]byte {
	t.Helper()
	word := func(name string) []byte { return []byte(s.secrets.word(t, name+" in the payload")) }
	params := keys.Parameters{
		keys.ParamPrivateKeys: {readFile(t, s.locked), word("garbage"), readFile(t, s.wrong.private), readFile(t, s.plain.private), readFile(t, s.old)},
		keys.ParamPasswords:   {word("a wrong password"), word("a password of garbage"), {}, word("a password for nothing"), word("another password")},
		keys.ParamPGPKeys:     {readFile(t, s.holders["pgp"].Files[0]), word("a keyring")}, keys.ParamPGPPasswords: {word("a passphrase")},
		keys.ParamPKCS11Keys: {readFile(t, s.tokenFile(t, "payload.yaml", s.Token().Module, string(word("a PIN")))), word("a YAML")}, keys.ParamPKCS11Config: {word("a configuration")},
		keys.ParamCertificates: {word("a certificate")}, "a": {word("a parameter of a")}, "nobody": {word("a parameter of nobody")},
	}
	desc := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer + "+encrypted", Digest: digest.FromString("x"), Size: 1,
		Annotations: map[string]string{layer.PublicAnnotation: "e30="},
	}
	for _, scheme := range []string{"jwe", "pgp", "pkcs7", "pkcs11", "provider.b"} {
		desc.Annotations[layer.KeysAnnotationPrefix+scheme] = layer.AddPacket("", layer.Packet{Scheme: scheme, Data: []byte("{}")})
	}
	payload := imgcrypt.Payload{Descriptor: desc}
	payload.DecryptConfig.Parameters = params
	whole := payloadOf(t, payload)
	all := map[string][]byte{"whole": whole, "twice": append(whole[:len(whole):len(whole)], whole...)}
	for i := range 40 {
		all[fmt.Sprintf("cut %d", i)] = whole[:len(whole)*i/40]
		all[fmt.Sprintf("begins %d", i)] = whole[len(whole)*i/40:]
		spoilt := append([]byte(nil), whole...)
		spoilt[len(whole)*i/40] ^= 0x15
		all[fmt.Sprintf("spoilt %d", i)] = spoilt
	}
	secret := string(word("a misplaced key"))
	for i, text := range []string{
		`{"DecryptConfig":{"Parameters":{"privkeys":%q}}}`, `{"DecryptConfig":{"Parameters":{"privkeys":[%q]}}}`, `{"DecryptConfig":{"Parameters":%q}}`,
		`{"DecryptConfig":%q}`, `%q`, `{%q`, `{"DecryptConfig":{"Parameters":{"privkeys":[{%q:1}]}}}`, `{"Descriptor":%q}`, `{"Descriptor":{"digest":%q}}`,
		`{"Descriptor":{"size":%q}}`, `{"DecryptConfig":{"Parameters":{"privkeys-passwords":["a2V5"],"privkeys":[]},%q:[]}}`,
	} {
		all[fmt.Sprintf("other %d", i)] = anyOf(t, []byte(fmt.Sprintf(text, secret)))
	}
	return all
}

// payloadsFail sends them to decoders.
func (s *secretKeeper) payloadsFail(t *testing.T, payloads map[string][]byte) {
	t.Helper()
	decoder, env := testenv.Build(t, "./cmd/ctd-decoder"), append(s.NodeEnv(), s.extra...)
	for name, payload := range payloads {
		r := decode(t, decoder, env, payload, []byte("x"))
		if r.Code <= 0 || strings.Contains(r.Stderr, "panic") || r.Stderr == "" {
			t.Errorf("payload %s: %s", name, r)
		}
		s.secrets.absent(t, "decoder with payload "+name, r.Stdout+r.Stderr)
	}
}
