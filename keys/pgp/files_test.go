package pgp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"imgcrypt/keys"
	"imgcrypt/keys/pgp"
	"imgcrypt/layer"
)

func noGPG() keys.Scheme { return pgp.Scheme(pgp.Config{Program: "/nowhere/gpg"}) }

// Files that are recipients, and those that are not. None needs gpg.
func TestRecipientFiles(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	alice := h.gen("25519", "Alice", "alice@example.com", "")
	bob := h.gen("rsa", "Bob", "bob@example.com", "open sesame")
	armored := h.run(nil, "--armor", "--export", alice)
	private := h.secret("", alice)
	keybox, err := os.ReadFile(filepath.Join(h.dir, "pubring.kbx"))
	if err != nil {
		t.Fatal(err)
	}
	crlf := bytes.ReplaceAll(armored, []byte("\n"), []byte("\r\n"))
	good := map[string][]byte{
		"binary": h.public(alice), "armoured": armored, "with line ends of Windows": crlf,
		"with a byte order mark": append([]byte("\xef\xbb\xbf"), armored...),
		"with a text before":     append([]byte("pub   ed25519\nuid alice\n\n"), armored...),
		"minimal":                h.run(nil, "--export-options", "export-minimal", "--export", alice),
		"without its checksum":   bytes.Join([][]byte{armored[:bytes.LastIndex(armored, []byte("\n="))], []byte("\n-----END PGP PUBLIC KEY BLOCK-----\n")}, nil),
	}
	for name, data := range good {
		r := recipient(t, noGPG(), file(t, "alice", data))
		if got := r.(*pgp.Recipient).Fingerprint(); got != alice {
			t.Errorf("%s: %s", name, got)
		}
		opens(t, identity(t, private), secret, wrap(t, r, secret))
	}
	two := h.public()
	twice := append(h.run(nil, "--armor", "--export", alice), h.run(nil, "--armor", "--export", bob)...)
	bad := map[string]struct {
		data []byte
		why  string
	}{
		"secret":           {private, "it holds a secret key"},
		"secret armoured":  {h.run(nil, "--armor", "--export-secret-keys", alice), "it holds a secret key"},
		"secret beside":    {append(h.public(bob), private...), "it holds a secret key"},
		"protected":        {h.secret("open sesame", bob), "it holds a secret key"},
		"several":          {two, "it holds 2 keys"},
		"several armoured": {twice, "it holds 2 keys"},
		"a message":        {h.run([]byte("x"), "--armor", "--store"), `it holds no OpenPGP key ("PGP MESSAGE")`},
		"a keybox":         {keybox, "keybox"},
		"empty":            {nil, "no OpenPGP public key"},
		"text":             {[]byte("alice"), "no OpenPGP public key"},
		"truncated":        {h.public(alice)[:150], "damaged or truncated"},
		"cut armour":       {armored[:150], "damaged"},
		"another damaged":  {append(h.public(alice), h.public(bob)[:200]...), "damaged or truncated"},
	}
	for name, c := range bad {
		path := file(t, "key", c.data)
		_, err := noGPG().Recipient(t.Context(), path, new(keys.Files))
		if !errors.Is(err, keys.ErrNotKey) || !strings.Contains(err.Error(), c.why) || !strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	path := file(t, "two", two)
	if _, err := noGPG().Recipient(t.Context(), path, new(keys.Files)); !strings.Contains(err.Error(), "\n  "+alice+` "Alice <alice@example.com>"`) {
		t.Errorf("several: %v", err)
	}
	if _, err := noGPG().Recipient(t.Context(), "./nothing", new(keys.Files)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// A name without a separator is a file only if nobody in the keyring is called so.
func TestFileOrName(t *testing.T) {
	h := newHome(t, "gpg")
	alice := h.gen("25519", "Alice", "", "")
	bob := h.gen("25519", "Bob", "", "")
	t.Chdir(t.TempDir())
	write := func(name string, data []byte, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(name, data, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("Alice", h.public(bob), 0o600) // somebody else put it there
	write("Bob", []byte("a note about Bob"), 0o600)
	write("bob.gpg", h.public(bob), 0o600)
	write("note", []byte("a note about nobody"), 0o600)
	write("Carol", h.secret("", alice), 0o600)
	write("Big", make([]byte, keys.MaxFileSize+1), 0o600)
	if err := os.Mkdir("Dave", 0o700); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]string{"Alice": alice, "./Alice": bob, "Bob": bob, "bob.gpg": bob} {
		if got := recipient(t, h.scheme(), what).(*pgp.Recipient).Fingerprint(); got != want {
			t.Errorf("%s is %s", what, got)
		}
	}
	if got := recipient(t, noGPG(), "Alice").(*pgp.Recipient).Fingerprint(); got != bob {
		t.Errorf("without gpg Alice is %s", got)
	}
	for what, want := range map[string]error{"note": pgp.ErrNotFound, "Carol": keys.ErrNotKey, "Dave": pgp.ErrNotFound, "Big": pgp.ErrNotFound, "Erin.asc": pgp.ErrNotFound} {
		_, err := h.scheme().Recipient(t.Context(), what, new(keys.Files))
		if want == pgp.ErrNotFound && (!strings.Contains(fmt.Sprint(err), "nor a file: import it, or name a file as pgp:./FILE") ||
			strings.Contains(fmt.Sprint(err), "gpg:")) {
			t.Errorf("%s: %v", what, err)
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", what, err)
		}
		if what == "Big" && !strings.Contains(fmt.Sprint(err), "larger than") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestIdentityFiles(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	alice := h.gen("25519", "Alice", "alice@example.com", "")
	bob := h.gen("rsa", "Bob", "bob@example.com", "open sesame")
	forAlice := wrap(t, fileRecipient(t, h.public(alice)), "for alice")
	forBob := wrap(t, fileRecipient(t, h.public(bob)), "for bob")
	private, protected := h.secret("", alice), h.secret("open sesame", bob)
	subkeys := h.run(nil, "--export-secret-subkeys", alice)
	opens(t, identity(t, subkeys), "for alice", forAlice)

	// Rings of several keys, armoured one after the other.
	both := append(h.run(nil, "--armor", "--export-secret-keys", alice), h.run(nil, "--armor", "--pinentry-mode", "loopback", "--passphrase", "open sesame", "--export-secret-keys", bob)...)
	for name, ring := range map[string][]byte{"binary": append(bytes.Clone(protected), private...), "armoured": both} {
		id := identity(t, ring, "open sesame")
		opens(t, id, "for alice", forAlice)
		opens(t, id, "for bob", forBob)
		// Without the passphrase, what is not protected opens, and the rest says why not.
		id = identity(t, ring)
		opens(t, id, "for alice", forBob, forAlice)
		if _, err := id.Unwrap(t.Context(), []layer.Packet{forBob}); !errors.Is(err, keys.ErrPassword) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Files that open nothing: each says why, and none shuts out another key.
func TestUselessIdentityFiles(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	alice := h.gen("25519", "Alice", "alice@example.com", "")
	bob := h.gen("rsa", "Bob", "bob@example.com", "open sesame")
	signer := h.gen("sign", "Signer", "", "")
	forAlice := wrap(t, fileRecipient(t, h.public(alice)), "for alice")
	private, protected := h.secret("", alice), h.secret("open sesame", bob)
	none := []byte{}
	canary := []byte("wrong canary")
	bad := map[string]struct {
		key  keys.Key
		want error
		text string
	}{
		"no passphrase":    {keys.Key{Data: protected}, keys.ErrPassword, "give its password"},
		"empty passphrase": {keys.Key{Data: protected, Password: none}, keys.ErrPassword, "wrong password"},
		"wrong passphrase": {keys.Key{Data: protected, Password: canary}, keys.ErrPassword, "wrong password"},
		"public":           {keys.Key{Data: h.public(alice)}, keys.ErrNotKey, "gpg --export-secret-keys"},
		"public armoured":  {keys.Key{Data: h.run(nil, "--armor", "--export", alice)}, keys.ErrNotKey, "gpg --export-secret-keys"},
		"cannot decrypt":   {keys.Key{Data: h.secret("", signer)}, keys.ErrNotKey, "no key for decryption"},
		"only a stub":      {keys.Key{Data: stubs(t, private, 1)}, keys.ErrNotKey, "smart card"},
		"on a card":        {keys.Key{Data: stubs(t, private, 2)}, keys.ErrNotKey, "smart card"},
		"a message":        {keys.Key{Data: h.run([]byte("x"), "--armor", "--store")}, keys.ErrNotKey, "PGP MESSAGE"},
		"truncated":        {keys.Key{Data: private[:len(private)-9]}, keys.ErrNotKey, "truncated"},
		"PEM":              {keys.Key{Data: []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")}, keys.ErrNoMatch, ""},
		"DER":              {keys.Key{Data: []byte{0x30, 0x82, 1, 2, 3}}, keys.ErrNoMatch, ""},
		"UTF-16":           {keys.Key{Data: []byte("\xff\xfek\x00e\x00y\x00")}, keys.ErrNoMatch, ""},
		"noise":            {keys.Key{Data: []byte{0x99, 1, 0, 77, 78}}, keys.ErrNoMatch, ""},
		"empty":            {keys.Key{}, keys.ErrNoMatch, ""},
	}
	for name, c := range bad {
		c.key.Label = "the file"
		_, err := noGPG().Identity(c.key)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
		if c.text != "" && !strings.HasPrefix(err.Error(), "the file: ") {
			t.Errorf("%s: %v names no file", name, err)
		}
		ids := noGPG().Identities(keys.Parameters{keys.ParamPGPKeys: {private, c.key.Data}, keys.ParamPGPPasswords: {nil, c.key.Password}})
		if len(ids) != 2 {
			t.Fatalf("%s: %d identities", name, len(ids))
		}
		opens(t, ids[0], "for alice", forAlice)
		if _, err := ids[1].Unwrap(t.Context(), []layer.Packet{forAlice}); errors.Is(err, keys.ErrNoMatch) || err == nil {
			t.Errorf("%s in parameters: %v", name, err)
		}
		if name := ids[1].(keys.Named).Name(); name != "gpg-privatekeys[1]" {
			t.Errorf("it is called %s", name)
		}
	}
}

// stubs makes of each secret key the stub that gpg writes if it is elsewhere, or on a card.
func stubs(t testing.TB, private []byte, kind byte) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, p := range split(t, private) {
		if p.tag == 5 || p.tag == 7 {
			// The public part ends where the byte comes that says that the secret part is
			// not protected; in these keys that is where the numbers end.
			public := publicLength(t, p.data)
			p.data = append(p.data[:public:public], 0xff, 0, 101, 0, 'G', 'N', 'U', kind)
			if kind == 2 {
				p.data = append(p.data, 16)
				p.data = append(p.data, bytes.Repeat([]byte{7}, 16)...)
			}
		}
		out.Write(join(p))
	}
	return out.Bytes()
}

type raw struct {
	tag  byte
	data []byte
}

// split takes old-format packets apart, which is what gpg writes of keys.
func split(t testing.TB, data []byte) []raw {
	t.Helper()
	var all []raw
	for len(data) > 0 {
		if data[0]&0xc0 != 0x80 || data[0]&3 > 1 {
			t.Fatalf("packet of format %x", data[0])
		}
		head, size := 2, int(data[1])
		if data[0]&3 == 1 {
			head, size = 3, int(data[1])<<8|int(data[2])
		}
		all = append(all, raw{tag: data[0] & 0x3c >> 2, data: data[head : head+size]})
		data = data[head+size:]
	}
	return all
}

// join writes a packet in the new format.
func join(p raw) []byte {
	n := len(p.data)
	return append([]byte{0xc0 | p.tag, 0xff, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, p.data...)
}

// publicLength is the length of the public part of an ed25519 or cv25519 key.
func publicLength(t testing.TB, key []byte) int {
	t.Helper()
	at := 6 + 1 + int(key[6])                      // the curve
	at += 2 + (int(key[at])<<8|int(key[at+1])+7)/8 // the point
	if key[5] == 18 {
		at += 1 + int(key[at]) // how keys are derived
	}
	return at
}

func TestParametersOfRecipients(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	alice := h.gen("25519", "Alice", "alice@example.com", "")
	alice2 := h.gen("25519", "Alice", "alice@example.com", "")
	bob := h.gen("25519", "Bob", "", "")
	h.run(nil, "--quick-add-uid", bob, "bob@example.com")
	ring := h.public()
	cases := map[string]struct {
		names, rings []string
		want         []string
		err          error
	}{
		"an address":        {[]string{"bob@example.com"}, []string{string(ring)}, []string{bob}, nil},
		"a name":            {[]string{"bob"}, []string{string(ring)}, []string{bob}, nil},
		"two keys":          {[]string{"alice@example.com"}, []string{string(ring)}, []string{alice, alice2}, nil},
		"two keys by name":  {[]string{"Alice"}, []string{string(ring)}, []string{alice, alice2}, nil},
		"a fingerprint":     {[]string{alice2}, []string{string(ring)}, []string{alice2}, nil},
		"a key id":          {[]string{"0x" + alice2[24:]}, []string{string(ring)}, []string{alice2}, nil},
		"twice the same":    {[]string{alice2, "Alice", "bob"}, []string{string(ring)}, []string{alice2, alice, bob}, nil},
		"an armoured ring":  {[]string{"bob"}, []string{string(h.run(nil, "--armor", "--export"))}, []string{bob}, nil},
		"several rings":     {[]string{"bob", alice}, []string{string(h.public(alice)), string(h.public(bob))}, []string{bob, alice}, nil},
		"beside damage":     {[]string{"bob"}, []string{string(h.public(bob)) + string(h.public(alice)[:100])}, []string{bob}, nil},
		"a part of a name":  {[]string{"Bo"}, []string{string(ring)}, nil, pgp.ErrNotFound},
		"nobody":            {[]string{"bob", "nobody"}, []string{string(ring)}, nil, pgp.ErrNotFound},
		"no ring":           {[]string{"bob"}, nil, nil, errAny},
		"an empty ring":     {[]string{"bob"}, []string{""}, nil, keys.ErrNotKey},
		"no ring but noise": {[]string{"bob"}, []string{"noise"}, nil, keys.ErrNotKey},
		"empty":             {[]string{""}, []string{string(ring)}, nil, errAny},
	}
	for name, c := range cases {
		params := keys.Parameters{}
		for _, s := range c.names {
			params[keys.ParamPGPRecipients] = append(params[keys.ParamPGPRecipients], []byte(s))
		}
		for _, s := range c.rings {
			params[keys.ParamPGPRing] = append(params[keys.ParamPGPRing], []byte(s))
		}
		got, err := noGPG().Recipients(t.Context(), params)
		if c.err != nil {
			if err == nil || !errors.Is(err, c.err) && c.err != errAny || !strings.HasPrefix(err.Error(), "gpg-") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var fingerprints []string
		for _, r := range got {
			fingerprints = append(fingerprints, r.(*pgp.Recipient).Fingerprint())
		}
		if err != nil || strings.Join(fingerprints, " ") != strings.Join(c.want, " ") {
			t.Errorf("%s: %q, %v", name, fingerprints, err)
		}
	}
	// What ocicrypt cannot use is not given to it.
	nameless := recipient(t, noGPG(), file(t, "key", h.public(h.gen("25519", "Carol", "", ""))))
	if _, err := nameless.(keys.Portable).Parameters(); !errors.Is(err, keys.ErrNotKey) {
		t.Errorf("without a mail address: %v", err)
	}
	params, err := recipient(t, noGPG(), file(t, "key", h.public(bob))).(keys.Portable).Parameters()
	if err != nil || string(params[keys.ParamPGPRecipients][0]) != "bob@example.com" {
		t.Errorf("with a mail address among its names: %q, %v", params, err)
	}
}

var errAny = errors.New("any")

func TestUnwrap(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	alice := h.gen("25519", "Alice", "", "")
	bob := h.gen("rsa", "Bob", "", "")
	forAlice := wrap(t, fileRecipient(t, h.public(alice)), "for alice")
	forBob := wrap(t, fileRecipient(t, h.public(bob)), "for bob")
	id := identity(t, h.secret("", alice))
	for i := range 20 { // as Adding does, one after the other
		forAlice2 := wrap(t, fileRecipient(t, h.public(alice)), fmt.Sprint(i))
		opens(t, id, fmt.Sprint(i), forBob, forAlice2, forAlice)
	}
	noMDC := message(h.run([]byte("x"), "--encrypt", "--recipient", alice, "--rfc2440", "--disable-mdc"))
	plain := message(h.run([]byte("x"), "--store"))
	passphrase := message(h.run([]byte("x"), "--pinentry-mode", "loopback", "--passphrase", "x", "--symmetric"))
	hidden := message(h.run([]byte("x"), "--encrypt", "--hidden-recipient", bob))
	huge := message(h.run(make([]byte, 65537), "--encrypt", "--recipient", alice))
	bomb := message(h.run(make([]byte, 50<<20), "--encrypt", "--recipient", alice, "--compress-algo", "bzip2"))
	last := bytes.Clone(forAlice.Data)
	last[len(last)-1] ^= 1
	cases := map[string]struct {
		packets []layer.Packet
		want    error
		damaged bool
	}{
		"nothing":            {nil, keys.ErrNoMatch, false},
		"a stranger's":       {[]layer.Packet{forBob}, keys.ErrNoMatch, false},
		"a hidden stranger":  {[]layer.Packet{hidden}, keys.ErrNoMatch, false},
		"another scheme":     {[]layer.Packet{{Scheme: "jwe", Data: forAlice.Data}}, keys.ErrNoMatch, false},
		"damaged":            {[]layer.Packet{message(last)}, layer.ErrMalformed, true},
		"damaged, beside":    {[]layer.Packet{forBob, message(last), plain}, layer.ErrMalformed, true},
		"truncated":          {[]layer.Packet{message(forAlice.Data[:len(forAlice.Data)-5])}, layer.ErrMalformed, false},
		"no MDC":             {[]layer.Packet{noMDC}, layer.ErrMalformed, false},
		"not encrypted":      {[]layer.Packet{plain}, layer.ErrMalformed, false},
		"for a passphrase":   {[]layer.Packet{passphrase}, keys.ErrNoMatch, false},
		"noise":              {[]layer.Packet{message([]byte("noise")), message(nil)}, layer.ErrMalformed, false},
		"too large":          {[]layer.Packet{huge}, layer.ErrMalformed, true},
		"a compressed bomb":  {[]layer.Packet{bomb}, layer.ErrMalformed, true},
		"unsupported, armed": {[]layer.Packet{message(h.run([]byte("x"), "--armor", "--encrypt", "--recipient", alice))}, layer.ErrMalformed, false},
	}
	for name, c := range cases {
		got, err := id.Unwrap(t.Context(), c.packets)
		if damaged := new(*pgp.DamagedError); !errors.Is(err, c.want) || errors.As(err, damaged) != c.damaged {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		opens(t, id, "for alice", append(c.packets, forAlice)...)
	}
	opens(t, id, string(make([]byte, 65536)), message(h.run(make([]byte, 65536), "--encrypt", "--recipient", alice)))

	r := fileRecipient(t, h.public(alice))
	owner := r.(keys.Owner)
	if !owner.Owns(forAlice) || owner.Owns(forBob) || owner.Owns(plain) || owner.Owns(layer.Packet{Scheme: "jwe", Data: forAlice.Data}) {
		t.Error("it owns what is not its own, or not what is")
	}
}

// One identity serves many, and a caller who has gone is not.
func TestConcurrentAndCancelled(t *testing.T) {
	t.Parallel()
	id := testIdentity(t)
	r, other := testRecipients(t)
	forAlice, forBob := wrap(t, r, "for alice"), wrap(t, other, "for bob")
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() { opens(t, id, "for alice", forAlice) })
		wait.Go(func() { opens(t, id, "for bob", forBob) })
		wait.Go(func() { wrap(t, r, "") })
	}
	wait.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := id.Unwrap(ctx, []layer.Packet{forAlice}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := r.Wrap(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Whatever is changed, nothing else comes out.
func TestFlipAnyBit(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	for _, kind := range []string{"25519", "nist", "rsa"} {
		fingerprint := h.gen(kind, kind, "", "")
		id := identity(t, h.secret("", fingerprint))
		packet := wrap(t, fileRecipient(t, h.public(fingerprint)), secret)
		for i := range packet.Data {
			for bit := range 8 {
				data := bytes.Clone(packet.Data)
				data[i] ^= 1 << bit
				got, err := id.Unwrap(t.Context(), []layer.Packet{message(data)})
				if err == nil && string(got) != secret {
					t.Fatalf("%s: bit %d of byte %d: %q", kind, bit, i, got)
				}
				if err != nil && !errors.Is(err, keys.ErrNoMatch) && !errors.Is(err, layer.ErrMalformed) {
					t.Fatalf("%s: bit %d of byte %d: %v", kind, bit, i, err)
				}
			}
		}
	}
}
