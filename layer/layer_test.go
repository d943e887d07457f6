package layer_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containers/ocicrypt/blockcipher"
	"github.com/opencontainers/go-digest"

	"imgcrypt/layer"
)

// sizes are those at which a buffer begins, ends or is skipped.
var sizes = []int{0, 1, 15, 16, 17, 1000, layer.Holdback - 1, layer.Holdback, layer.Holdback + 1, 2*layer.Holdback - 1, 2 * layer.Holdback, 2*layer.Holdback + 1, 3*layer.Holdback + 12345}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	r.Read(b)
	return b
}

func seal(t testing.TB, plain []byte) ([]byte, layer.Sealed) {
	t.Helper()
	s, err := layer.NewSealer(bytes.NewReader(plain), digest.FromBytes(plain), int64(len(plain)))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := io.ReadAll(s)
	if err != nil {
		t.Fatal(err)
	}
	result, err := s.Sealed()
	if err != nil {
		t.Fatal(err)
	}
	return sealed, result
}

func open(sealed io.Reader, r layer.Sealed) ([]byte, error) {
	o, err := layer.NewOpener(sealed, r.Secret, r.Public, r.Size)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(o)
}

func TestSealAndOpen(t *testing.T) {
	t.Parallel()
	for _, n := range sizes {
		plain := random(n)
		sealed, r := seal(t, plain)
		if r.Digest != digest.FromBytes(sealed) || r.Size != int64(n) || len(sealed) != n || r.Secret.Digest != digest.FromBytes(plain) {
			t.Errorf("%d bytes: %+v", n, r)
		}
		if n >= 16 && bytes.Equal(plain[:16], sealed[:16]) {
			t.Errorf("%d bytes: not encrypted", n)
		}
		for name, reader := range map[string]io.Reader{
			"whole":    bytes.NewReader(sealed),
			"half":     iotest.HalfReader(bytes.NewReader(sealed)),
			"data err": iotest.DataErrReader(bytes.NewReader(sealed)),
		} {
			if got, err := open(reader, r); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes, %s: %v", n, name, err)
			}
		}
		o, err := layer.NewOpener(bytes.NewReader(sealed), r.Secret, r.Public, r.Size)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if m, err := o.WriteTo(&b); err != nil || m != int64(n) || !bytes.Equal(b.Bytes(), plain) {
			t.Errorf("%d bytes, WriteTo: %d, %v", n, m, err)
		}
	}
	plain := random(5000)
	sealed, r := seal(t, plain)
	o, err := layer.NewOpener(iotest.OneByteReader(bytes.NewReader(sealed)), r.Secret, r.Public, r.Size)
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(o, plain); err != nil {
		t.Error(err)
	}
	if _, other := seal(t, plain); other.Secret.Key == r.Secret.Key || other.Secret.Nonce == r.Secret.Nonce || other.Digest == r.Digest {
		t.Error("two seals of the same bytes share a key, a nonce or their ciphertext")
	}
}

// What ocicrypt seals opens here, and the other way round.
func TestOcicryptCipher(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 4096, 3*layer.Holdback + 5} {
		plain := random(n)
		h, err := blockcipher.NewLayerBlockCipherHandler()
		if err != nil {
			t.Fatal(err)
		}
		theirs, finish, err := h.Encrypt(bytes.NewReader(plain), blockcipher.AES256CTR)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := io.ReadAll(theirs)
		if err != nil {
			t.Fatal(err)
		}
		opts, err := finish()
		if err != nil {
			t.Fatal(err)
		}
		r := layer.Sealed{Public: layer.Public{MAC: opts.Public.Hmac}, Size: int64(n)}
		copy(r.Secret.Key[:], opts.Private.SymmetricKey)
		copy(r.Secret.Nonce[:], opts.Private.CipherOptions["nonce"])
		if got, err := open(bytes.NewReader(sealed), r); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("theirs, %d bytes: %v", n, err)
		}

		ours, r := seal(t, plain)
		h, err = blockcipher.NewLayerBlockCipherHandler()
		if err != nil {
			t.Fatal(err)
		}
		opened, _, err := h.Decrypt(bytes.NewReader(ours), blockcipher.LayerBlockCipherOptions{
			Public:  blockcipher.PublicLayerBlockCipherOptions{CipherType: layer.Cipher, Hmac: r.Public.MAC},
			Private: blockcipher.PrivateLayerBlockCipherOptions{SymmetricKey: r.Secret.Key[:], CipherOptions: map[string][]byte{"nonce": r.Secret.Nonce[:]}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(opened); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("ours, %d bytes: %v", n, err)
		}
	}
}

func TestEveryFlippedBit(t *testing.T) {
	t.Parallel()
	sealed, r := seal(t, random(100))
	for i := range len(sealed) * 8 {
		forged := bytes.Clone(sealed)
		forged[i/8] ^= 1 << (i % 8)
		if got, err := open(bytes.NewReader(forged), r); !errors.Is(err, layer.ErrTampered) || len(got) > 0 {
			t.Fatalf("bit %d: %d bytes released, %v", i, len(got), err)
		}
	}
	for i := range len(r.Public.MAC) * 8 {
		forged := r
		forged.Public.MAC = bytes.Clone(r.Public.MAC)
		forged.Public.MAC[i/8] ^= 1 << (i % 8)
		if _, err := open(bytes.NewReader(sealed), forged); !errors.Is(err, layer.ErrTampered) {
			t.Fatalf("bit %d of the MAC: %v", i, err)
		}
	}
}

