package module

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"hash"
	"math/big"
	"testing"

	"imgcrypt/internal/tokenproto"
)

func hashes() map[string]func() hash.Hash {
	return map[string]func() hash.Hash{tokenproto.SHA1: sha1.New, tokenproto.SHA256: sha256.New}
}

// bare is the RSA operation without a padding.
func bare(key *rsa.PrivateKey, data []byte) []byte {
	m := new(big.Int).Exp(new(big.Int).SetBytes(data), key.D, key.N)
	return m.FillBytes(make([]byte, key.Size()))
}

// What crypto/rsa has padded comes out again, for every length that a message can have, and with no bit changed.
func TestUnpad(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, h := range hashes() {
		for size := range key.Size() - 2*h().Size() - 2 + 1 {
			message := bytes.Repeat([]byte{0, 1, byte(size)}, size)[:size]
			data, err := rsa.EncryptOAEP(h(), rand.Reader, &key.PublicKey, message, nil)
			if err != nil {
				t.Fatal(err)
			}
			em := bare(key, data)
			if got, err := unpad(bytes.Clone(em), name); err != nil || !bytes.Equal(got, message) {
				t.Errorf("%s: %x, %v; want %x", name, got, err, message)
			}
			if size%16 != 0 {
				continue
			}
			for i := range em {
				bad := bytes.Clone(em)
				bad[i] ^= 1 << (i % 8)
				// A bit of the message itself is not protected by the padding of the message, but by its mask.
				if got, err := unpad(bad, name); err == nil && bytes.Equal(got, message) {
					t.Errorf("%s: byte %d changes nothing", name, i)
				}
			}
		}
	}
}

// pad is the padding, with what can be wrong about it.
func pad(h hash.Hash, size int, first byte, label, filling []byte) []byte {
	em := make([]byte, size)
	em[0] = first
	seed, db := em[1:1+h.Size()], em[1+h.Size():]
	for i := range seed {
		seed[i] = byte(i)
	}
	h.Write(label)
	copy(db, h.Sum(nil))
	copy(db[h.Size():], filling)
	mask(db, seed, h)
	mask(seed, db, h)
	return em
}

// Each part of the padding is checked.
func TestUnpadRefuses(t *testing.T) {
	t.Parallel()
	for name, h := range hashes() {
		size := 128
		room := size - 1 - 2*h().Size()
		filling := func(text string) []byte { return append(make([]byte, room-len(text)), text...) }
		for what, c := range map[string]struct {
			em []byte
			ok bool
		}{
			"right":              {pad(h(), size, 0, nil, filling("\x01message")), true},
			"empty message":      {pad(h(), size, 0, nil, filling("\x01")), true},
			"full message":       {pad(h(), size, 0, nil, append([]byte{1}, bytes.Repeat([]byte{1}, room-1)...)), true},
			"first byte":         {pad(h(), size, 1, nil, filling("\x01message")), false},
			"label":              {pad(h(), size, 0, []byte("x"), filling("\x01message")), false},
			"no one":             {pad(h(), size, 0, nil, filling("")), false},
			"something else":     {pad(h(), size, 0, nil, filling("\x02\x01message")), false},
			"something first":    {pad(h(), size, 0, nil, append([]byte{7}, filling("\x01message")[1:]...)), false},
			"nothing":            {nil, false},
			"one byte too short": {make([]byte, 2*h().Size()+1), false},
			"shortest":           {pad(h(), 2*h().Size()+2, 0, nil, []byte{1}), true},
		} {
			if _, err := unpad(c.em, name); (err == nil) != c.ok {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
}

// Nothing that a token may yield makes it fail otherwise.
func FuzzUnpad(f *testing.F) {
	f.Add([]byte{}, true)
	f.Add(pad(sha1.New(), 128, 0, nil, []byte{1, 2, 3}), true)
	f.Add(pad(sha256.New(), 256, 0, nil, []byte{0, 1, 2, 3}), false)
	f.Fuzz(func(t *testing.T, em []byte, old bool) {
		name := tokenproto.SHA256
		if old {
			name = tokenproto.SHA1
		}
		size := len(em)
		message, err := unpad(em, name)
		if err == nil && len(message) > size-2*newHash(name).Size()-2 {
			t.Errorf("%d bytes out of %d", len(message), size)
		}
	})
}
