package pgp_test

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/ocb"
	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/ecdh"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/ProtonMail/go-crypto/openpgp/s2k"

	"imgcrypt/keys"
	"imgcrypt/keys/pgp"
	"imgcrypt/layer"
)

// testKeys are an ECDH key and an RSA key, the same in every run, with the file they are in.
var testKeys = sync.OnceValues(func() (openpgp.EntityList, []byte) {
	data, err := os.ReadFile(filepath.Join("testdata", "secret.asc"))
	if err != nil {
		panic(err)
	}
	ring, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(data))
	if err != nil {
		panic(err)
	}
	return ring, data
})

func testECDH() *packet.PublicKey {
	ring, _ := testKeys()
	return ring[0].Subkeys[0].PublicKey
}

func testRSA() *packet.PublicKey {
	ring, _ := testKeys()
	return ring[1].PrimaryKey
}

func testIdentity(t testing.TB) keys.Identity {
	t.Helper()
	_, data := testKeys()
	return identity(t, data)
}

func testRecipients(t testing.TB) (ecdh, rsa keys.Recipient) {
	t.Helper()
	ring, _ := testKeys()
	var all []keys.Recipient
	for _, e := range ring {
		var buf bytes.Buffer
		if err := e.Serialize(&buf); err != nil {
			t.Fatal(err)
		}
		all = append(all, fileRecipient(t, buf.Bytes()))
	}
	return all[0], all[1]
}

// sessionRSA is a packet with anything in the place of a session key. id 0 names nobody.
func sessionRSA(t testing.TB, id uint64, block []byte) []byte {
	t.Helper()
	//lint:ignore SA1019 OpenPGP knows no other padding.
	text, err := rsa.EncryptPKCS1v15(rand.Reader, testRSA().PublicKey.(*rsa.PublicKey), block)
	if err != nil {
		t.Fatal(err)
	}
	return session(id, packet.PubKeyAlgoRSA, append([]byte{2048 >> 8, 0}, text...))
}

