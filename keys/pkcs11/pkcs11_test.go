package pkcs11_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testsofthsm"
	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
	"imgcrypt/keys/pkcs11"
	"imgcrypt/layer"
)

// config returns one that knows the token's module and the helper.
func config(t testing.TB, token *testsofthsm.Token) pkcs11.Config {
	t.Helper()
	testenv.Need(t, testenv.Cgo)
	return pkcs11.Config{File: token.Config, Helper: testenv.Build(t, testenv.TokenHelper)}
}

func newRecipient(t testing.TB, c pkcs11.Config, path string) keys.Recipient {
	t.Helper()
	r, err := pkcs11.Scheme(c).Recipient(t.Context(), path, new(keys.Files))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func newIdentity(t testing.TB, c pkcs11.Config, path string) keys.Identity {
	t.Helper()
	id, err := pkcs11.Scheme(c).Identity(keys.Key{Label: path, Data: read(t, path)})
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

func publicKey(t testing.TB, path string) *rsa.PublicKey {
	t.Helper()
	key, err := keys.ParsePublicKey(read(t, path))
	if err != nil {
		t.Fatal(err)
	}
	return key.Key.(*rsa.PublicKey)
}

// packet is what is looked at of a packet.
type packet struct {
	Version    int
	Recipients []struct {
		Version         int
		Blob, Hash, Kid string
	}
}

func parse(t testing.TB, p layer.Packet) packet {
	t.Helper()
	var parsed packet
	if err := json.Unmarshal(p.Data, &parsed); err != nil || p.Scheme != "pkcs11" {
		t.Fatalf("%s: %s: %v", p.Scheme, p.Data, err)
	}
	return parsed
}

// merge makes one packet of several, as ocicrypt does for several recipients.
func merge(t testing.TB, packets ...layer.Packet) layer.Packet {
	t.Helper()
	var all packet
	for _, p := range packets {
		all.Recipients = append(all.Recipients, parse(t, p).Recipients...)
	}
	data, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return layer.Packet{Scheme: "pkcs11", Data: data}
}

// Keys that both tools have made, of both sizes: what is wrapped for the public key or for the key file opens
// with the token, whatever the hash.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "p11tool")
	token := testsofthsm.New(t)
	for _, c := range []struct {
		name         string
		key          testsofthsm.Key
		asked, given string
	}{
		{"2048", token.Key, "", "sha1"},
		{"2048", token.Key, "sha1", "sha1"},
		{"3072", token.NewKey(t, testsofthsm.Options{Bits: 3072, GnuTLS: true}), "", "sha256"},
		{"3072 asked for sha1", token.NewKey(t, testsofthsm.Options{Bits: 3072}), "SHA1", "sha1"},
		{"2304 asked for sha256", token.NewKey(t, testsofthsm.Options{Bits: 2304}), "sha256", "sha256"},
		{"always authenticate", token.NewKey(t, testsofthsm.Options{Flags: []string{"--always-auth"}}), "", "sha1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			conf := config(t, token)
			conf.OAEPHash = c.asked
			id := newIdentity(t, conf, c.key.YAML)
			for _, path := range []string{c.key.PublicKey, c.key.YAML} {
				r := newRecipient(t, conf, path)
				p := wrap(t, r, "secret")
				got, err := id.Unwrap(t.Context(), []layer.Packet{{Scheme: "jwe", Data: []byte("x")}, p})
				if err != nil || string(got) != "secret" {
					t.Errorf("%s: %q, %v", path, got, err)
				}
				j := parse(t, p)
				if len(j.Recipients) != 1 || j.Recipients[0].Hash != c.given {
					t.Errorf("%s: %s", path, p.Data)
				}
				if !r.(keys.Owner).Owns(p) {
					t.Errorf("%s does not own its packet", path)
				}
			}
		})
	}
}

