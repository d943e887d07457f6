package pgp_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"imgcrypt/keys"
	"imgcrypt/keys/pgp"
	"imgcrypt/layer"
)

// Public keys that are small, and that would take minutes to verify.
func TestCostlyVerification(t *testing.T) {
	t.Parallel()
	entity, err := openpgp.NewEntity("Name", "", "name@example.com", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	if err != nil {
		t.Fatal(err)
	}
	var public bytes.Buffer
	if err := entity.Serialize(&public); err != nil {
		t.Fatal(err)
	}
	// Primary key, user id, its signature, subkey, its signature.
	var parts [][]byte
	for r := packet.NewOpaqueReader(bytes.NewReader(public.Bytes())); ; {
		p, err := r.Next()
		if err != nil {
			break
		}
		parts = append(parts, join(raw{tag: p.Tag, data: p.Contents}))
	}
	primary, name, selfSig, subkey, binding := parts[0], parts[1], parts[2], parts[3], parts[4]
	key := func(name, sub int) []byte {
		return slices.Concat(primary, parts[1], bytes.Repeat(selfSig, name), subkey, bytes.Repeat(binding, sub))
	}
	wrap(t, fileRecipient(t, key(64, 64)), secret)

	numbers := func(algo byte, bits ...int) []byte {
		data := []byte{4, 0, 0, 0, 1, algo}
		for _, n := range bits {
			data = append(append(data, byte(n>>8), byte(n)), bytes.Repeat([]byte{255}, (n+7)/8)...)
		}
		return append(join(raw{tag: 6, data: data}), slices.Concat(parts[1:]...)...)
	}
	many := slices.Concat(name, bytes.Repeat(selfSig, 60))
	for name, c := range map[string]struct {
		data []byte
		why  string
	}{
		"a user id":            {key(65, 1), "too many signatures"},
		"a subkey":             {key(1, 65), "too many signatures"},
		"a large file":         {key(1, (1<<20)/len(binding)-10), "too many signatures"},
		"several user ids":     {append(key(1, 1), bytes.Repeat(many, 5)...), "too many signatures"},
		"several keys":         {bytes.Repeat(key(60, 60), 3), "too many signatures"},
		"many keys":            {bytes.Repeat(key(1, 1), 300), "it holds 300 keys"},
		"order of DSA":         {numbers(17, 4096, 513, 4096, 4096), "513 bits"},
		"generator of DSA":     {numbers(17, 2048, 256, 2056, 2048), "2056 bits"},
		"number of DSA":        {numbers(17, 2048, 256, 2048, 2056), "2056 bits"},
		"generator of ElGamal": {numbers(16, 2048, 2056, 2048), "2056 bits"},
		"exponent of RSA":      {numbers(1, 2048, 33), "33 bits"},
	} {
		start := time.Now()
		_, err := noGPG().Recipient(t.Context(), file(t, "key", c.data), new(keys.Files))
		if !errors.Is(err, keys.ErrNotKey) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%s took %v", name, took)
		}
	}
}

// asked counts how often the script of [home.pinentry] was asked for a passphrase.
func (h *home) asked() (reply string, count func() int) {
	log := filepath.Join(h.dir, "asked")
	return "echo x >>" + log, func() int {
		data, err := os.ReadFile(log)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			h.t.Fatal(err)
		}
		if err := os.RemoveAll(log); err != nil {
			h.t.Fatal(err)
		}
		return bytes.Count(data, []byte("x"))
	}
}

// Whoever knows the user's key does not make gpg ask for the passphrases of others, nor
// again and again.
func TestPromptsAreFew(t *testing.T) {
	t.Parallel()
	h := newHome(t, "gpg")
	h.gen("25519", "", "alice@example.com", "open sesame")
	h.gen("25519", "", "work@example.com", "open sesame")
	h.gen("25519", "", "old@example.com", "open sesame")
	good := wrap(t, recipient(t, h.scheme(), "alice@example.com"), secret)
	r := packet.NewOpaqueReader(bytes.NewReader(good.Data))
	var head, body []byte
	for _, to := range []*[]byte{&head, &body} {
		p, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		*to = join(raw{tag: p.Tag, data: p.Contents})
	}
	hidden := session(0, packet.PubKeyAlgoECDH, head[6+10:]) // after its version, id and algorithm
	passphrase := join(raw{tag: 3, data: []byte{4, 9, 3, 8, 1, 2, 3, 4, 5, 6, 7, 8, 96}})
	bad := bytes.Clone(body)
	bad[len(bad)-1] ^= 1
	cases := map[string]struct {
		packets []layer.Packet
		opens   bool
	}{
		"not named":             {[]layer.Packet{message(slices.Concat(hidden, head, hidden, body))}, true},
		"by a passphrase":       {[]layer.Packet{message(slices.Concat(passphrase, head, passphrase, body))}, true},
		"not named, damaged":    {[]layer.Packet{message(slices.Concat(bytes.Repeat(hidden, 9), head, passphrase, bad))}, false},
		"many, in one":          {[]layer.Packet{message(append(bytes.Repeat(head, 1000), bad...))}, false},
		"many":                  {slices.Repeat([]layer.Packet{message(append(bytes.Clone(head), bad...))}, 100), false},
		"not named at all":      {[]layer.Packet{message(append(bytes.Clone(hidden), body...))}, false},
		"only by a passphrase":  {[]layer.Packet{message(append(bytes.Clone(passphrase), body...))}, false},
		"damaged, then a whole": {[]layer.Packet{message(append(bytes.Clone(head), bad...)), good}, true},
	}
	config := h.config()
	config.UseKeyring = true
	log, asked := h.asked()
	for _, refuses := range []bool{true, false} {
		reply := "echo 'D open sesame'; echo OK"
		if refuses {
			reply = "echo 'ERR 83886179 canceled <Pinentry>'"
		}
		for name, c := range cases {
			h.pinentry(log + "; " + reply)
			got, err := pgp.Scheme(config).Fallback(nil).Unwrap(t.Context(), c.packets)
			if opened := err == nil && string(got) == secret; opened != (c.opens && !refuses) {
				t.Errorf("%s: %q, %v", name, got, err)
			}
			if n := asked(); n > 1 { // the agent keeps what it was told
				t.Errorf("%s: asked %d times", name, n)
			}
		}
	}
}