// sessionECDH is the same for the other key; of blocks shorter than 40 bytes the padding is right.
func sessionECDH(t testing.TB, id uint64, block []byte) []byte {
	t.Helper()
	curve := []byte{10, 0x2b, 6, 1, 4, 1, 0x97, 0x55, 1, 5, 1} // Curve25519, RFC 9580 section 9.2
	point, text, err := ecdh.Encrypt(rand.Reader, testECDH().PublicKey.(*ecdh.PublicKey), slices.Clip(block), curve, testECDH().Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	fields := append([]byte{1, 7}, point...) // of 263 bits, as its first byte is 0x40
	return session(id, packet.PubKeyAlgoECDH, append(append(fields, byte(len(text))), text...))
}

func session(id uint64, algo packet.PublicKeyAlgorithm, fields []byte) []byte {
	data := binary.BigEndian.AppendUint64([]byte{3}, id)
	return join(raw{tag: 1, data: append(append(data, byte(algo)), fields...)})
}

// block is a session key as it is wrapped.
func block(cipher byte, key []byte) []byte {
	sum := uint16(0)
	for _, b := range key {
		sum += uint16(b)
	}
	return append(append([]byte{cipher}, key...), byte(sum>>8), byte(sum))
}

// literal is a text in a message that is not encrypted.
func literal(text string) []byte {
	return join(raw{tag: 11, data: append([]byte{'b', 0, 0, 0, 0, 0}, text...)})
}

// sealOCB encrypts as GnuPG 2.3 does for keys that ask for it: draft-koch-openpgp-2015-rfc4880bis-00,
// section 5.16.
func sealOCB(t testing.TB, key []byte, chunk byte, plain []byte) []byte {
	t.Helper()
	blocks, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := ocb.NewOCB(blocks)
	if err != nil {
		t.Fatal(err)
	}
	iv := bytes.Repeat([]byte{7}, aead.NonceSize())
	head := []byte{1, 9, 2, chunk}
	out := append(bytes.Clone(head), iv...)
	sealChunk := func(index uint64, text []byte, more ...byte) {
		nonce := bytes.Clone(iv)
		counter := binary.BigEndian.AppendUint64(nil, index)
		for i, b := range counter {
			nonce[len(nonce)-8+i] ^= b
		}
		ad := slices.Concat([]byte{0xd4}, head, counter, more)
		out = aead.Seal(out, nonce, text, ad)
	}
	index := uint64(0)
	for text := range slices.Chunk(plain, 1<<min(chunk+6, 30)) {
		sealChunk(index, text)
		index++
	}
	sealChunk(index, nil, binary.BigEndian.AppendUint64(nil, uint64(len(plain)))...)
	return join(raw{tag: 20, data: out})
}

// GnuPG's own AEAD packets, in small and large chunks.
func TestOCB(t *testing.T) {
	t.Parallel()
	id := testIdentity(t)
	key := bytes.Repeat([]byte{5}, 32)
	for _, text := range []string{"", "secret", strings.Repeat("secret", 1000)} {
		for _, chunk := range []byte{0, 4, 16} {
			body := sealOCB(t, key, chunk, literal(text))
			for _, head := range [][]byte{sessionRSA(t, testRSA().KeyId, block(9, key)), sessionECDH(t, testECDH().KeyId, block(9, key)), sessionECDH(t, 0, block(9, key))} {
				opens(t, id, text, message(append(head, body...)))
				last := bytes.Clone(body)
				last[len(last)-1] ^= 1
				if got, err := id.Unwrap(t.Context(), []layer.Packet{message(append(head, last...))}); err == nil {
					t.Errorf("without its end: %q", got)
				}
			}
		}
	}
}

// AEAD of RFC 9580, and its keys.
func TestRFC9580(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]*packet.Config{
		"v4":     {Algorithm: packet.PubKeyAlgoEdDSA, AEADConfig: &packet.AEADConfig{}},
		"v6":     {Algorithm: packet.PubKeyAlgoEd25519, V6Keys: true, AEADConfig: &packet.AEADConfig{}},
		"v6 448": {Algorithm: packet.PubKeyAlgoEd448, V6Keys: true, AEADConfig: &packet.AEADConfig{DefaultMode: packet.AEADModeGCM}},
	} {
		entity, err := openpgp.NewEntity("Name", "", "name@example.com", config)
		if err != nil {
			t.Fatal(err)
		}
		var private, public, theirs bytes.Buffer
		if err := errors.Join(entity.SerializePrivate(&private, config), entity.Serialize(&public)); err != nil {
			t.Fatal(err)
		}
		w, err := openpgp.Encrypt(&theirs, []*openpgp.Entity{entity}, nil, nil, config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(secret)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		id, r := identity(t, private.Bytes()), fileRecipient(t, public.Bytes())
		opens(t, id, secret, message(theirs.Bytes()))
		opens(t, id, secret, wrap(t, r, secret))
		if !r.(keys.Owner).Owns(message(theirs.Bytes())) {
			t.Errorf("%s: does not own a packet for it", name)
		}
		params, err := id.(keys.Portable).Parameters()
		if err != nil {
			t.Fatal(err)
		}
		opens(t, identity(t, params[keys.ParamPGPKeys][0]), secret, message(theirs.Bytes()))
	}
}

// hostile are messages that whoever knows the public key can write.
func hostile(t testing.TB) map[string][]byte {
	t.Helper()
	key := bytes.Repeat([]byte{5}, 32)
	body := sealOCB(t, key, 4, literal("x"))
	ofChunk := func(chunk byte) []byte {
		b := bytes.Clone(body)
		b[6+3] = chunk
		return b
	}
	withCipher := func(c byte) []byte {
		b := bytes.Clone(body)
		b[6+1] = c
		return b
	}
	nested := literal("x")
	for range 40 {
		nested = join(raw{tag: 8, data: append([]byte{0}, nested...)})
	}
	ours := testRSA().KeyId
	good := sessionRSA(t, ours, block(9, key))
	all := map[string][]byte{
		"an empty session key":       append(sessionRSA(t, ours, nil), body...),
		"a byte of a session key":    append(sessionRSA(t, ours, []byte{9}), body...),
		"no session key":             append(sessionRSA(t, ours, []byte{9, 0, 0}), body...),
		"a short session key":        append(sessionRSA(t, ours, block(9, key[:31])), body...),
		"a session key of another":   append(sessionRSA(t, ours, block(7, key[:16])), body...),
		"wrong padding":              append(sessionECDH(t, testECDH().KeyId, bytes.Repeat([]byte{255}, 40)), body...),
		"only padding":               append(sessionECDH(t, testECDH().KeyId, bytes.Repeat([]byte{40}, 40)), body...),
		"nothing wrapped":            append(session(testECDH().KeyId, packet.PubKeyAlgoECDH, append(append([]byte{1, 7, 0x40}, bytes.Repeat([]byte{9}, 32)...), 8, 1, 2, 3, 4, 5, 6, 7, 8)), body...),
		"no point":                   append(session(testECDH().KeyId, packet.PubKeyAlgoECDH, []byte{0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8}), body...),
		"an algorithm of another":    append(session(ours, packet.PubKeyAlgoElGamal, []byte{0, 8, 255, 0, 8, 255}), body...),
		"a cipher of another":        append(good, withCipher(2)...),
		"a cipher that is none":      append(good, withCipher(77)...),
		"an empty body":              append(good, join(raw{tag: 18})...),
		"a body without text":        append(good, join(raw{tag: 18, data: []byte{1}})...),
		"a body of an older version": append(good, join(raw{tag: 20, data: []byte{9, 9, 9, 9, 9}})...),
		"nested too deeply":          append(good, sealOCB(t, key, 4, nested)...),
		"no text in it":              append(good, sealOCB(t, key, 4, nil)...),
		"encrypted again":            append(good, sealOCB(t, key, 4, append(good, body...))...),
	}
	for _, chunk := range []byte{17, 24, 30, 40, 50, 57, 58, 200, 255} {
		all["a chunk of "+string(rune('a'+chunk%26))] = append(good, ofChunk(chunk)...)
	}
	return all
}

func TestHostileMessages(t *testing.T) {
	t.Parallel()
	id := testIdentity(t)
	_, r := testRecipients(t)
	for name, data := range hostile(t) {
		got, err := id.Unwrap(t.Context(), []layer.Packet{message(data)})
		if !errors.Is(err, layer.ErrMalformed) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		opens(t, id, secret, message(data), wrap(t, r, secret))
	}
}

// A few bytes of packet are an operation with a private key.
func TestTooManyRecipients(t *testing.T) {
	t.Parallel()
	id := testIdentity(t)
	_, r := testRecipients(t)
	body := sealOCB(t, make([]byte, 32), 4, literal("x"))
	many := func(n int, id uint64) layer.Packet {
		one := session(id, packet.PubKeyAlgoRSA, []byte{0, 8, 255})
		return message(append(bytes.Repeat(one, n), body...))
	}
	for name, packets := range map[string][]layer.Packet{
		"in one":         {many(1025, testRSA().KeyId)},
		"in many":        slices.Repeat([]layer.Packet{many(10, testRSA().KeyId)}, 110),
		"not named":      {many(1024, 0)},
		"markers":        {message(append(bytes.Repeat([]byte{0xca, 3, 'P', 'G', 'P'}, 2000), body...))},
		"only recipient": {message(bytes.Repeat(session(0, packet.PubKeyAlgoRSA, []byte{0, 8, 255}), 1024))},
	} {
		start := time.Now()
		if _, err := id.Unwrap(t.Context(), packets); !errors.Is(err, layer.ErrMalformed) && !errors.Is(err, keys.ErrNoMatch) {
			t.Errorf("%s: %v", name, err)
		}
		if name != "in many" { // where the limit is reached before
			opens(t, id, secret, append(packets, wrap(t, r, secret))...)
		}
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("%s took %v", name, took)
		}
	}
}

