package encryption

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

// chunk is the size, in bytes, of the pieces in which blobs are read and written:
// each is a round trip to containerd.
const chunk = 1 << 20

// NewStore returns a containerd content store as an [imgcrypt.Store]. Its Put sets
// the labels by which containerd's garbage collection finds a blob's refs, also on a
// blob that is there already; other labels are left alone.
func NewStore(cs content.Store) imgcrypt.Store { return &store{cs: cs} }

type store struct {
	cs content.Store
}

// notFoundError makes what containerd does not have a not-found error of both worlds.
type notFoundError struct {
	err error
}

func (e *notFoundError) Error() string   { return e.err.Error() }
func (e *notFoundError) Unwrap() []error { return []error{imgcrypt.ErrNotFound, e.err} }

// notFound makes err wrap imgcrypt.ErrNotFound if it says that something is missing.
func notFound(err error) error {
	if errdefs.IsNotFound(err) {
		return &notFoundError{err: err}
	}
	return err
}

// Open implements [imgcrypt.Store].
func (s *store) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	ra, err := s.cs.ReaderAt(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("read blob: %w", notFound(err))
	}
	size := ra.Size()
	return &blobReader{
		Reader: bufio.NewReaderSize(&exactReader{r: content.NewReader(ra), left: size}, int(min(size+1, chunk))),
		Closer: ra,
	}, nil
}

type blobReader struct {
	*bufio.Reader
	io.Closer
}

// exactReader makes an early end an error. A reader over a content.ReaderAt ends
// wherever that does, which need not be where it said that it would.
type exactReader struct {
	r    io.Reader
	left int64
}

func (e *exactReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Put implements [imgcrypt.Store]. r is read to its end also if the blob is there
// already: what it would report counts.
func (s *store) Put(ctx context.Context, want ocispec.Descriptor, r io.Reader, refs ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	if want.Digest != "" {
		if err := want.Digest.Validate(); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("write blob: %w", err)
		}
	}
	labels := gcLabels(refs)
	got, existed, err := s.ingest(ctx, want, r, labels)
	if err == nil && existed {
		// A store without labels, such as containerd's local one by itself, has no
		// garbage collection either that would go by them.
		if err = s.addLabels(ctx, got.Digest, labels); errdefs.IsFailedPrecondition(err) {
			err = nil
		}
	}
	if err != nil {
		// Over a connection, a context that ends looks like any lost connection.
		if ended := ctx.Err(); ended != nil && !errors.Is(err, ended) {
			err = fmt.Errorf("%w: %w", ended, err)
		}
		return ocispec.Descriptor{}, fmt.Errorf("write blob: %w", err)
	}
	got.MediaType = want.MediaType
	return got, nil
}

// ingest writes one blob and returns its digest and size, and whether it was there
// before. A failure leaves nothing behind.
func (s *store) ingest(ctx context.Context, want ocispec.Descriptor, r io.Reader, labels map[string]string) (got ocispec.Descriptor, existed bool, err error) {
	// Nobody else has this ref, so a busy one need not be waited for, and what is
	// left under it is ours to remove.
	ref := "imgcrypt-" + rand.Text()
	w, err := s.cs.Writer(ctx, content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{
		MediaType: want.MediaType,
		Digest:    want.Digest,
		Size:      want.Size,
	}))
	if errdefs.IsAlreadyExists(err) {
		return want, true, verify(ctx, want, r)
	}
	if err != nil {
		return got, false, s.abort(ctx, ref, err)
	}
	got, err = fill(ctx, w, want, r, labels)
	if errdefs.IsAlreadyExists(err) {
		return got, true, nil
	}
	if err != nil {
		w.Close()
		return got, false, s.abort(ctx, ref, err)
	}
	return got, false, nil
}

// fill writes what r yields to w and commits it. It returns the digest and the size
// also if the error is that the blob exists.
func fill(ctx context.Context, w content.Writer, want ocispec.Descriptor, r io.Reader, labels map[string]string) (ocispec.Descriptor, error) {
	got := ocispec.Descriptor{Digest: want.Digest, Size: want.Size}
	present, err := presentBytes(w, want)
	if err != nil {
		return got, err
	}
	if present > 0 {
		// Another namespace has the blob, and containerd copies it from there.
		err = verify(ctx, want, r)
	} else {
		got.Size, err = pump(ctx, w, want, r)
	}
	if err != nil {
		return got, err
	}
	err = w.Commit(ctx, got.Size, want.Digest, content.WithLabels(labels))
	switch {
	case errdefs.IsFailedPrecondition(err) && want.Digest != "":
		// The size was found right before, so this is the digest.
		return got, fmt.Errorf("%w: %w", imgcrypt.ErrMismatch, err)
	case err != nil && !errdefs.IsAlreadyExists(err):
		return got, err
	case want.Digest == "" && got.Size == 0:
		// A writer that was given no byte may not know a digest yet.
		got.Digest = digest.FromBytes(nil)
	case want.Digest == "":
		got.Digest = w.Digest()
	}
	return got, err
}

