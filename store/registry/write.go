package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Put implements [imgcrypt.Store]. What has the media type of a manifest becomes one
// under its digest; anything else is streamed, and neither held in memory nor on disk.
//
// A blob of a known digest that the registry has is not sent again, but r is read to
// its end and verified all the same: to save that, ask [Store.Has] first.
//
// A broken connection, a 429 or a 5xx is waited out as long as nothing was read from
// r, or r is an [io.Seeker] that can go back. Otherwise the error wraps
// [imgcrypt.ErrInterrupted], after a pause. An upload that fails is taken back, as
// far as the registry can be reached. When Put returns r is not read any more. refs
// are not needed: a registry reads them from the manifest.
func (s *Store) Put(ctx context.Context, want ocispec.Descriptor, r io.Reader, refs ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	op := "put a blob"
	if want.Digest != "" {
		op = "put " + want.Digest.String()
		if err := s.valid(op, want); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	src := s.source(op, want, r)
	got, err := s.put(ctx, src)
	src.repanic()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: want.MediaType, Digest: got.Digest, Size: got.Size}, nil
}

func (s *Store) put(ctx context.Context, src *source) (ocispec.Descriptor, error) {
	if isManifest(src.want.MediaType) {
		return s.putManifest(ctx, src)
	}
	if src.want.Digest != "" {
		there, err := s.has(ctx, push, src.want)
		switch {
		case err != nil && (!answered(err) || errors.Is(err, ErrUnauthorized)):
			return src.want, err
		case there:
			return src.want, s.readThrough(ctx, src)
		}
	}
	return s.upload(ctx, src)
}

// readThrough reads a source to its end, which verifies it.
func (s *Store) readThrough(ctx context.Context, src *source) error {
	for buf := make([]byte, 128<<10); ; {
		switch _, err := src.take(buf); {
		case err == io.EOF:
			return nil
		case err != nil:
			return s.sourceError(ctx, src.op, err)
		case ctx.Err() != nil:
			return s.contextError(ctx, src.op)
		}
	}
}

// answered says whether an error is an answer of the registry that would be the same
// the next time.
func answered(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status != 0 && !e.temporary
}

// upload sends a blob, several times if it has to and can.
func (s *Store) upload(ctx context.Context, src *source) (ocispec.Descriptor, error) {
	t := s.tries()
	for {
		got, err := s.uploadOnce(ctx, src, t)
		if err == nil {
			s.interrupted.Store(0)
			return got, nil
		}
		if failure := src.failure(); failure != nil {
			return got, s.sourceError(ctx, src.op, failure)
		}
		after, ok := temporary(err)
		if !ok {
			return got, err
		}
		if !src.rewind() {
			// The caller starts again at once, so the pause is here. Uploads that break
			// together are to wait together, not one after the other.
			failed := min(s.interrupted.Add(1), 4)
			if err := s.pause(ctx, err, int(failed), after); err != nil {
				return got, err
			}
			return got, &interruptedError{err}
		}
		if err := t.again(ctx, err); err != nil {
			return got, err
		}
	}
}

// sourceError is the error for a reader that failed, or did not yield what was wanted.
func (s *Store) sourceError(ctx context.Context, op string, failure error) error {
	var own *Error
	switch ended := ctx.Err(); {
	case ended != nil && failure == ended:
		return s.contextError(ctx, op)
	case ended != nil && !errors.Is(failure, ended):
		return fmt.Errorf("%w: %w", s.contextError(ctx, op), failure)
	case errors.As(failure, &own) && own.Repository == s.Repository() && own.Op == op:
		return failure
	}
	return fmt.Errorf("%s: %s: %w", s.Repository(), op, failure)
}