// A secret as it really is goes through, which with SHA-256 it does not for 2048 bits.
func TestRealSecret(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	c := config(t, token)
	secret, err := layer.MarshalSecret(layer.Secret{Digest: "sha256:" + layerDigest})
	if err != nil {
		t.Fatal(err)
	}
	got, err := newIdentity(t, c, token.YAML).Unwrap(t.Context(), []layer.Packet{wrap(t, newRecipient(t, c, token.PublicKey), string(secret))})
	if err != nil || string(got) != string(secret) {
		t.Errorf("%q, %v", got, err)
	}
	c.OAEPHash = "sha256"
	if _, err := pkcs11.Scheme(c).Recipient(t.Context(), token.PublicKey, new(keys.Files)); !errors.Is(err, keys.ErrNotKey) || !strings.Contains(err.Error(), "OCICRYPT_OAEP_HASHALG=sha1") {
		t.Errorf("sha256 with 2048 bits: %v", err)
	}
	if _, err := newRecipient(t, c, token.YAML).Wrap(t.Context(), secret); !errors.Is(err, keys.ErrNotKey) || !strings.HasPrefix(err.Error(), token.YAML+": ") {
		t.Errorf("sha256 with 2048 bits on the token: %v", err)
	}
}

const layerDigest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"

// A public key can be in any form, and its id is that of package jwe.
func TestRecipientForms(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	key := publicKey(t, token.PublicKey)
	jwk, err := json.Marshal(jose.JSONWebKey{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	other, err := jwe.NewRecipient(keys.PublicKey{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{
		"PEM": read(t, token.PublicKey), "JWK": jwk, "DER": der,
		"PKCS1": pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(key)}),
	}
	for name, data := range files {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r := newRecipient(t, pkcs11.Config{}, path).(*pkcs11.Recipient)
		if r.KeyID() != other.KeyID() {
			t.Errorf("%s: %s, and jwe has %s", name, r.KeyID(), other.KeyID())
		}
		if got := pkcs11.Describe(wrap(t, r, "secret")); !slices.Equal(got, []string{r.KeyID()}) {
			t.Errorf("%s: described as %q", name, got)
		}
	}
}

// What cannot be a recipient is an error that names the file.
func TestRecipientRefused(t *testing.T) {
	t.Parallel()
	pkix := func(key any, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKIXPublicKey(key.(crypto.Signer).Public())
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	ec, ecErr := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	cases := map[string]string{
		"1024 bits": pkix(small, err), "EC": pkix(ec, ecErr), "nothing": "", "other YAML": "a: b\n",
		"no URI": "pkcs11:\n  uri: http://example.test\n",
	}
	for name, data := range cases {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := pkcs11.Scheme(pkcs11.Config{}).Recipient(t.Context(), path, new(keys.Files))
		if !errors.Is(err, keys.ErrNotKey) || !strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("%s: %v", name, err)
		}
		_, err = pkcs11.Scheme(pkcs11.Config{}).Recipients(t.Context(), keys.Parameters{keys.ParamPKCS11Public: {[]byte(data)}})
		if !errors.Is(err, keys.ErrNotKey) || !strings.HasPrefix(err.Error(), "pkcs11-pubkeys[0]: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = pkcs11.Scheme(pkcs11.Config{OAEPHash: "md5"}).Recipient(t.Context(), "/dev/null", new(keys.Files))
	if err == nil || !strings.Contains(err.Error(), "md5") || !strings.Contains(err.Error(), "OCICRYPT_OAEP_HASHALG") {
		t.Errorf("md5: %v", err)
	}
}

// One operation serves all packets; what is for others, damaged or of an unknown kind does not get in the way, and a
// "kid" excludes nothing.
func TestManyPackets(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	c := config(t, token)
	stranger := newRecipient(t, c, testsofthsm.New(t).PublicKey)
	mine := newRecipient(t, c, token.PublicKey)
	id := newIdentity(t, c, token.YAML)
	good, foreign := wrap(t, mine, "secret"), wrap(t, stranger, "other")
	edit := func(change func(*packet)) layer.Packet {
		j := parse(t, good)
		change(&j)
		data, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		return layer.Packet{Scheme: "pkcs11", Data: data}
	}
	broken := edit(func(p *packet) {
		blob, _ := base64.StdEncoding.DecodeString(p.Recipients[0].Blob)
		blob[100] ^= 1
		p.Recipients[0].Blob = base64.StdEncoding.EncodeToString(blob)
	})
	raw := func(text string) layer.Packet { return layer.Packet{Scheme: "pkcs11", Data: []byte(text)} }
	bad := []layer.Packet{
		raw(""), raw("{"), raw("[]"), raw(`{"version":1,"recipients":[]}`), raw(`{"recipients":[]}`), raw(`{"recipients":[{"version":7}]}`),
		raw(`{"recipients":[{"blob":"%"}]}`), raw(`{"recipients":[{"blob":"AAAA","hash":"md5"}]}`), raw(`{"recipients":[{"blob":"` + strings.Repeat("A", 4000) + `"}]}`),
	}
	for name, packets := range map[string][]layer.Packet{
		"alone":            {good},
		"after a stranger": {foreign, good},
		"after damage":     {broken, good},
		"after nonsense":   append(slices.Clone(bad), good),
		"in one packet":    {merge(t, foreign, broken, good)},
		"without kid":      {edit(func(p *packet) { p.Recipients[0].Kid = "" })},
		"forged kid":       {edit(func(p *packet) { p.Recipients[0].Kid = "somebody" })},
		"stranger forged":  {raw(strings.Replace(string(foreign.Data), parse(t, foreign).Recipients[0].Kid, parse(t, good).Recipients[0].Kid, 1)), good},
		"kid is a number":  {raw(strings.Replace(string(good.Data), `"kid":"`+parse(t, good).Recipients[0].Kid+`"`, `"kid":5`, 1))},
		"short blob":       {raw(`{"recipients":[{"blob":"AAAA"}]}`), good},
	} {
		if secret, err := id.Unwrap(t.Context(), packets); err != nil || string(secret) != "secret" {
			t.Errorf("%s: %q, %v", name, secret, err)
		}
	}
	for _, p := range bad {
		if _, err := id.Unwrap(t.Context(), []layer.Packet{p, foreign}); !errors.Is(err, layer.ErrMalformed) {
			t.Errorf("%.60s: %v", p.Data, err)
		}
	}
	var damaged *pkcs11.DamagedError
	if _, err := id.Unwrap(t.Context(), []layer.Packet{foreign, broken}); !errors.As(err, &damaged) || !errors.Is(err, layer.ErrMalformed) || damaged.KeyID != pkcs11.Describe(good)[0] {
		t.Errorf("damaged: %v", err)
	}
	if _, err := id.Unwrap(t.Context(), []layer.Packet{foreign, foreign}); !errors.Is(err, keys.ErrNoMatch) {
		t.Errorf("not for it: %v", err)
	}
}

// Whatever bit of a packet changes, what opens is the secret or nothing, and the error is of a kind.
func TestFlipAnyByte(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	c := config(t, token)
	id := newIdentity(t, c, token.YAML)
	good := wrap(t, newRecipient(t, c, token.PublicKey), "secret")
	step := 7
	if testing.Short() {
		step = 97
	}
	for i := 0; i < len(good.Data); i += step {
		p := layer.Packet{Scheme: "pkcs11", Data: slices.Clone(good.Data)}
		p.Data[i] ^= 1 << (i % 7)
		secret, err := id.Unwrap(t.Context(), []layer.Packet{p})
		if err == nil && string(secret) != "secret" {
			t.Errorf("byte %d: opened as %q", i, secret)
		}
		if err != nil && !errors.Is(err, keys.ErrNoMatch) && !errors.Is(err, layer.ErrMalformed) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	cases := map[string][]string{
		``:   {"[pkcs11]"},
		`{}`: {"[pkcs11]"},
		`{"recipients":[{"blob":"AAAA"},{"kid":"a"},{"kid":7},{"kid":"b\u001b[2Jc"},{"kid":"x,y"}]}`: {"[pkcs11]", "a", "[pkcs11]", `"b\x1b[2Jc"`, `"x,y"`},
	}
	for data, want := range cases {
		if d := cmp.Diff(want, pkcs11.Describe(layer.Packet{Scheme: "pkcs11", Data: []byte(data)})); d != "" {
			t.Errorf("%s (-want +got):\n%s", data, d)
		}
	}
	long := pkcs11.Describe(layer.Packet{Data: []byte(`{"recipients":[{"kid":"` + strings.Repeat("a", 10_000) + `"}]}`)})
	if len(long) != 1 || len(long[0]) > 300 {
		t.Errorf("a long one: %q", long)
	}
}

// What ocicrypt's parameters say makes the same recipients and identities, and the other way round.
func TestParameters(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	c := config(t, token)
	withoutFile := pkcs11.Config{Helper: c.Helper}
	id := newIdentity(t, c, token.YAML)
	for _, path := range []string{token.PublicKey, token.YAML} {
		r := newRecipient(t, c, path)
		params, err := r.(keys.Portable).Parameters()
		if err != nil {
			t.Fatal(err)
		}
		again, err := pkcs11.Scheme(withoutFile).Recipients(t.Context(), params)
		if err != nil || len(again) != 1 {
			t.Fatalf("%d recipients, %v", len(again), err)
		}
		p := wrap(t, again[0], "secret")
		if !r.(keys.Owner).Owns(p) {
			t.Errorf("%s: does not own what was wrapped with its parameters", path)
		}
		if secret, err := id.Unwrap(t.Context(), []layer.Packet{p}); err != nil || string(secret) != "secret" {
			t.Errorf("%s: %q, %v", path, secret, err)
		}
	}
	params, err := id.(keys.Portable).Parameters()
	if err != nil {
		t.Fatal(err)
	}
	if !cmp.Equal(params[keys.ParamPKCS11Keys], [][]byte{read(t, token.YAML)}) {
		t.Errorf("the key file has changed: %s", params[keys.ParamPKCS11Keys])
	}
	params[keys.ParamPKCS11Keys] = append(params[keys.ParamPKCS11Keys], []byte("nonsense"))
	ids := pkcs11.Scheme(withoutFile).Identities(params)
	if len(ids) != 2 {
		t.Fatalf("%d identities", len(ids))
	}
	p := wrap(t, newRecipient(t, c, token.PublicKey), "secret")
	if secret, err := ids[0].Unwrap(t.Context(), []layer.Packet{p}); err != nil || string(secret) != "secret" {
		t.Errorf("%q, %v", secret, err)
	}
	if _, err := ids[1].Unwrap(t.Context(), []layer.Packet{p}); !errors.Is(err, keys.ErrNotKey) {
		t.Errorf("nonsense: %v", err)
	}
	// A configuration in the parameters takes the place of the other one.
	params[keys.ParamPKCS11Config] = [][]byte{[]byte("allowed-module-paths: []\n")}
	_, err = pkcs11.Scheme(c).Identities(params)[0].Unwrap(t.Context(), []layer.Packet{p})
	reasonIs(t, "forbidden by the parameters", err, pkcs11.ModuleForbidden)
}

// One token serves many at the same time.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	token := testsofthsm.New(t)
	c := config(t, token)
	id, r := newIdentity(t, c, token.YAML), newRecipient(t, c, token.YAML)
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() {
			secret := fmt.Sprint("secret ", i)
			p, err := r.Wrap(t.Context(), []byte(secret))
			if err != nil {
				t.Error(err)
				return
			}
			if !r.(keys.Owner).Owns(p) {
				t.Error("not its own")
			}
			if got, err := id.Unwrap(t.Context(), []layer.Packet{p}); err != nil || string(got) != secret {
				t.Errorf("%q, %v", got, err)
			}
			if _, err := id.(keys.Portable).Parameters(); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
}

// reasonIs checks an error's kind, and that it is one line.
func reasonIs(t testing.TB, name string, err error, want pkcs11.Reason) {
	t.Helper()
	var failed *pkcs11.TokenError
	if !errors.As(err, &failed) || failed.Reason != want {
		t.Errorf("%s: %v", name, err)
		return
	}
	sentinel := keys.ErrUnreachable
	switch want {
	case pkcs11.PINMissing, pkcs11.PINWrong, pkcs11.PINLocked, pkcs11.PINLastTry:
		sentinel = keys.ErrPassword
	}
	if !errors.Is(err, sentinel) {
		t.Errorf("%s: %v is not %v", name, err, sentinel)
	}
	if strings.ContainsAny(err.Error(), "\n\r") || len(err.Error()) > 700 {
		t.Errorf("%s: not a short line: %q", name, err)
	}
	t.Logf("%s: %v", name, err)
}