// Passphrases that take too much to check, and keys that do.
func TestCostlyKeys(t *testing.T) {
	t.Parallel()
	config := &packet.Config{
		Algorithm: packet.PubKeyAlgoEd25519, V6Keys: true, AEADConfig: &packet.AEADConfig{},
		S2KConfig: &s2k.Config{S2KMode: s2k.Argon2S2K, Argon2Config: &s2k.Argon2Config{NumberOfPasses: 1, DegreeOfParallelism: 4, Memory: 1 << 10}},
	}
	for _, v6 := range []bool{false, true} {
		config.V6Keys = v6
		config.Algorithm = packet.PubKeyAlgoEdDSA
		if v6 {
			config.Algorithm = packet.PubKeyAlgoEd25519
		}
		entity, err := openpgp.NewEntity("Name", "", "name@example.com", config)
		if err != nil {
			t.Fatal(err)
		}
		if err := entity.EncryptPrivateKeys([]byte("open sesame"), config); err != nil {
			t.Fatal(err)
		}
		var private bytes.Buffer
		if err := entity.SerializePrivateWithoutSigning(&private, config); err != nil {
			t.Fatal(err)
		}
		identity(t, private.Bytes(), "open sesame")
		// The parameters follow the salt: passes, lanes, and the exponent of the memory.
		parameters := []byte{1, 4, 10}
		if n := bytes.Count(private.Bytes(), parameters); n < 2 {
			t.Fatalf("the parameters are there %d times", n)
		}
		for _, costly := range [][]byte{{1, 4, 31}, {1, 4, 22}, {255, 4, 21}, {9, 4, 20}} {
			data := bytes.ReplaceAll(private.Bytes(), parameters, costly)
			_, err := noGPG().Identity(keys.Key{Label: "key", Data: data, Password: []byte("open sesame")})
			if !errors.Is(err, keys.ErrNotKey) || !strings.Contains(err.Error(), "too much work") {
				t.Errorf("%v: %v", costly, err)
			}
		}
	}

	key := func(tag byte, algo byte, bits int) []byte {
		data := []byte{4, 0, 0, 0, 1, algo, byte(bits >> 8), byte(bits)}
		return join(raw{tag: tag, data: append(data, make([]byte, bits/8+20)...)})
	}
	var many []byte
	for range 300_000 {
		many = append(many, 0xcd, 0) // an empty user id
	}
	for name, data := range map[string][]byte{
		"RSA":        key(6, 1, 16392),
		"DSA":        key(6, 17, 4104),
		"ElGamal":    key(5, 16, 65528),
		"user ids":   append(key(6, 1, 2048), many...),
		"only heads": bytes.Repeat([]byte{0xc6, 1, 4}, 300_000),
	} {
		start := time.Now()
		_, err := noGPG().Recipient(t.Context(), file(t, "key", data), new(keys.Files))
		if !errors.Is(err, keys.ErrNotKey) || len(err.Error()) > 500 {
			t.Errorf("%s: %.600v", name, err)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s took %v", name, took)
		}
	}
}