func (s *Store) uploadOnce(ctx context.Context, src *source, t *tries) (_ ocispec.Descriptor, err error) {
	location, _, err := s.begin(ctx, src.op, nil, t)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	unsure := false
	defer func() {
		if err != nil {
			s.abandon(ctx, location, unsure)
		}
	}()
	next, err := s.stream(ctx, location, src)
	if err != nil {
		var e *Error
		unsure = !errors.As(err, &e) || e.Status == 0
		return ocispec.Descriptor{}, err
	}
	location = next
	got, whole := src.complete()
	if !whole {
		if failure := src.failure(); failure != nil {
			return got, failure
		}
		return got, &Error{Repository: s.Repository(), Op: src.op, Kind: ErrRejected, Reason: "the registry did not wait for the end of the blob"}
	}
	return got, s.commit(ctx, location, src.op, got, t)
}

// begin starts an upload, and returns where it goes on; or, if it is a mount that the
// registry does, that there is nothing left to do.
func (s *Store) begin(ctx context.Context, op string, m *mount, t *tries) (location *url.URL, done bool, err error) {
	rq := &request{
		op: op, access: push, method: http.MethodPost, path: "blobs/uploads/",
		header: http.Header{"Content-Type": {"application/octet-stream"}}, expect: []int{http.StatusAccepted},
	}
	if m != nil {
		rq.also = m.from.Scope(transport.PullScope)
		rq.query = url.Values{"mount": {m.digest.String()}, "from": {m.from.RepositoryStr()}}
		rq.expect = append(rq.expect, http.StatusCreated)
	}
	a, err := s.send(ctx, rq, t)
	if err != nil {
		return nil, false, err
	}
	defer a.Close()
	if a.StatusCode == http.StatusCreated {
		return nil, true, nil
	}
	location, err = s.location(op, a, nil)
	return location, false, err
}

// location returns where an upload goes on. A registry that says nothing after a
// PATCH goes on where it was.
func (s *Store) location(op string, a *answer, before *url.URL) (*url.URL, error) {
	location, err := a.Location()
	if errors.Is(err, http.ErrNoLocation) && before != nil {
		return before, nil
	}
	if err != nil || location.Host == "" {
		return nil, &Error{Repository: s.Repository(), Op: op, Kind: ErrRejected, Status: a.StatusCode, Reason: "the registry does not say where the upload goes on"}
	}
	return location, nil
}

// stream sends the whole blob in one PATCH, and returns where the upload goes on. It
// has no Content-Range, as one whose length is known at its end only cannot have one.
func (s *Store) stream(ctx context.Context, location *url.URL, src *source) (*url.URL, error) {
	from, err := s.session(ctx, src.op, scope{access: push})
	if err != nil {
		return nil, err
	}
	// A context that ends lets the request end in order, if that is soon.
	silence := newPatience(context.WithoutCancel(ctx), s.options.Silence)
	defer context.AfterFunc(ctx, func() { time.AfterFunc(ending, silence.end) })()
	req, err := http.NewRequestWithContext(silence.ctx, http.MethodPatch, location.String(), src.body(ctx, silence))
	if err != nil {
		silence.end()
		return nil, &Error{Repository: s.Repository(), Op: src.op, Kind: ErrRejected, Reason: "the registry does not say where the upload goes on"}
	}
	// In chunks also if the length is known: only so it can end early in order.
	req.ContentLength = -1
	req.Header.Set("Content-Type", "application/octet-stream")
	asked := !s.impatient.Load()
	var told atomic.Bool
	if asked {
		req.Header.Set("Expect", "100-continue")
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{Got100Continue: func() { told.Store(true) }}))
	}
	silence.start()
	resp, err := from.client.Do(req)
	// Whatever came of it, from here on r is the caller's again.
	src.end()
	silence.stop()
	if asked && err == nil && !told.Load() && src.wasRead() {
		s.impatient.Store(true)
	}
	if err != nil {
		defer silence.end()
		return nil, s.transportError(silence.ctx, ctx, src.op, from, err)
	}
	a := s.answer(resp, silence)
	defer a.Close()
	if resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusNoContent {
		return nil, s.uploadRefusal(src, from, resp)
	}
	return s.location(src.op, a, location)
}