// presentBytes returns how many bytes w begins with that nobody wrote to it.
func presentBytes(w content.Writer, want ocispec.Descriptor) (int64, error) {
	if want.Digest == "" {
		return 0, nil
	}
	status, err := w.Status()
	return status.Offset, err
}

// verify reads r to its end and checks what it yields.
func verify(ctx context.Context, want ocispec.Descriptor, r io.Reader) error {
	digester := want.Digest.Algorithm().Digester()
	if _, err := pump(ctx, digester.Hash(), want, r); err != nil {
		return err
	}
	if got := digester.Digest(); got != want.Digest {
		return fmt.Errorf("%w: its digest is %s, not %s", imgcrypt.ErrMismatch, got, want.Digest)
	}
	return nil
}

// pump writes what r yields to w in large pieces and returns how many bytes that
// were. If want has a digest they must be as many as it says.
//
// Not io.ReadFull nor anything that uses it: that makes io.ErrUnexpectedEOF of a
// short end, which is what a broken connection reports too.
func pump(ctx context.Context, w io.Writer, want ocispec.Descriptor, r io.Reader) (int64, error) {
	size := int64(chunk)
	if want.Digest != "" {
		size = min(size-1, max(want.Size, 0)) + 1
	}
	buf := make([]byte, size)
	var total int64
	for more := true; more; {
		n, err := readPiece(r, buf)
		if err != nil && err != io.EOF {
			return total, err
		}
		more = err == nil
		if err := ctx.Err(); err != nil {
			return total, err
		}
		total += int64(n)
		if want.Digest != "" && total > want.Size {
			return total, fmt.Errorf("%w: it is longer than %d bytes", imgcrypt.ErrMismatch, want.Size)
		}
		if n == 0 {
			continue
		}
		if _, err := w.Write(buf[:n]); errors.Is(err, io.EOF) {
			// What gRPC says when the other side is gone. Nobody must take it for an end.
			return total, fmt.Errorf("%w: %v", io.ErrUnexpectedEOF, err)
		} else if err != nil {
			return total, err
		}
	}
	if want.Digest != "" && total != want.Size {
		return total, fmt.Errorf("%w: it has %d bytes, not %d", imgcrypt.ErrMismatch, total, want.Size)
	}
	return total, nil
}

// readPiece reads until buf is full or r returns an error, which is then returned
// as it is.
func readPiece(r io.Reader, buf []byte) (int, error) {
	var n, idle int
	for n < len(buf) {
		m, err := r.Read(buf[n:])
		n += m
		if err != nil {
			return n, err
		}
		if m > 0 {
			idle = 0
		} else if idle++; idle == 100 {
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}

// abortAttempts is how often abort tries, with a pause that doubles from a
// millisecond between them.
const abortAttempts = 9

// abort removes what was written under ref and returns err, which is why.
func (s *store) abort(ctx context.Context, ref string, err error) error {
	// The context may be what ended the writing.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	left := s.cs.Abort(ctx, ref)
	for i := 1; i < abortAttempts && left != nil && !errdefs.IsNotFound(left) && !errdefs.IsUnavailable(left); i++ {
		// A containerd on the other side of a connection may still be closing the
		// writer, and note when it did in the directory that Abort removes.
		time.Sleep(time.Millisecond << (i - 1))
		left = s.cs.Abort(ctx, ref)
	}
	if left != nil && !errdefs.IsNotFound(left) {
		return fmt.Errorf("%w (what was written could not be removed: %w)", err, left)
	}
	return err
}

// addLabels sets labels on a blob that is there.
func (s *store) addLabels(ctx context.Context, dgst digest.Digest, labels map[string]string) error {
	info, err := s.cs.Info(ctx, dgst)
	if err != nil {
		return err
	}
	var paths []string
	for key, value := range labels {
		if info.Labels[key] != value {
			paths = append(paths, "labels."+key)
		}
	}
	if len(paths) == 0 {
		return nil
	}
	_, err = s.cs.Update(ctx, content.Info{Digest: dgst, Labels: labels}, paths...)
	return err
}

// gcLabels returns the labels that containerd itself would give to a blob with these
// children. Nothing else is set on new blobs: "containerd.io/uncompressed" is set by
// whoever unpacks a layer, and "containerd.io/distribution.source.*" says that a
// registry has the blob, which it does not.
func gcLabels(refs []ocispec.Descriptor) map[string]string {
	labels := map[string]string{}
	count := map[string]int{}
	for _, ref := range refs {
		// Without annotations, one of which would make it a referrer.
		for _, key := range images.ChildGCLabels(ocispec.Descriptor{MediaType: ref.MediaType}) {
			i := count[key]
			count[key]++
			if i > 0 || strings.HasSuffix(key, ".") {
				key += strconv.Itoa(i)
			}
			labels[key] = ref.Digest.String()
		}
	}
	return labels
}