// The last megabyte of a layer that turns out to be forged is never released.
func TestHoldback(t *testing.T) {
	t.Parallel()
	for _, n := range sizes {
		sealed, r := seal(t, random(n))
		for name, c := range map[string]struct {
			sealed []byte
			size   int64
		}{
			"longer":       {append(bytes.Clone(sealed), 0), r.Size},
			"much longer":  {append(bytes.Clone(sealed), make([]byte, 3*layer.Holdback)...), r.Size},
			"shorter":      {sealed[:max(0, n-1)], r.Size + int64(1-min(n, 1))},
			"says shorter": {append(bytes.Clone(sealed), 0), r.Size + 1},
		} {
			forged := r
			forged.Size = c.size
			got, err := open(bytes.NewReader(c.sealed), forged)
			if !errors.Is(err, layer.ErrTampered) {
				t.Errorf("%d bytes, %s: %v", n, name, err)
			}
			if len(got) > max(0, len(c.sealed)-layer.Holdback) || len(got) > n {
				t.Errorf("%d bytes, %s: %d were released", n, name, len(got))
			}
		}
	}
}

func TestBrokenReader(t *testing.T) {
	t.Parallel()
	sealed, r := seal(t, random(3*layer.Holdback))
	cause := errors.New("connection reset")
	for _, cut := range []error{cause, io.ErrUnexpectedEOF} {
		_, err := open(io.MultiReader(bytes.NewReader(sealed[:layer.Holdback+7]), iotest.ErrReader(cut)), r)
		if !errors.Is(err, cut) || errors.Is(err, layer.ErrTampered) {
			t.Errorf("opening: %v, want %v", err, cut)
		}
	}
	s, err := layer.NewSealer(io.MultiReader(strings.NewReader("x"), iotest.ErrReader(cause)), "", -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(s); !errors.Is(err, cause) {
		t.Errorf("sealing: %v", err)
	}
	if _, err := s.Sealed(); err == nil {
		t.Error("sealed what had no end")
	}
}

func TestSealerVerifies(t *testing.T) {
	t.Parallel()
	plain := []byte("plain")
	for name, c := range map[string]struct {
		want digest.Digest
		size int64
		ok   bool
	}{
		"unknown":     {"", -1, true},
		"right":       {digest.FromBytes(plain), 5, true},
		"sha512":      {digest.SHA512.FromBytes(plain), 5, true},
		"digest":      {digest.FromString("other"), 5, false},
		"too long":    {digest.FromBytes(plain), 4, false},
		"too short":   {digest.FromBytes(plain), 6, false},
		"only a size": {"", 4, false},
	} {
		s, err := layer.NewSealer(bytes.NewReader(plain), c.want, c.size)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadAll(s)
		if c.ok != (err == nil) || !c.ok && !errors.Is(err, layer.ErrMismatch) {
			t.Errorf("%s: %v", name, err)
		}
		if r, err := s.Sealed(); c.ok && (err != nil || c.want != "" && r.Secret.Digest != c.want) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	for _, bad := range []digest.Digest{"x", "sha256:00", "md5:d41d8cd98f00b204e9800998ecf8427e"} {
		if _, err := layer.NewSealer(bytes.NewReader(plain), bad, -1); err == nil {
			t.Errorf("digest %q was taken", bad)
		}
	}
}

func TestOpenerRefusesAtOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mac  []byte
		size int64
		want error
	}{
		"no MAC":        {nil, 1, layer.ErrTampered},
		"short MAC":     {make([]byte, 31), 1, layer.ErrTampered},
		"long MAC":      {make([]byte, 33), 1, layer.ErrTampered},
		"negative size": {make([]byte, 32), -1, layer.ErrMalformed},
	} {
		if _, err := layer.NewOpener(iotest.ErrReader(errors.New("read")), layer.Secret{}, layer.Public{MAC: c.mac}, c.size); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A layer that claims to be huge costs no memory before it is.
func TestClaimedSize(t *testing.T) {
	t.Parallel()
	_, err := open(bytes.NewReader(nil), layer.Sealed{Public: layer.Public{MAC: make([]byte, 32)}, Size: 1 << 62})
	if !errors.Is(err, layer.ErrTampered) {
		t.Error(err)
	}
}

func BenchmarkSeal(b *testing.B) {
	plain := random(16 << 20)
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(plain)))
	for b.Loop() {
		s, err := layer.NewSealer(bytes.NewReader(plain), "", -1)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, s, buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	sealed, r := seal(b, random(16<<20))
	b.SetBytes(int64(len(sealed)))
	for b.Loop() {
		o, err := layer.NewOpener(bytes.NewReader(sealed), r.Secret, r.Public, r.Size)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := o.WriteTo(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
