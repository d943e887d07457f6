package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

// sizes are around those of the store's pieces.
func (s *subject) sizes() []int {
	return []int{0, 1, s.Piece - 1, s.Piece, s.Piece + 1, 3*s.Piece + 17}
}

func testRoundTrip(t *testing.T, open func(*testing.T) Subject) {
	for _, size := range start(t, open).sizes() {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d bytes, digest known %v", size, known), func(t *testing.T) {
				t.Parallel()
				s := start(t, open)
				data := content(size)
				want := unknown(layerType)
				if known {
					want = descOf(layerType, data)
				}
				s.checkAbsent(descOf(layerType, data))
				// The second time it is there already.
				for range 2 {
					got, err := s.Store.Put(s.ctx, want, iotest.HalfReader(bytes.NewReader(data)))
					if err != nil {
						t.Fatal(err)
					}
					s.checkDesc(descOf(layerType, data), got)
					s.checkPresent(descOf(layerType, data), data)
					s.checkClean()
				}
				if !s.NoLayers {
					s.testReader(descOf(layerType, data), data)
				}
			})
		}
	}
}

// testReader applies the standard library's tests of readers.
func (s *subject) testReader(desc ocispec.Descriptor, data []byte) {
	s.t.Helper()
	r, err := s.Store.Open(s.ctx, desc)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := iotest.TestReader(r, data); err != nil {
		s.t.Error(err)
	}
	if err := r.Close(); err != nil {
		s.t.Error(err)
	}
}

// halting is a reader that now and then reads nothing.
type halting struct {
	io.Reader
	calls int
}

func (h *halting) Read(p []byte) (int, error) {
	if h.calls++; h.calls%2 == 0 {
		return 0, nil
	}
	return h.Reader.Read(p)
}

func testReaders(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	readers := map[string]func(io.Reader) io.Reader{
		"byte by byte":         iotest.OneByteReader,
		"data with the end":    iotest.DataErrReader,
		"half with the end":    func(r io.Reader) io.Reader { return iotest.DataErrReader(iotest.HalfReader(r)) },
		"nothing now and then": func(r io.Reader) io.Reader { return &halting{Reader: r} },
	}
	for name, reader := range readers {
		for _, known := range []bool{false, true} {
			data := append(content(4097), name...)
			data = fmt.Append(data, known)
			desc := descOf(layerType, data)
			want := unknown(layerType)
			if known {
				want = desc
			}
			got, err := s.Store.Put(s.ctx, want, reader(bytes.NewReader(data)))
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			s.checkDesc(desc, got)
			s.checkPresent(desc, data)
		}
	}
	s.checkClean()
}

func testSHA512(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	if s.NoSHA512 {
		return
	}
	data := content(1234)
	want := ocispec.Descriptor{MediaType: layerType, Digest: digest.SHA512.FromBytes(data), Size: int64(len(data))}
	got, err := s.Store.Put(s.ctx, want, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	s.checkDesc(want, got)
	s.checkPresent(want, data)
	other := want
	other.Digest = digest.SHA512.FromString("other")
	if _, err := s.Store.Put(s.ctx, other, bytes.NewReader(data)); !errors.Is(err, imgcrypt.ErrMismatch) {
		t.Errorf("another SHA-512 digest: got %v", err)
	}
	s.checkAbsent(other)
}

func testMissing(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	for _, mediaType := range []string{layerType, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex} {
		s.checkAbsent(descOf(mediaType, []byte("missing "+mediaType)))
	}
}

func testMalformedDigest(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	for _, malformed := range []digest.Digest{
		"sha256:00", "sha256", "sha256:", ":", "md5:d41d8cd98f00b204e9800998ecf8427e", "../../etc/passwd",
		"sha256:../../../../../../../../../../../../../../../../../../../../../../etc", digest.Digest("sha256:" + digest.FromString("").Encoded()[:63] + "/"),
		digest.Digest("SHA256:" + digest.FromString("").Encoded()),
	} {
		desc := ocispec.Descriptor{MediaType: layerType, Digest: malformed}
		if _, err := s.Store.Put(s.ctx, desc, bytes.NewReader(nil)); err == nil {
			t.Errorf("put %q was accepted", malformed)
		}
		if r, err := s.Store.Open(s.ctx, desc); err == nil {
			r.Close()
			t.Errorf("open %q was accepted", malformed)
		}
	}
	s.checkUsable()
}

func testMismatch(t *testing.T, open func(*testing.T) Subject) {
	piece := start(t, open).Piece
	other := append(content(piece+5), "other"...)
	for _, size := range []int{5, piece, piece + 5} {
		data := content(size)
		good := descOf(layerType, data)
		short, long, negative, forged := good, good, good, good
		short.Size--
		long.Size++
		negative.Size = -1
		forged.Digest = digest.FromBytes(other)
		for name, want := range map[string]ocispec.Descriptor{"too long": short, "too short": long, "negative": negative, "other digest": forged} {
			for _, present := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %d bytes, present %v", name, size, present), func(t *testing.T) {
					t.Parallel()
					s := start(t, open)
					if present {
						s.put(layerType, data)
						s.put(layerType, other)
					}
					if _, err := s.Store.Put(s.ctx, want, bytes.NewReader(data)); !errors.Is(err, imgcrypt.ErrMismatch) {
						t.Errorf("got %v, want an error that wraps ErrMismatch", err)
					}
					s.checkClean()
					if present {
						s.checkPresent(good, data)
						s.checkPresent(descOf(layerType, other), other)
						return
					}
					s.checkAbsent(good)
					s.checkAbsent(descOf(layerType, other))
				})
			}
		}
	}
}

