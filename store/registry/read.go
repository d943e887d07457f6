package registry

import (
	"context"
	"fmt"
	"hash"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// progress is how many bytes make failures before them forgotten: a large blob may
// take any number of connections.
const progress = 256 << 10

// Open implements [imgcrypt.Store]. What has the media type of a manifest is looked
// for among the manifests. The reader verifies: an end that is io.EOF is the end of
// the blob of desc, and anything else an error that wraps [imgcrypt.ErrMismatch]. It
// goes on from where it was when a connection breaks. ctx is for the reading too.
func (s *Store) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	op := "get " + desc.Digest.String()
	if err := s.valid(op, desc); err != nil {
		return nil, err
	}
	b := &blob{store: s, ctx: ctx, desc: desc, op: op, tries: s.tries(), hash: desc.Digest.Algorithm().Hash()}
	if err := b.connect(); err != nil {
		return nil, err
	}
	return b, nil
}

// valid refuses a descriptor that cannot be one of a blob.
func (s *Store) valid(op string, desc ocispec.Descriptor) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("%s: digest %.150q: %w", s.Repository(), desc.Digest, err)
	}
	if desc.Size < 0 {
		return s.mismatch(op, "a size of %d bytes", desc.Size)
	}
	return nil
}

// blob is one that is being read.
type blob struct {
	store *Store
	ctx   context.Context
	desc  ocispec.Descriptor
	op    string
	tries *tries

	answer *answer
	hash   hash.Hash
	// seen counts the bytes that were returned, since those after the last failures that
	// were forgotten, and skip those that this connection will send once more.
	seen, since, skip int64
	err               error
}

func (b *blob) Read(p []byte) (int, error) {
	if len(p) == 0 || b.err != nil {
		return 0, b.err
	}
	for {
		n, err := b.answer.Read(p)
		n = b.skipped(p, n)
		b.hash.Write(p[:n])
		b.seen += int64(n)
		b.since += int64(n)
		switch {
		case b.seen > b.desc.Size:
			b.err = b.store.mismatch(b.op, "it is longer than its %d bytes", b.desc.Size)
		case err != nil && b.seen == b.desc.Size:
			// Whatever came after the last byte, the blob is whole.
			b.err = b.verify()
		case err != nil:
			b.err = b.resume(err)
		}
		if n > 0 || b.err != nil {
			return n, b.err
		}
	}
}

// skipped removes from the n bytes in p those that were there before, and returns how many are left.
func (b *blob) skipped(p []byte, n int) int {
	known := min(b.skip, int64(n))
	b.skip -= known
	return copy(p, p[known:n])
}

func (b *blob) verify() error {
	if got := digest.NewDigest(b.desc.Digest.Algorithm(), b.hash); got != b.desc.Digest {
		return b.store.mismatch(b.op, "the digest of what came is %s", got)
	}
	return io.EOF
}

// resume connects again after a connection broke.
func (b *blob) resume(cause error) error {
	broke := b.store.bodyError(b.answer.silence.ctx, b.ctx, b.op, cause)
	b.answer.giveUp()
	if b.since >= progress {
		b.since = 0
		b.tries.reset()
	}
	if err := b.tries.again(b.ctx, broke); err != nil {
		return err
	}
	return b.connect()
}

// connect asks for what is left of the blob.
func (b *blob) connect() error {
	b.skip = 0
	rq := &request{op: b.op, method: http.MethodGet, path: blobPath(b.desc.Digest), expect: []int{http.StatusOK}}
	switch {
	case isManifest(b.desc.MediaType):
		rq.path = manifestPath(b.desc.Digest.String())
		rq.header = http.Header{"Accept": {b.desc.MediaType}}
		b.skip = b.seen
	case b.seen > 0:
		// With an end: there are registries that do not understand a range without.
		rq.header = http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", b.seen, b.desc.Size-1)}}
		rq.expect = []int{http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable}
	}
	a, err := b.store.send(b.ctx, rq, b.tries)
	if err != nil {
		return err
	}
	if a.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		a.Close()
		rq.header, rq.expect = nil, []int{http.StatusOK}
		if a, err = b.store.send(b.ctx, rq, b.tries); err != nil {
			return err
		}
	}
	if err := b.check(a); err != nil {
		a.Close()
		return err
	}
	b.answer = a
	return nil
}

// check compares what an answer says of itself to what was asked for.
func (b *blob) check(a *answer) error {
	length := b.desc.Size
	if a.StatusCode == http.StatusPartialContent {
		var from, to int64
		if _, err := fmt.Sscanf(a.Header.Get("Content-Range"), "bytes %d-%d/", &from, &to); err != nil || from != b.seen || to != b.desc.Size-1 {
			return b.store.mismatch(b.op, "the registry sends another part than the one from %d to %d", b.seen, b.desc.Size-1)
		}
		length -= b.seen
	} else {
		b.skip = b.seen
	}
	if a.ContentLength >= 0 && a.ContentLength != length {
		return b.store.mismatch(b.op, "the registry has %d bytes, not %d", a.ContentLength, length)
	}
	return nil
}

// Close implements io.Closer.
func (b *blob) Close() error {
	if b.err == nil {
		b.err = fmt.Errorf("%s: %s: read after close", b.store.Repository(), b.op)
	}
	b.answer.giveUp()
	return nil
}
