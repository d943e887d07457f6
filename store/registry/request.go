package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"

	"github.com/opencontainers/go-digest"
)

// request is one that can be made again and again.
type request struct {
	// op is what it is for: "get blob sha256:…".
	op     string
	access access
	// also is a scope that is needed beside that, in another repository.
	also   string
	method string
	// path is below the repository's; location is used instead where it is set.
	path     string
	query    url.Values
	location *url.URL
	header   http.Header
	body     []byte
	// expect are the statuses that are a success.
	expect []int
	// slow says that the registry may take its time to answer.
	slow bool
}

// slowly is how much longer a registry may take to answer a slow request.
const slowly = 10

// url returns where the request goes. The scheme is whatever the login found out.
func (s *Store) url(rq *request) *url.URL {
	if rq.location != nil {
		return rq.location
	}
	return &url.URL{
		Scheme:   s.repo.Scheme(),
		Host:     s.repo.RegistryStr(),
		Path:     "/v2/" + s.repo.RepositoryStr() + "/" + rq.path,
		RawQuery: rq.query.Encode(),
	}
}

// send makes a request until it succeeds, as often as t has it. The caller closes
// the answer.
func (s *Store) send(ctx context.Context, rq *request, t *tries) (*answer, error) {
	renewed := false
	for {
		a, from, err := s.once(ctx, rq)
		if err == nil {
			return a, nil
		}
		if !renewed && from.stale(err) {
			renewed = true
			s.drop(from)
			continue
		}
		if err := t.again(ctx, err); err != nil {
			return nil, err
		}
	}
}

// stale says whether a request was refused in a way that a new login may mend:
// go-containerregistry renews tokens, but not what it gets them with, nor what is
// refused without a challenge.
func (x *session) stale(err error) bool {
	if x == nil || !errors.Is(err, ErrUnauthorized) {
		return false
	}
	var e *Error
	return x.worked.Load() || errors.As(err, &e) && errors.Is(e.cause, errUnchallenged)
}

// errUnchallenged marks a 401 that does not say what would be accepted.
var errUnchallenged = errors.New("no challenge")

// once makes a request once. It returns the session that it was made in, unless there
// was none.
func (s *Store) once(ctx context.Context, rq *request) (*answer, *session, error) {
	from, err := s.session(ctx, rq.op, scope{rq.access, rq.also})
	if err != nil {
		return nil, nil, err
	}
	limit := s.options.Silence
	if rq.slow {
		limit *= slowly
	}
	silence := newPatience(ctx, limit)
	req, err := s.build(silence.ctx, rq)
	if err != nil {
		silence.end()
		return nil, nil, err
	}
	silence.start()
	resp, err := from.client.Do(req)
	silence.stop()
	if err != nil {
		defer silence.end()
		return nil, from, s.transportError(silence.ctx, ctx, rq.op, from, err)
	}
	a := s.answer(resp, silence)
	if !slices.Contains(rq.expect, resp.StatusCode) {
		defer a.Close()
		return nil, from, s.refusal(rq.op, from, resp)
	}
	from.worked.Store(true)
	return a, from, nil
}

func (s *Store) build(ctx context.Context, rq *request) (*http.Request, error) {
	var body io.Reader
	if rq.body != nil {
		body = bytes.NewReader(rq.body)
	}
	req, err := http.NewRequestWithContext(ctx, rq.method, s.url(rq).String(), body)
	if err != nil {
		return nil, &Error{Repository: s.Repository(), Op: rq.op, Kind: ErrRejected, Reason: "not a valid request"}
	}
	for key, values := range rq.header {
		req.Header[key] = values
	}
	return req, nil
}

// refusal is the error for an answer with an unexpected status.
func (s *Store) refusal(op string, from *session, resp *http.Response) error {
	err := s.statusError(op, from, resp)
	var e *Error
	if resp.StatusCode == http.StatusUnauthorized && resp.Header.Get("WWW-Authenticate") == "" && errors.As(err, &e) {
		e.cause = errUnchallenged
	}
	return err
}

// answer is what a registry answered. Its body is given up when the registry is silent.
type answer struct {
	*http.Response
	silence *patience
}

func (s *Store) answer(resp *http.Response, silence *patience) *answer {
	s.connected.Store(true)
	silence.limit = s.options.Silence
	return &answer{Response: resp, silence: silence}
}

// Read reads the body. An early end is io.ErrUnexpectedEOF or any other error but io.EOF.
func (a *answer) Read(p []byte) (int, error) {
	a.silence.start()
	n, err := a.Body.Read(p)
	a.silence.stop()
	return n, err
}

// giveUp ends the answer, and the connection with it if there is more to come.
func (a *answer) giveUp() {
	_ = a.Body.Close()
	a.silence.end()
}

// Close ends the answer. A short rest of it is read, so that the connection can be used again.
func (a *answer) Close() error {
	defer a.silence.end()
	if a.Request.Method == http.MethodHead || a.ContentLength <= 0 || a.ContentLength > drained {
		return a.Body.Close()
	}
	_, _ = io.CopyN(io.Discard, a, drained)
	return a.Body.Close()
}

// drained is up to how many bytes of an answer are read that nobody wants.
const drained = 16 << 10

// checkDigest compares the digest that a registry says it has stored, if it says so.
func (s *Store) checkDigest(op string, a *answer, want digest.Digest) error {
	got := a.Header.Get("Docker-Content-Digest")
	if got == "" || got == want.String() {
		return nil
	}
	if parsed, err := digest.Parse(got); err == nil && parsed.Algorithm() != want.Algorithm() {
		// It may prefer another algorithm.
		return nil
	}
	return s.mismatch(op, "the registry stored %s, not %s", s.printable(got, 150, nil), want)
}

// blobPath returns the path of a blob, and manifestPath that of a manifest by digest or tag.
func blobPath(d digest.Digest) string      { return "blobs/" + d.String() }
func manifestPath(reference string) string { return "manifests/" + reference }