// failing yields data and then err; together with the last bytes if so asked.
type failing struct {
	data     []byte
	err      error
	together bool
}

func (f *failing) Read(p []byte) (int, error) {
	n := copy(p, f.data)
	f.data = f.data[n:]
	if len(f.data) == 0 && (f.together || n == 0) {
		return n, f.err
	}
	return n, nil
}

// A blob exists only if its reader said io.EOF; every other end leaves nothing behind.
func testReaderFails(t *testing.T, open func(*testing.T) Subject) {
	broken := errors.New("broken")
	for _, cause := range []error{broken, io.ErrUnexpectedEOF, io.ErrClosedPipe, fmt.Errorf("wrapped: %w", io.EOF)} {
		for _, size := range start(t, open).sizes() {
			t.Run(fmt.Sprintf("%v after %d bytes", cause, size), func(t *testing.T) {
				t.Parallel()
				s := start(t, open)
				data := content(size)
				for i, want := range []ocispec.Descriptor{unknown(layerType), descOf(layerType, data), descOf(layerType, append(data, "more"...))} {
					r := &failing{data: data, err: cause, together: i%2 == 0}
					if _, err := s.Store.Put(s.ctx, want, r); !errors.Is(err, cause) {
						t.Errorf("got %v", err)
					}
				}
				s.checkClean()
				s.checkAbsent(descOf(layerType, data))
				s.checkUsable()
			})
		}
	}
}

// What the reader has to say counts also if the blob is there: it may be that its
// source was forged.
func testReaderFailsAlthoughPresent(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	data := content(5000)
	desc := s.put(layerType, data)
	broken := errors.New("broken")
	for _, want := range []ocispec.Descriptor{desc, unknown(layerType)} {
		if _, err := s.Store.Put(s.ctx, want, &failing{data: data, err: broken}); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	}
	s.checkClean()
	s.checkPresent(desc, data)
}

// panicking yields data and then panics.
type panicking struct{ data []byte }

func (p *panicking) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		panic(errPanic)
	}
	n := copy(b, p.data)
	p.data = p.data[n:]
	return n, nil
}

var errPanic = errors.New("the reader panicked")

// The panic is its caller's to handle. The blob is not there, and the store works on.
func testReaderPanics(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	for _, size := range s.sizes() {
		data := content(size)
		func() {
			defer func() {
				if got := recover(); got != errPanic {
					t.Errorf("%d bytes: recovered %v", size, got)
				}
			}()
			_, err := s.Store.Put(s.ctx, descOf(layerType, data), &panicking{data})
			t.Errorf("%d bytes: got %v", size, err)
		}()
		s.checkAbsent(descOf(layerType, data))
	}
	s.checkUsablePanicked()
}

// checkUsablePanicked is checkUsable without looking for what is left: a store behind
// a connection cannot know of a panic.
func (s *subject) checkUsablePanicked() {
	s.t.Helper()
	data := []byte("the store still works")
	s.checkPresent(s.put(layerType, data), data)
}

// idle never ends and never yields anything.
type idle struct{}

func (idle) Read([]byte) (int, error) { return 0, nil }

func testIdleReader(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	for _, want := range []ocispec.Descriptor{unknown(layerType), descOf(layerType, []byte("data"))} {
		if _, err := s.Store.Put(s.ctx, want, idle{}); !errors.Is(err, io.ErrNoProgress) {
			t.Errorf("got %v", err)
		}
	}
	s.checkClean()
}
