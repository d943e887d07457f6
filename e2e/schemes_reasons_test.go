package e2e

import (
	"encoding/base64"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imgcrypt/internal/testkeys"
	"imgcrypt/internal/testnode"
	"imgcrypt/internal/testprovider"
	"imgcrypt/layer"
)

// damaged is a packet that still names its recipient, but does not open with his key.
func damaged(packet []byte) []byte {
	packet = slices.Clone(packet)
	at := len(packet) / 2
	if packet[0] != '{' {
		packet[at] ^= 1
		return packet
	}
	// In JSON it stays JSON.
	for !('a' <= packet[at] && packet[at] <= 'z') {
		at++
	}
	packet[at] = 'a' + (packet[at]-'a'+1)%26
	return packet
}

// reasons are images and keys that do not open them.
type reasons struct {
	node    *node
	user    *testkeys.User
	holders map[string]testkeys.Holder // by scheme
	others  []testkeys.Holder          // who can open nothing, of all schemes
	locked  testkeys.Holder            // with a passphrase
}

// The providers that came to harm after they had encrypted.
func failures() []testprovider.Fault {
	return []testprovider.Fault{testprovider.Absent, testprovider.Fail, testprovider.NoJSON, testprovider.Hang, testprovider.Crash}
}

// newReasons puts the images on a node: one of each scheme, one with a damaged packet, one of each provider.
func newReasons(t *testing.T) *reasons {
	t.Helper()
	user := testkeys.NewUser(t)
	f := &reasons{user: user, holders: make(map[string]testkeys.Holder)}
	l, plain := threeLayers(t)
	for _, h := range user.All(t) {
		f.holders[h.Scheme] = h
		enc := l.encryptFor(t, user, plain, "example.test/good:"+h.Scheme, h)
		l.forgeKeys(t, enc, "example.test/damaged:"+h.Scheme, func(annotations map[string]string) {
			name := layer.KeysAnnotationPrefix + packetName(h)
			good, err := base64.StdEncoding.DecodeString(annotations[name])
			if err != nil {
				t.Fatal(err)
			}
			annotations[name] = base64.StdEncoding.EncodeToString(damaged(good))
		})
	}
	f.others = user.All(t)
	f.locked = user.PGP(t, "the passphrase")
	l.encryptFor(t, user, plain, "example.test/good:locked", f.locked)
	for _, fault := range failures() {
		name := string(fault)
		l.encryptFor(t, user, plain, "example.test/provider:"+name, user.Provider(t, testprovider.Options{Name: name}))
		user.Provider(t, testprovider.Options{Name: name, Fault: fault})
	}
	f.node = startNode(t, testnode.Config{}).with(append(user.Env(), "IMGCRYPT_KEYPROVIDER_TIMEOUT=1s"))
	f.node.importLayout(t, l)
	return f
}

// refuses fails the test unless an image is not opened by keys, with so many lines, each with its text in it. The first
// one names the layer if there are several, or if it is about an image.
func (f *reasons) refuses(t *testing.T, n *node, image string, keys []string, want ...string) {
	t.Helper()
	r := n.enc(slices.Concat([]string{"images", "decrypt"}, flags("--key", keys), []string{"example.test/" + image, "example.test/no"})...)
	lines := strings.Split(strings.TrimSuffix(r.Stderr, "\n"), "\n")
	if r.Code != 1 || r.Stdout != "" || len(lines) != len(want) {
		t.Errorf("want exit code 1 and %d lines on stderr: %s", len(want), r)
		return
	}
	for i, line := range lines {
		if !strings.Contains(line, want[i]) {
			t.Errorf("line %d does not say %q: %s", i, want[i], r)
		}
	}
	prefix := "ctr-enc: example.test/" + image + ": layer 0 (sha256:"
	if strings.Contains(want[0], "open it") && !strings.HasPrefix(lines[0], prefix) {
		t.Errorf("does not name the layer: %s", r)
	}
}

// inOrder: each key and each provider that was tried has a line of its own, in the order of the attempts: as they were
// given, then what needed no naming.
func (f *reasons) inOrder(t *testing.T) {
	others := slices.Clone(f.others)
	for range 2 {
		var keys, names []string
		for _, h := range others {
			keys = append(keys, h.Keys...)
			names = append(names, "  "+strings.Replace(h.Keys[0], "provider:", "provider ", 1)+": not for this key")
		}
		for _, scheme := range []string{"jwe", "pgp", "pkcs11", "pkcs7"} {
			want := append([]string{"none of the 5 keys opens it (encrypted for " + scheme + ")"}, names...)
			f.refuses(t, f.node, "good:"+scheme, keys, want...)
		}
		want := slices.Concat([]string{"none of the 6 keys opens it (encrypted for provider.fail)"}, names, []string{"  provider fail: "})
		f.refuses(t, f.node, "provider:fail", keys, want...)
		r := f.node.run(flags("--key", keys), "example.test/good:jwe")
		if lines := refusedKeys(t, r); len(lines) != 6 || !strings.HasPrefix(lines[0], "ctr-enc: "+unauthorized) || !slices.Equal(lines[1:], names) {
			t.Errorf("run: %s", r)
		}
		slices.Reverse(others)
	}
}

