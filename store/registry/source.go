package registry

import (
	"context"
	"errors"
	"hash"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// errConsumed is why a request with a blob cannot be made a second time.
var errConsumed = errors.New("part of the blob has been read already")

// errEnded is what a body yields that belongs to an earlier attempt.
var errEnded = errors.New("this attempt has ended")

// source is a blob that is to be sent: a reader that can be read once. As a request's
// body it yields a new attempt to each transport that sends it, as long as nothing
// was read.
type source struct {
	store *Store
	op    string
	want  ocispec.Descriptor

	mu      sync.Mutex
	r       io.Reader
	current *attempt
	start   int64 // where a Seeker was
	seeker  io.Seeker
	begun   bool
	// renewed says that the login was renewed for it.
	renewed bool
	hash    hash.Hash
	size    int64
	// idle counts reads that yielded nothing, and panicked is what the reader panicked with.
	idle     int
	panicked any
	// err is how reading ended: io.EOF once the whole blob was read and is the wanted one.
	err error
	// ctx is the current request's; silence runs while nobody takes what there is to send.
	ctx     context.Context
	silence *patience
}

func (s *Store) source(op string, want ocispec.Descriptor, r io.Reader) *source {
	src := &source{store: s, op: op, want: want, r: r, hash: algorithm(want).Hash()}
	if seeker, ok := r.(io.Seeker); ok {
		// A pipe is an os.File, too, but only says that it can seek.
		if start, err := seeker.Seek(0, io.SeekCurrent); err == nil {
			src.seeker, src.start = seeker, start
		}
	}
	return src
}

// algorithm is that of the wanted digest, or the usual one.
func algorithm(want ocispec.Descriptor) digest.Algorithm {
	if want.Digest != "" {
		return want.Digest.Algorithm()
	}
	return digest.Canonical
}

// rewind makes the source as it was before anything was read, if that can be done.
func (s *source) rewind() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun {
		return true
	}
	if s.seeker == nil {
		return false
	}
	if _, err := s.seeker.Seek(s.start, io.SeekStart); err != nil {
		return false
	}
	s.begun, s.size, s.err = false, 0, nil
	s.hash.Reset()
	return true
}

// end keeps bodies from reading on. When it returns nobody reads.
func (s *source) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = nil
}

// take reads the next piece. Instead of io.EOF it returns another error if what was
// read is not the wanted blob.
func (s *source) take(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	s.begun = true
	n, err := s.read(p)
	s.hash.Write(p[:n])
	s.size += int64(n)
	switch {
	case s.want.Digest != "" && s.size > s.want.Size:
		s.err = s.store.mismatch(s.op, "it is longer than %d bytes", s.want.Size)
	case err == io.EOF:
		s.err = s.verify()
	case err != nil:
		s.err = err
	}
	return n, s.err
}

// read reads once. A panic of the reader is kept for the caller of Put: it may happen
// in a goroutine of package net/http, where nobody could catch it.
func (s *source) read(p []byte) (n int, err error) {
	defer func() {
		if v := recover(); v != nil {
			s.panicked, n, err = v, 0, errPanicked
		}
	}()
	n, err = s.r.Read(p)
	if n > 0 || err != nil || len(p) == 0 {
		s.idle = 0
	} else if s.idle++; s.idle == maxIdle {
		err = io.ErrNoProgress
	}
	return n, err
}

// errPanicked stands for a panic of the reader.
var errPanicked = errors.New("the reader panicked")

// maxIdle is how often in a row a reader may yield nothing.
const maxIdle = 100

// repanic goes on with a panic of the reader.
func (s *source) repanic() {
	s.mu.Lock()
	v := s.panicked
	s.mu.Unlock()
	if v != nil {
		panic(v)
	}
}

func (s *source) verify() error {
	switch got := s.digest(); {
	case s.want.Digest == "":
		return io.EOF
	case s.size != s.want.Size:
		return s.store.mismatch(s.op, "it has %d bytes, not %d", s.size, s.want.Size)
	case got != s.want.Digest:
		return s.store.mismatch(s.op, "its digest is %s", got)
	}
	return io.EOF
}

func (s *source) digest() digest.Digest { return digest.NewDigest(algorithm(s.want), s.hash) }

// failure is what went wrong with the source itself, which no other attempt would mend.
func (s *source) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == io.EOF {
		return nil
	}
	return s.err
}

// wasRead says whether anything was read.
func (s *source) wasRead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begun
}

// complete says whether the whole blob was read, and what it is.
func (s *source) complete() (ocispec.Descriptor, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return ocispec.Descriptor{MediaType: s.want.MediaType, Digest: s.digest(), Size: s.size}, s.err == io.EOF
}

// Read and Close make the source a request's body. Only attempts are read.
func (s *source) Read([]byte) (int, error) { return 0, errEnded }

// Close does nothing.
func (s *source) Close() error { return nil }

// body readies the source for a request that silence belongs to. When ctx ends the
// body does.
func (s *source) body(ctx context.Context, silence *patience) *source {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ctx, s.silence = ctx, silence
	return s
}

// attempt returns a body that reads from the source; earlier ones stop to do so.
func (s *source) attempt() (*attempt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun {
		return nil, errConsumed
	}
	s.current = &attempt{source: s}
	return s.current, nil
}

// attempt is the body of one request.
type attempt struct{ source *source }

func (a *attempt) Read(p []byte) (int, error) {
	s := a.source
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != a {
		return 0, errEnded
	}
	if s.ctx.Err() != nil && s.err == nil {
		s.err = s.ctx.Err()
	}
	s.silence.stop()
	n, err := s.take(p)
	if err != nil {
		// Also where it is no end: the request ends in order, and with it what the
		// registry does about it, before the upload is taken back.
		err = io.EOF
		s.silence.limit = slowly * s.store.options.Silence
	}
	s.silence.start()
	return n, err
}

// Close does nothing: a body that was not read may be sent again.
func (a *attempt) Close() error { return nil }
