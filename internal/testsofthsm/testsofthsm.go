// Package testsofthsm gives tests a token: SoftHSM with a directory of its own, a PIN and RSA keys in it.
//
//	token := testsofthsm.New(t)
//	… --recipient pkcs11:token.PublicKey … --key token.YAML, in a process with token.Env()
//
// Tokens of different tests know nothing of each other: which one a process sees is told by SOFTHSM2_CONF, which
// is in the YAML.
package testsofthsm

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"imgcrypt/internal/testenv"
)

// Token is one initialised token, and the first key on it.
type Token struct {
	// Module is SoftHSM's shared library.
	Module string
	// Label is the token's name, PIN its user's.
	Label, PIN string
	// Conf is SoftHSM's configuration, to be in the environment as SOFTHSM2_CONF.
	Conf string
	// Config is an ocicrypt.conf that allows Module and nothing else.
	Config string
	// Key is the first key.
	Key

	dir  string
	keys int
}

// Key is one RSA key on a token, in files.
type Key struct {
	// Label and ID are the key's attributes on the token, URI names it by both, with module and PIN.
	Label string
	ID    []byte
	URI   string
	// YAML is the path of ocicrypt's key file, which has URI and SOFTHSM2_CONF in it.
	YAML string
	// PublicKey is the path of the public key, PEM.
	PublicKey string
}

// Options say how a key is made. The zero value makes one of 2048 bits with OpenSC's pkcs11-tool.
type Options struct {
	// Label is the key's; empty means one that no other key has.
	Label string
	// Bits is the key's size; 0 means 2048.
	Bits int
	// GnuTLS makes it with p11tool, which the test must need.
	GnuTLS bool
	// Flags are more flags for the tool.
	Flags []string
}

// New makes a token with one key, or skips the test where there is no SoftHSM.
func New(t testing.TB) *Token {
	t.Helper()
	token := Empty(t)
	token.Key = token.NewKey(t, Options{})
	return token
}

// Empty makes a token without a key.
func Empty(t testing.TB) *Token {
	t.Helper()
	testenv.Need(t, testenv.SoftHSM)
	module, err := testenv.SoftHSMModule()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	token := &Token{
		Module: module,
		Label:  "test token",
		PIN:    "canary-pin-13579",
		Conf:   filepath.Join(dir, "softhsm2.conf"),
		Config: filepath.Join(dir, "ocicrypt.conf"),
		dir:    dir,
	}
	objects := filepath.Join(dir, "tokens")
	if err := os.Mkdir(objects, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, token.Conf, "directories.tokendir = "+objects+"\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n")
	write(t, token.Config, fmt.Sprintf("pkcs11:\n  module-directories:\n  - %s\n  allowed-module-paths:\n  - %s\n", filepath.Dir(module), module))
	token.run(t, "softhsm2-util", "--init-token", "--free", "--label", token.Label, "--pin", token.PIN, "--so-pin", "canary-so-pin")
	return token
}

// Env returns what a process needs in its environment to use the YAMLs: OCICRYPT_CONFIG. SOFTHSM2_CONF is
// not part of it, since the YAML has it.
func (k *Token) Env() []string { return []string{"OCICRYPT_CONFIG=" + k.Config} }

// NewKey makes another key.
func (k *Token) NewKey(t testing.TB, o Options) Key {
	t.Helper()
	k.keys++
	if o.Bits == 0 {
		o.Bits = 2048
	}
	if o.Label == "" {
		o.Label = fmt.Sprintf("key %d", k.keys)
	}
	key := Key{Label: o.Label, ID: []byte{0xc0, byte(k.keys)}}
	id, module := hex.EncodeToString(key.ID), k.Module
	name := filepath.Join(k.dir, id)
	key.PublicKey = name + ".pub.pem"
	if o.GnuTLS {
		args := []string{"--provider", module, "--batch", "--login", "--generate-rsa", "--bits", fmt.Sprint(o.Bits), "--label", o.Label, "--id", id, "--outfile", key.PublicKey}
		k.run(t, "p11tool", append(append(args, o.Flags...), "pkcs11:token="+url.PathEscape(k.Label))...)
	} else {
		args := []string{"--module", module, "--token-label", k.Label}
		k.run(t, "pkcs11-tool", append(append(args, "--login", "--pin", k.PIN, "--keypairgen", "--key-type", fmt.Sprintf("RSA:%d", o.Bits), "--label", o.Label, "--id", id), o.Flags...)...)
		k.run(t, "pkcs11-tool", append(args, "--read-object", "--type", "pubkey", "--id", id, "-o", name+".der")...)
		k.run(t, "openssl", "pkey", "-pubin", "-inform", "DER", "-in", name+".der", "-out", key.PublicKey)
	}
	key.URI = "pkcs11:token=" + url.PathEscape(k.Label) + ";object=" + url.PathEscape(o.Label) + fmt.Sprintf(";id=%%%X%%%X", key.ID[:1], key.ID[1:]) +
		"?module-path=" + k.Module + "&pin-value=" + k.PIN
	key.YAML = k.WriteYAML(t, id+".yaml", key.URI)
	return key
}

// WriteYAML writes ocicrypt's key file for a URI, and returns its path.
func (k *Token) WriteYAML(t testing.TB, name, uri string) string {
	t.Helper()
	path := filepath.Join(k.dir, name)
	write(t, path, fmt.Sprintf("pkcs11:\n  uri: %s\nmodule:\n  env:\n    SOFTHSM2_CONF: %s\n", uri, k.Conf))
	return path
}

// run runs one of the tools on this token. The PIN is in the environment for p11tool.
func (k *Token) run(t testing.TB, name string, args ...string) {
	t.Helper()
	path, err := testenv.LookPath(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+k.Conf, "GNUTLS_PIN="+k.PIN)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, &out)
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