// A key that revokes a name that it never had.
func TestRevokedName(t *testing.T) {
	t.Parallel()
	config := &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA}
	entity, err := openpgp.NewEntity("Name", "", "name@example.com", config)
	if err != nil {
		t.Fatal(err)
	}
	revoke := func(name string) *packet.Signature {
		sig := &packet.Signature{
			Version: 4, SigType: packet.SigTypeCertificationRevocation, PubKeyAlgo: entity.PrimaryKey.PubKeyAlgo, Hash: crypto.SHA256,
			CreationTime: time.Now(), IssuerKeyId: &entity.PrimaryKey.KeyId, IssuerFingerprint: entity.PrimaryKey.Fingerprint,
		}
		if err := sig.SignUserId(name, entity.PrimaryKey, entity.PrivateKey, config); err != nil {
			t.Fatal(err)
		}
		return sig
	}
	for _, name := range []string{"Other <other@example.com>", "Third"} {
		entity.Identities[name] = &openpgp.Identity{
			Name: name, UserId: &packet.UserId{Id: name}, Signatures: []*packet.Signature{revoke(name)},
		}
	}
	serialize := func() []byte {
		var public bytes.Buffer
		if err := entity.Serialize(&public); err != nil {
			t.Fatal(err)
		}
		return public.Bytes()
	}
	wrap(t, fileRecipient(t, serialize()), secret)
	for name, id := range entity.Identities {
		id.Signatures = append(id.Signatures, revoke(name))
	}
	for range 10 { // in any order of the names
		if _, err := noGPG().Recipient(t.Context(), file(t, "key", serialize()), new(keys.Files)); !errors.Is(err, keys.ErrNotKey) ||
			!strings.Contains(err.Error(), "user ids are revoked") {
			t.Errorf("all names are revoked: %v", err)
		}
	}
}

// A secret key of ours in the armour of somebody else is still a secret.
func TestWrongArmour(t *testing.T) {
	t.Parallel()
	ring, _ := testKeys()
	var private, armored bytes.Buffer
	if err := ring[0].SerializePrivateWithoutSigning(&private, nil); err != nil {
		t.Fatal(err)
	}
	w, err := armor.Encode(&armored, openpgp.PublicKeyType, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(private.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := noGPG().Recipient(t.Context(), file(t, "key", armored.Bytes()), new(keys.Files)); !errors.Is(err, keys.ErrNotKey) ||
		!strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
	if _, ok := testIdentity(t).(*pgp.Identity); !ok {
		t.Error("not an identity")
	}
}
