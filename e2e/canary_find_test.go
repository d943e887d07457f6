package e2e

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"

	"imgcrypt/keys"
)

// window is how many bytes in a row count as a part of a secret, in whatever form it is written.
const window = 12

// canaries are secrets that can be recognised, by any part of any of their forms.
type canaries struct {
	names []string
	parts map[[window]byte]int // of which name
	// begins has a bit for the first three bytes of each part, since most of a text is none.
	begins []uint64
}

func newCanaries() *canaries {
	return &canaries{parts: make(map[[window]byte]int), begins: make([]uint64, 1<<24/64)}
}

func beginning(b []byte) (word int, bit uint64) {
	n := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	return n / 64, 1 << (n % 64)
}

// add adds a secret of that many bytes or more that two parts of it do not occur by chance.
func (c *canaries) add(name string, secrets ...[]byte) {
	c.names = append(c.names, name)
	for _, secret := range secrets {
		for _, form := range encodings(secret) {
			for i := range len(form) - window + 1 {
				part := []byte(form[i : i+window])
				word, bit := beginning(part)
				c.begins[word] |= bit
				if _, ok := c.parts[[window]byte(part)]; !ok {
					c.parts[[window]byte(part)] = len(c.names) - 1
				}
			}
		}
	}
}

// word makes a secret that is a word, for passwords and the like.
func (c *canaries) word(t testing.TB, name string) string {
	t.Helper()
	word := "canary." + rand.Text()
	c.add(name, []byte(word[len("canary."):]))
	return word
}

// encodings returns the forms in which data may be shown: as it is, in hexadecimal, as a list of numbers as fmt
// prints it, and in base64, in which data looks different at each of three places in what is encoded. Of these
// only the characters that do not depend on what is around it.
func encodings(data []byte) []string {
	numbers := strings.Trim(fmt.Sprint(data), "[]")
	forms := []string{string(data), hex.EncodeToString(data), strings.ToUpper(hex.EncodeToString(data)), numbers, strings.ReplaceAll(numbers, " ", ",")}
	for shift := range 3 {
		text := base64.RawStdEncoding.EncodeToString(append(make([]byte, shift), data...))
		text = text[(shift*8+5)/6 : len(text)-1]
		forms = append(forms, text, strings.NewReplacer("+", "-", "/", "_").Replace(text))
	}
	return forms
}

// in returns the names of the secrets of which there is something in a text.
func (c *canaries) in(text []byte) []string {
	found := make(map[int]bool)
	for i := range len(text) - window + 1 {
		if word, bit := beginning(text[i:]); c.begins[word]&bit == 0 {
			continue
		}
		if n, ok := c.parts[[window]byte(text[i:i+window])]; ok {
			found[n] = true
		}
	}
	var names []string
	for n := range found {
		names = append(names, c.names[n])
	}
	slices.Sort(names)
	return names
}

// absent fails the test if there is a secret in a text, other than the allowed ones.
func (c *canaries) absent(t testing.TB, where, text string, allowed ...string) {
	t.Helper()
	for _, name := range c.in([]byte(text)) {
		if !slices.Contains(allowed, name) {
			t.Errorf("%s: there is some of %s:\n%.2000s", where, name, text)
		}
	}
}

// numbers are the secret ones of a private key.
func secretNumbers(t testing.TB, key crypto.PrivateKey) [][]byte {
	t.Helper()
	var all []*big.Int
	switch key := key.(type) {
	case *rsa.PrivateKey:
		key.Precompute()
		all = append([]*big.Int{key.D, key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv}, key.Primes...)
	case *ecdsa.PrivateKey:
		d, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, new(big.Int).SetBytes(d))
	default:
		t.Fatalf("a %T", key)
	}
	var secrets [][]byte
	for _, n := range all {
		secrets = append(secrets, n.Bytes(), []byte(n.String()))
	}
	return secrets
}

// keyFile adds a private key: its secret numbers, and the part of the file that has them, as that is what is sent
// around. Of an encrypted file that is all but the beginning.
func (c *canaries) keyFile(t testing.TB, name, path, password string) {
	t.Helper()
	data := readFile(t, path)
	key, err := keys.ParsePrivateKey(data, []byte(password))
	if err != nil {
		t.Fatal(err)
	}
	secrets := secretNumbers(t, key)
	block, _ := pem.Decode(data)
	if block == nil {
		// A JWK has them in base64.
		for _, secret := range slices.Clone(secrets) {
			secrets = append(secrets, []byte(base64.RawURLEncoding.EncodeToString(secret)))
		}
		c.add(name, secrets...)
		return
	}
	from, to := 80, len(block.Bytes)
	if at := bytes.Index(block.Bytes, secrets[0]); at >= 0 {
		from, to = at, at+len(secrets[0])
	}
	c.add(name, append(secrets, block.Bytes[from:to], lines(t, data, from, to))...)
}

