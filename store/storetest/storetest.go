// Package storetest is the conformance suite of stores: what holds for every
// [imgcrypt.Store] and [imgcrypt.Tags], whatever holds the blobs. A store's package
// calls [Run] in a test of its own, and tests beside it only what is special there.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

// Subject is a store under test, and what it cannot do.
type Subject struct {
	// Store has nothing in it, or nothing that the suite puts.
	Store imgcrypt.Store
	// Tags are the store's names; none is taken. nil: it has no names.
	Tags imgcrypt.Tags
	// Context makes the context of every call out of one of the suite. nil: that one.
	Context func(context.Context) context.Context
	// Names may be given to images, at least four. nil: v1, v2 and so on.
	Names []string
	// OddNames are refused by Tag.
	OddNames []string
	// Reopen closes the store and opens it anew, with what was put and tagged. nil:
	// the store is all there is.
	Reopen func(t *testing.T) Subject
	// Leftovers lists what is in the place beside whole blobs and names: what a Put
	// that failed must not leave. nil: that cannot be seen.
	Leftovers func(t *testing.T) []string
	// Collect removes what no name leads to. nil: nothing is ever removed.
	Collect func(t *testing.T)
	// Prunes says that with each name that is given, what no name leads to any more is
	// removed.
	Prunes bool
	// Piece is how many bytes the store reads or writes at once. Zero: 1 MiB.
	Piece int
	// NoSHA512 says that there are only SHA-256 digests.
	NoSHA512 bool
	// NoLayers says that layers are not kept as they were put, and cannot be read.
	NoLayers bool
	// NoIndexes says that an index cannot be tagged.
	NoIndexes bool
}

// Run tests the stores that open returns; it is called for each of many subtests, in
// parallel.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	tests := []struct {
		name string
		test func(t *testing.T, open func(t *testing.T) Subject)
	}{
		{"round trip", testRoundTrip},
		{"readers", testReaders},
		{"sha512", testSHA512},
		{"media types", testMediaTypes},
		{"missing", testMissing},
		{"malformed digest", testMalformedDigest},
		{"mismatch", testMismatch},
		{"reader fails", testReaderFails},
		{"reader fails although present", testReaderFailsAlthoughPresent},
		{"reader panics", testReaderPanics},
		{"reader is idle", testIdleReader},
		{"cancelled", testCancelled},
		{"cancelled while writing", testCancelledWhileWriting},
		{"invisible until complete", testInvisible},
		{"same blob in parallel", testSameInParallel},
		{"blobs in parallel", testInParallel},
		{"one fails in parallel", testOneFails},
		{"readers in parallel", testReadersInParallel},
		{"image", testImage},
		{"names", testNames},
		{"odd names", testOddNames},
		{"renaming is one step", testRenaming},
		{"names in parallel", testNamesInParallel},
		{"reading while naming", testReadingWhileNaming},
		{"open again", testReopen},
		{"garbage", testCollect},
		{"closed", testClosed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.test(t, open)
		})
	}
}

// subject is a Subject in a test.
type subject struct {
	Subject
	t   *testing.T
	ctx context.Context
}

func start(t *testing.T, open func(t *testing.T) Subject) *subject {
	t.Helper()
	return newSubject(t, open(t))
}

func newSubject(t *testing.T, s Subject) *subject {
	if s.Piece == 0 {
		s.Piece = 1 << 20
	}
	if s.Names == nil {
		s.Names = []string{"v1", "v2", "v3", "v4"}
	}
	if s.Context == nil {
		s.Context = func(ctx context.Context) context.Context { return ctx }
	}
	return &subject{Subject: s, t: t, ctx: s.Context(t.Context())}
}

// layerType is the media type of blobs that may have any content.
const layerType = ocispec.MediaTypeImageLayer

// content returns size bytes that are no compressed data.
func content(size int) []byte {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i) ^ byte(i>>8) ^ byte(i>>16) | 0x80
	}
	return data
}

func descOf(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// unknown is what is wanted of a blob whose digest is not known.
func unknown(mediaType string) ocispec.Descriptor { return ocispec.Descriptor{MediaType: mediaType} }

// put puts a blob and checks what comes back.
func (s *subject) put(mediaType string, data []byte, refs ...ocispec.Descriptor) ocispec.Descriptor {
	s.t.Helper()
	want := descOf(mediaType, data)
	got, err := s.Store.Put(s.ctx, want, bytes.NewReader(data), refs...)
	if err != nil {
		s.t.Fatalf("put %s: %v", mediaType, err)
	}
	s.checkDesc(want, got)
	return want
}

// checkDesc checks the result of a Put: media type, digest, size, and nothing else.
func (s *subject) checkDesc(want, got ocispec.Descriptor) {
	s.t.Helper()
	if got.MediaType != want.MediaType || got.Digest != want.Digest || got.Size != want.Size {
		s.t.Errorf("got %s %s of %d bytes, want %s %s of %d bytes", got.MediaType, got.Digest, got.Size, want.MediaType, want.Digest, want.Size)
	}
	if got.Annotations != nil || got.Platform != nil || got.URLs != nil || got.Data != nil || got.ArtifactType != "" {
		s.t.Errorf("got more than media type, digest and size: %+v", got)
	}
}

// checkPresent checks that a blob can be read.
func (s *subject) checkPresent(desc ocispec.Descriptor, data []byte) {
	s.t.Helper()
	if has, ok := s.has(desc); ok && !has {
		s.t.Errorf("%s: the store says that it does not have it", desc.Digest)
	}
	if s.NoLayers && (desc.MediaType == layerType || desc.MediaType == dockerLayer) {
		return
	}
	got, err := s.read(desc)
	if err != nil {
		s.t.Errorf("open %s: %v", desc.Digest, err)
	} else if !bytes.Equal(got, data) {
		s.t.Errorf("%s: %d other bytes were read, want %d", desc.Digest, len(got), len(data))
	}
}

func (s *subject) read(desc ocispec.Descriptor) ([]byte, error) {
	r, err := s.Store.Open(s.ctx, desc)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

// checkAbsent checks that a blob is not there, not even in part.
func (s *subject) checkAbsent(desc ocispec.Descriptor) {
	s.t.Helper()
	if r, err := s.Store.Open(s.ctx, desc); err == nil {
		r.Close()
		s.t.Errorf("%s is there", desc.Digest)
	} else if !errors.Is(err, imgcrypt.ErrNotFound) {
		s.t.Errorf("open %s: %v, want an error that wraps ErrNotFound", desc.Digest, err)
	}
	if has, ok := s.has(desc); ok && has {
		s.t.Errorf("%s: the store says that it has it", desc.Digest)
	}
}

// has asks a store that can tell.
func (s *subject) has(desc ocispec.Descriptor) (has, ok bool) {
	s.t.Helper()
	prober, ok := s.Store.(interface {
		Has(context.Context, ocispec.Descriptor) (bool, error)
	})
	if !ok {
		return false, false
	}
	has, err := prober.Has(s.ctx, desc)
	if err != nil {
		s.t.Errorf("has %s: %v", desc.Digest, err)
	}
	return has, err == nil
}

// checkClean checks that nothing half-written is left.
func (s *subject) checkClean() {
	s.t.Helper()
	if s.Leftovers == nil {
		return
	}
	if left := s.Leftovers(s.t); len(left) > 0 {
		s.t.Errorf("left behind: %v", left)
	}
}

// checkUsable checks that the store still works after whatever happened.
func (s *subject) checkUsable() {
	s.t.Helper()
	data := []byte("the store still works")
	s.checkPresent(s.put(layerType, data), data)
	s.checkClean()
}
