package tokenproto_test

import (
	"encoding/base64"
	"math/big"
	"testing"

	"imgcrypt/internal/tokenproto"
)

// The example of RFC 7638, section 3.1.
func TestKeyID(t *testing.T) {
	t.Parallel()
	const modulus = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
	n, err := base64.RawURLEncoding.DecodeString(modulus)
	if err != nil {
		t.Fatal(err)
	}
	if got := tokenproto.KeyID(n, []byte{1, 0, 1}); got != "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs" {
		t.Error(got)
	}
}

// Numbers come back as they were given, without leading zeros, and what cannot be a key is none.
func TestKey(t *testing.T) {
	t.Parallel()
	var a tokenproto.Answer
	if a.Key() != nil {
		t.Error("a key of nothing")
	}
	a.SetKey([]byte{0, 0, 7, 9}, []byte{0, 1, 0, 1})
	if key := a.Key(); key == nil || key.N.Cmp(big.NewInt(7*256+9)) != 0 || key.E != 65537 || len(a.Modulus) != 2 {
		t.Errorf("%+v", a)
	}
	for name, e := range map[string][]byte{"one": {1}, "zero": {0}, "too large": {1, 0, 0, 0, 0}} {
		if a.SetKey([]byte{7}, e); a.Key() != nil {
			t.Errorf("exponent %s: %+v", name, a.Key())
		}
	}
	if a.SetKey(make([]byte, 5000), []byte{3}); a.Key() != nil {
		t.Error("a key of zero")
	}
	huge := make([]byte, 5000)
	huge[0] = 1
	if a.SetKey(huge, []byte{3}); a.Key() != nil {
		t.Error("a huge key")
	}
}