// lines returns the part of a PEM file in which the bytes from to of its content are, with the ends of its lines.
func lines(t testing.TB, file []byte, from, to int) []byte {
	t.Helper()
	_, after, ok := bytes.Cut(file, []byte("-----\n"))
	body, _, ok2 := bytes.Cut(after, []byte("\n-----END"))
	if headers, rest, ok := bytes.Cut(body, []byte("\n\n")); ok && bytes.Contains(headers, []byte(":")) {
		body = rest
	}
	if !ok || !ok2 {
		t.Fatalf("no PEM: %.40q", file)
	}
	const perLine = 64
	place := func(n int) int { return min(n+n/perLine, len(body)) }
	return body[place((from*8+5)/6):place(to*8/6)]
}

// keyring adds the keys of an OpenPGP secret keyring.
func (c *canaries) keyring(t testing.TB, name, path, passphrase string) {
	t.Helper()
	entities, err := openpgp.ReadKeyRing(bytes.NewReader(readFile(t, path)))
	if err != nil {
		t.Fatal(err)
	}
	var secrets [][]byte
	for _, e := range entities {
		for _, key := range e.Subkeys {
			if key.PrivateKey.Encrypted {
				if err := key.PrivateKey.Decrypt([]byte(passphrase)); err != nil {
					t.Fatal(err)
				}
			}
			secrets = append(secrets, secretNumbers(t, key.PrivateKey.PrivateKey)...)
		}
	}
	c.add(name, secrets...)
}

// inFiles fails the test if there is a secret in a file below dir.
func (c *canaries) inFiles(t testing.TB, dir string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if os.IsNotExist(err) || err == nil && !entry.Type().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		files++
		for _, name := range c.in(data) {
			t.Errorf("%s: there is some of %s", path, name)
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("%s: %d files, %v", dir, files, err)
	}
}

// Secrets are found in whatever form they are shown, and nothing else is.
func TestCanariesAreFound(t *testing.T) {
	t.Parallel()
	c := newCanaries()
	word := c.word(t, "password")
	rsa, ec := rsaKeys(t), ecKeys(t)
	locked := filepath.Join(t.TempDir(), "locked.pem")
	openssl(t, "pkcs8", "-topk8", "-in", ecKeys(t).private, "-passout", "pass:"+word, "-out", locked)
	files := map[string]string{word: "password"}
	for path, name := range map[string]string{
		rsa.private: "RSA", pkcs1(t, rsaKeys(t)).private: "PKCS#1", jwkOf(t, rsaKeys(t), "").private: "JWK of RSA",
		ec.private: "EC", jwkOf(t, ecKeys(t), "").private: "JWK of EC", locked: "locked",
	} {
		c.keyFile(t, name, path, word)
		files[string(readFile(t, path))] = name
	}
	for secret, name := range files {
		quoted, err := json.Marshal(secret)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode([]byte(secret))
		if block == nil {
			block = &pem.Block{Bytes: []byte(secret)}
		}
		for form, text := range map[string]string{
			"itself": secret, "JSON": string(quoted), "quoted": fmt.Sprintf("%q", secret), "numbers": fmt.Sprint([]byte(secret)),
			"hexadecimal": fmt.Sprintf("%x", secret), "HEXADECIMAL": fmt.Sprintf("%X", secret),
			"base64": base64.StdEncoding.EncodeToString([]byte(secret)), "base64 for URLs, shifted": base64.URLEncoding.EncodeToString([]byte("x" + secret)),
			"base64 with more": base64.RawStdEncoding.EncodeToString([]byte("some" + secret + "more")), "DER": string(block.Bytes),
			"DER in base64": base64.StdEncoding.EncodeToString(append([]byte("x"), block.Bytes...)), "DER in hexadecimal": fmt.Sprintf("%x", block.Bytes),
			"cut off": secret[:len(secret)-min(20, len(secret)/4)],
		} {
			if found := c.in([]byte("before" + text + "after")); !slices.Contains(found, name) {
				t.Errorf("%s: %s: found %q", name, form, found)
			}
		}
	}
	for _, path := range []string{rsa.public, ec.public, jwkOf(t, rsa, "").public, jwkOf(t, ec, "").public} {
		c.absent(t, path, string(readFile(t, path)))
	}
}
