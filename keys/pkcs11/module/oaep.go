package module

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"hash"

	"imgcrypt/internal/tokenproto"
)

// errPadding is the one error about a padding. Which part of it is wrong must not be told: whoever learns
// whether the first byte is zero can decrypt with some thousand tries (Manger, CRYPTO 2001).
var errPadding = errors.New("it does not open")

func newHash(name string) hash.Hash {
	if name == tokenproto.SHA1 {
		return sha1.New()
	}
	return sha256.New()
}

// unpad takes the padding of RSA-OAEP with an empty label off (RFC 8017, 7.1.2, step 3). em is what the bare
// RSA operation yields, as long as the modulus, and is overwritten. How long it takes depends on the length of em and, if
// the padding is right, on that of the message, and on nothing else.
func unpad(em []byte, hashName string) ([]byte, error) {
	h := newHash(hashName)
	size := h.Size()
	if len(em) < 2*size+2 {
		return nil, errPadding
	}
	empty := h.Sum(nil)
	seed, db := em[1:1+size], em[1+size:]
	mask(seed, db, h)
	mask(db, seed, h)

	good := subtle.ConstantTimeByteEq(em[0], 0)
	good &= subtle.ConstantTimeCompare(db[:size], empty)
	// After the hash come zeros, a one, and the message.
	rest := db[size:]
	looking, start := 1, 0
	for i, b := range rest {
		one := subtle.ConstantTimeByteEq(b, 1)
		start = subtle.ConstantTimeSelect(looking&one, i+1, start)
		good &= 1 ^ looking&(1^one)&(1^subtle.ConstantTimeByteEq(b, 0))
		looking &= 1 ^ one
	}
	good &= 1 ^ looking
	if good != 1 {
		return nil, errPadding
	}
	return rest[start:], nil
}

// mask adds MGF1 of seed to data (RFC 8017, B.2.1).
func mask(data, seed []byte, h hash.Hash) {
	var counter [4]byte
	for at := 0; at < len(data); at += h.Size() {
		h.Reset()
		h.Write(seed)
		h.Write(counter[:])
		sum := h.Sum(nil)
		n := min(len(sum), len(data)-at)
		subtle.XORBytes(data[at:at+n], data[at:at+n], sum[:n])
		binary.BigEndian.PutUint32(counter[:], binary.BigEndian.Uint32(counter[:])+1)
	}
}