// What is wrong is told apart: the wrong key, the wrong password, a damaged packet, somebody who cannot be asked.
func TestReasons(t *testing.T) {
	t.Parallel()
	f := newReasons(t)
	t.Run("order of attempts", f.inOrder)
	yaml := string(readFile(t, f.holders["pkcs11"].Keys[0]))
	withoutPIN := filepath.Join(t.TempDir(), "no-pin.yaml")
	writeFile(t, withoutPIN, []byte(strings.ReplaceAll(yaml, "&pin-value="+f.user.Token().PIN, "")))
	encrypted := filepath.Join(t.TempDir(), "encrypted.pem")
	openssl(t, "pkcs8", "-topk8", "-in", f.holders["jwe"].Keys[0], "-passout", "pass:the password", "-out", encrypted)
	jwe, nobody := f.holders["jwe"].Keys, f.node.with(nil)
	const no, damage = " does not open it (encrypted for ", "but does not open with it"
	for _, c := range []struct {
		name, image string
		node        *node
		keys, want  []string
	}{
		{"wrong key, jwe", "good:jwe", nil, f.others[0].Keys, []string{no + "jwe)"}},
		{"wrong key, pgp", "good:pgp", nil, f.others[1].Keys, []string{no + "pgp)"}},
		{"wrong key, pkcs11", "good:pkcs11", nil, f.others[2].Keys, []string{no + "pkcs11)"}},
		{"wrong key, pkcs7", "good:pkcs7", nil, f.others[3].Keys, []string{no + "pkcs7)"}},
		{"no key", "good:jwe", nil, nil, []string{"no key was given to open it (encrypted for jwe)"}},
		{"no keyring", "good:pgp", nobody, nil, []string{"open it (encrypted for pgp)"}},

		{"no password, jwe", "good:jwe", nil, []string{encrypted}, []string{encrypted + ": it is encrypted: give its password"}},
		{"wrong password, jwe", "good:jwe", nil, []string{encrypted + ":pass=no"}, []string{encrypted + ": wrong password"}},
		{"no password, pgp", "good:locked", nil, f.locked.Files, []string{f.locked.Files[0] + ": the secret key is encrypted: give its password"}},
		{"wrong password, pgp", "good:locked", nil, []string{f.locked.Files[0] + ":pass=no"}, []string{f.locked.Files[0] + ": wrong password"}},
		{"no PIN", "good:pkcs11", nil, []string{withoutPIN}, []string{no + "pkcs11): the token's PIN is missing"}},
		{"wrong PIN", "good:pkcs11", nil, []string{withoutPIN + ":pass=no"}, []string{no + "pkcs11): the token refuses the PIN"}},

		{"damaged, jwe", "damaged:jwe", nil, jwe, []string{no + "jwe): damaged jwe packet: it names key "}},
		{"damaged, pgp", "damaged:pgp", nil, f.holders["pgp"].Keys, []string{damage}},
		{"damaged, pkcs11", "damaged:pkcs11", nil, f.holders["pkcs11"].Keys, []string{damage}},
		{"damaged, pkcs7", "damaged:pkcs7", nil, f.holders["pkcs7"].Keys, []string{"damaged pkcs7 packet: it names the certificate "}},
		{"damaged, provider", "damaged:provider", nil, f.holders["provider"].Keys, []string{"exited with status 1: this packet is not of this vault"}},

		{"provider is not there", "provider:absent", nil, nil, []string{"provider absent: cannot be asked: "}},
		{"provider is not there, beside a key", "provider:absent", nil, jwe, []string{"none of the 2 keys", "not for this key", "  provider absent: cannot be asked: "}},
		{"provider refuses", "provider:fail", nil, nil, []string{"provider fail: "}},
		{"provider refuses, named", "provider:fail", nil, []string{"provider:fail"}, []string{testprovider.FailText}},
		{"provider answers nonsense", "provider:nojson", nil, nil, []string{"cannot be asked: "}},
		{"provider hangs", "provider:hang", nil, nil, []string{"cannot be asked: no answer within 1s"}},
		{"provider crashes", "provider:crash", nil, nil, []string{"cannot be asked: "}},
		{"no configuration of providers", "good:provider", nobody, nil, []string{"cannot be asked: no key-provider configuration is set"}},
		{"no configuration of modules", "good:pkcs11", nobody, f.holders["pkcs11"].Keys, []string{"there is no configuration of PKCS #11 modules"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.node == nil {
				c.node = f.node
			}
			f.refuses(t, c.node, c.image, c.keys, c.want...)
		})
	}
	f.node.leavesNothing(t)
}