// uploadRefusal is the error for a blob that was not taken.
func (s *Store) uploadRefusal(src *source, from *session, resp *http.Response) error {
	err := s.refusal(src.op, from, resp)
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	switch {
	case resp.StatusCode == http.StatusExpectationFailed && s.impatient.CompareAndSwap(false, true):
		e.temporary = true
	case from.stale(err) && !src.renewed:
		src.renewed = true
		s.drop(from)
		e.temporary = true
	}
	return lost(e)
}

// lost makes an upload that the registry does not know any more, or knows as
// another one, an error that starting again may mend.
func lost(e *Error) *Error {
	switch code := transport.ErrorCode(e.Code); {
	case e.Status == http.StatusNotFound, e.Status == http.StatusRequestedRangeNotSatisfiable:
		e.Kind, e.Reason, e.temporary = ErrRejected, "the registry has lost the upload", true
	case e.Status == http.StatusBadRequest && code == transport.DigestInvalidErrorCode:
		e.Kind, e.Reason, e.temporary = ErrRejected, "other bytes reached the registry than were sent", true
	case e.Status == http.StatusBadRequest && slices.Contains([]transport.ErrorCode{
		transport.BlobUploadInvalidErrorCode, transport.BlobUploadUnknownErrorCode, transport.SizeInvalidErrorCode,
	}, code):
		e.temporary = true
	}
	return e
}

// commit ends an upload, under the digest of what was sent.
func (s *Store) commit(ctx context.Context, location *url.URL, op string, got ocispec.Descriptor, t *tries) error {
	// The location may have a query of its own.
	query := location.Query()
	query.Set("digest", got.Digest.String())
	target := *location
	target.RawQuery = query.Encode()
	rq := &request{op: op, access: push, method: http.MethodPut, location: &target, expect: []int{http.StatusCreated}, slow: true}
	for renewed := false; ; {
		a, from, err := s.once(ctx, rq)
		if err == nil {
			defer a.Close()
			return s.checkDigest(op, a, got.Digest)
		}
		if !renewed && from.stale(err) {
			renewed = true
			s.drop(from)
			continue
		}
		var e *Error
		if !errors.As(err, &e) {
			return err
		}
		status := e.Status
		if e = lost(e); !e.temporary {
			return e
		}
		// It may be the answer that was lost, not the request.
		if there, err := s.has(ctx, push, got); err == nil && there {
			return nil
		}
		if status >= 400 && status < 500 && !temporaryStatus(status) {
			return e
		}
		if err := t.again(ctx, e); err != nil {
			return err
		}
	}
}

// ending is how long a request may take to end in order.
const ending = 2 * time.Second

// abandoning is how long to try to take back an upload.
const abandoning = 5 * time.Second

// abandon takes back an upload. A registry that cannot be told forgets it some day by
// itself. unsure says that it may still be at work on what was sent, and only then
// be able to remove it: so it is told until it does not know the upload any more.
func (s *Store) abandon(ctx context.Context, location *url.URL, unsure bool) {
	// The context may be what ended the upload.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandoning)
	defer cancel()
	rq := &request{
		op: "take back an upload", access: push, method: http.MethodDelete, location: location,
		expect: []int{http.StatusNoContent, http.StatusAccepted, http.StatusOK},
	}
	for wait := 20 * time.Millisecond; ; wait *= 2 {
		a, _, err := s.once(ctx, rq)
		if err == nil {
			_ = a.Close()
		}
		if !unsure || forgotten(err) || wait > 320*time.Millisecond {
			return
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// forgotten says whether the answer to a deletion is that there is nothing to delete,
// or that uploads cannot be deleted.
func forgotten(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	return e.Code == string(transport.BlobUploadUnknownErrorCode) || e.Status == http.StatusBadRequest || e.Status == http.StatusMethodNotAllowed
}
