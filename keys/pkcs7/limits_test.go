package pkcs7_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"imgcrypt/keys"
	"imgcrypt/keys/pkcs7"
	"imgcrypt/layer"
)

// within fails the test if f takes so long that nobody would wait for it. What is tested
// takes some tenth of it at most.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("%s takes %v", what, took)
	}
}

// A few bytes of packet are an RSA operation, and a manifest of them would be a minute.
func TestTooManyRecipients(t *testing.T) {
	t.Parallel()
	alice := find("alice")
	good := wrap(t, newRecipient(t, alice.cert), "secret")
	name := buildName(t, commonName("x"))
	repeat := func(n int, key []byte) layer.Packet {
		return packet(buildPacket(t, nil, nil, slices.Repeat([]asn1.RawValue{buildRecipient(t, name, big.NewInt(1), key)}, n)...))
	}
	plausible := append([]byte{0}, bytes.Repeat([]byte{7}, 255)...)
	for what, tt := range map[string]struct {
		p    layer.Packet
		want error
	}{
		"of keys of another length": {repeat(20_000, []byte("ABC")), keys.ErrNoMatch},
		"of keys of this length":    {repeat(65, plausible), layer.ErrMalformed},
		"just as many as are tried": {repeat(64, plausible), keys.ErrNoMatch},
	} {
		within(t, what, func() {
			if _, err := alone(t, alice).Unwrap(t.Context(), []layer.Packet{tt.p}); !errors.Is(err, tt.want) {
				t.Errorf("%s: %v", what, err)
			}
			unwrap(t, what+", behind the good one", alone(t, alice), "secret", good, tt.p)
			// What is named is never left out.
			unwrap(t, what, newIdentity(t, alice), "secret", tt.p, good)
			checkDescription(t, pkcs7.Describe(tt.p))
		})
	}
	got := pkcs7.Describe(repeat(20_000, nil))
	if n := len(got); n != 1001 || got[1000] != "[and 19000 more]" {
		t.Errorf("%d descriptions, the last is %q", n, got[n-1])
	}
}

// As many recipients as there may be, of long keys, with as much content as there may be.
func TestManyLongRecipients(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		t.Fatal(err)
	}
	h := holder{key, issue(key, template("long", 1))}
	//lint:ignore SA1019 it is what packets have.
	wrapped, err := rsa.EncryptPKCS1v15(rand.Reader, &key.PublicKey, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	packetOf := func(n, size int, name []byte) layer.Packet {
		r := buildRecipient(t, name, big.NewInt(1), wrapped)
		return packet(buildPacket(t, nil, make([]byte, size), slices.Repeat([]asn1.RawValue{r}, n)...))
	}
	other, size := buildName(t, commonName("x")), layer.MaxSecretSize
	for what, tt := range map[string]struct {
		p    layer.Packet
		id   keys.Identity
		want string
	}{
		"key alone":     {packetOf(1024, size, other), alone(t, h), "more than 64 recipients that may be this key"},
		"certificate":   {packetOf(1024, size, other), newIdentity(t, h), "more than 64 recipients that may be this key"},
		"named":         {packetOf(1024, size, h.cert.RawIssuer), newIdentity(t, h), "does not open with its key"},
		"large content": {packetOf(1024, size+33, h.cert.RawIssuer), newIdentity(t, h), "content over 65568 bytes"},
	} {
		within(t, what, func() {
			_, err := tt.id.Unwrap(t.Context(), []layer.Packet{tt.p})
			if !errors.Is(err, layer.ErrMalformed) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
}

func TestHugePackets(t *testing.T) {
	t.Parallel()
	id := newIdentity(t, find("alice"))
	one := big.NewInt(1)
	long := string(bytes.Repeat([]byte("ä,\n"), 100_000))
	attributes := make([]pkix.AttributeTypeAndValue, 50_000)
	for i := range attributes {
		attributes[i] = commonName("x")
	}
	oid := asn1.ObjectIdentifier{1, 2}
	for range 200_000 {
		oid = append(oid, 1<<20)
	}
	for what, data := range map[string][]byte{
		"long name":          buildPacket(t, nil, nil, buildRecipient(t, buildName(t, commonName(long)), one, nil)),
		"name of many parts": buildPacket(t, nil, nil, buildRecipient(t, buildName(t, attributes...), one, nil)),
		"long type of a part": buildPacket(t, nil, nil, buildRecipient(t, buildName(t, pkix.AttributeTypeAndValue{Type: oid, Value: "x"}), one,
			nil)),
		"long serial":          buildPacket(t, nil, nil, buildRecipient(t, buildName(t), new(big.Int).Lsh(one, 8_000_000), nil)),
		"long algorithm":       buildPacket(t, &pkix.AlgorithmIdentifier{Algorithm: oid}, nil),
		"long content":         buildPacket(t, nil, make([]byte, 1<<20), buildRecipient(t, buildName(t), one, nil)),
		"deep":                 slices.Concat(bytes.Repeat([]byte{0x30, 0x80}, 250_000), make([]byte, 500_000)),
		"deep without end":     bytes.Repeat([]byte{0x30, 0x80}, 500_000),
		"many empty":           append([]byte{0x30, 0x83, 0x0f, 0x00, 0x00}, bytes.Repeat([]byte{0x30, 0}, 0x0f0000/2)...),
		"length beyond it":     {0x30, 0x84, 0x7f, 0xff, 0xff, 0xff},
		"length of no integer": {0x30, 0x89, 1, 2, 3, 4, 5, 6, 7, 8, 9},
		"length without bytes": {0x30, 0x82},
		"tag without bytes":    {0x1f, 0x80},
	} {
		within(t, what, func() {
			checkDescription(t, pkcs7.Describe(packet(data)))
			_, err := id.Unwrap(t.Context(), []layer.Packet{packet(data)})
			if !errors.Is(err, layer.ErrMalformed) && !errors.Is(err, keys.ErrNoMatch) {
				t.Errorf("%s: %v", what, err)
			}
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("%s: an error of %d bytes", what, len(err.Error()))
			}
		})
	}
}

// A name as deep as CMS allows for, with lengths that are not known beforehand.
func TestIndefiniteLengths(t *testing.T) {
	t.Parallel()
	alice := find("alice")
	good := wrap(t, newRecipient(t, alice.cert), "secret")
	unwrap(t, "indefinite", newIdentity(t, alice), "secret", packet(indefinite(t, good.Data)))
	if _, err := newIdentity(t, alice).Unwrap(t.Context(), []layer.Packet{packet(indefinite(t, good.Data)[:len(good.Data)])}); !errors.Is(err, layer.ErrMalformed) {
		t.Errorf("cut off: %v", err)
	}
}

// indefinite writes all constructed elements with an end instead of a length.
func indefinite(t testing.TB, der []byte) []byte {
	t.Helper()
	var out []byte
	for len(der) > 0 {
		var v asn1.RawValue
		var err error
		if der, err = asn1.Unmarshal(der, &v); err != nil {
			t.Fatal(err)
		}
		if !v.IsCompound {
			out = append(out, v.FullBytes...)
			continue
		}
		out = append(out, v.FullBytes[0], 0x80)
		out = append(out, indefinite(t, v.Bytes)...)
		out = append(out, 0, 0)
	}
	return out
}
