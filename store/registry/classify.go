package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"imgcrypt"
	"imgcrypt/internal/oneline"
)

// statusError is the error for an answer that was not expected. It reads the body.
func (s *Store) statusError(op string, from *session, resp *http.Response) error {
	err := transport.CheckError(resp)
	var answer *transport.Error
	if !errors.As(err, &answer) {
		// The answer broke off; what it was is known all the same.
		answer = &transport.Error{StatusCode: resp.StatusCode, Request: resp.Request}
	}
	e := s.answerError(op, from, answer)
	e.After = retryAfter(resp.Header, time.Now())
	return e
}

// answerError makes of an answer, as go-containerregistry has it, one of this
// package's errors.
func (s *Store) answerError(op string, from *session, answer *transport.Error) *Error {
	e := &Error{Repository: s.Repository(), Op: op, Status: answer.StatusCode, temporary: temporaryStatus(answer.StatusCode)}
	if len(answer.Errors) > 0 {
		e.Code = s.printable(string(answer.Errors[0].Code), 60, answer.Request)
		e.Message = s.printable(answer.Errors[0].Message, 200, answer.Request)
	}
	if e.Code == string(transport.TooManyRequestsErrorCode) {
		// Some registries have another status for it.
		e.Kind, e.temporary = ErrRateLimited, true
		return e
	}
	switch status := answer.StatusCode; {
	case status == http.StatusUnauthorized:
		e.Kind = ErrUnauthorized
		e.Reason = "the registry does not accept the credentials"
		if from.anonymous {
			e.Reason = "the registry wants a login, and there are no credentials for it"
		}
	case status == http.StatusForbidden:
		e.Kind = ErrForbidden
		if from.anonymous {
			e.Reason = "access denied, and there are no credentials for the registry"
		}
	case status == http.StatusNotFound:
		e.Kind = imgcrypt.ErrNotFound
	case status == http.StatusMethodNotAllowed, e.Code == string(transport.UnsupportedErrorCode):
		e.Kind = ErrUnsupported
	case status == http.StatusTooManyRequests:
		e.Kind = ErrRateLimited
	case status >= 500:
		e.Kind = ErrUnavailable
	default:
		e.Kind = ErrRejected
	}
	return e
}

// transportError makes of the failure of a request one of this package's errors.
// silence is the request's context and ctx the one that it was made from.
func (s *Store) transportError(silence, ctx context.Context, op string, from *session, err error) error {
	if ctx.Err() != nil {
		return s.contextError(ctx, op)
	}
	e := &Error{Repository: s.Repository(), Op: op}
	if errors.Is(context.Cause(silence), errSilent) {
		e.Kind, e.temporary = ErrConnection, true
		e.Reason = fmt.Sprintf("nothing was heard of the registry for %s", s.options.Silence)
		return e
	}
	if s.tlsError(e, err) {
		return e
	}
	var answer *transport.Error
	if errors.As(err, &answer) {
		// Only a login's answers come as errors: the registry's to the first request,
		// or the token server's.
		return s.answerError("log in", from, answer)
	}
	if s.unreachable(e, err) {
		return e
	}
	var failed *url.Error
	sent := errors.As(err, &failed)
	switch {
	case errors.Is(err, errConsumed):
		e.Kind, e.Reason, e.temporary = ErrConnection, "the registry wanted a new login in the middle of a blob", true
	case errors.Is(err, errRedirects):
		e.Kind, e.Reason = ErrRejected, "the registry redirects without an end"
	case errors.Is(err, errDowngrade):
		e.Kind, e.Reason = ErrTLS, "the registry redirects from https to plain http"
	case broken(err) != nil:
		e.Kind, e.temporary, e.cause = ErrConnection, true, broken(err)
		e.Reason = ErrConnection.Error() + ": " + e.cause.Error()
	case sent:
		e.Kind, e.temporary = ErrConnection, true
		e.Reason = ErrConnection.Error() + ": " + s.printable(innermost(err), 200, nil)
	default:
		// The answer to the login was not to be understood.
		e.Kind = ErrUnauthorized
		e.Reason = "the login failed: " + s.printable(innermost(err), 200, nil)
	}
	return e
}

// bodyError is the error for a body that ended before its end.
func (s *Store) bodyError(silence, ctx context.Context, op string, err error) error {
	return s.transportError(silence, ctx, op, nil, &url.Error{Op: http.MethodGet, Err: err})
}

// tlsError recognises what is wrong with a certificate, or with TLS.
func (s *Store) tlsError(e *Error, err error) bool {
	var (
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		alert     tls.AlertError
		record    tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &authority):
		e.Reason = "the registry's certificate is signed by an unknown authority"
	case errors.As(err, &host):
		e.Reason = "the registry's certificate is for another host"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		e.Reason = "the registry's certificate has expired or is not yet valid"
	case errors.As(err, &invalid), errors.As(err, &verify):
		e.Reason = "the registry's certificate is not valid"
	case errors.As(err, &alert):
		e.Reason = "the registry ended the TLS handshake: " + alert.Error()
	case errors.Is(err, http.ErrSchemeMismatch) && !s.base.plain:
		e.Kind = ErrPlainHTTP
		return true
	case errors.As(err, &record) && !s.base.plain:
		e.Reason = "the registry does not speak TLS"
	default:
		return false
	}
	e.Kind = ErrTLS
	return true
}

// unreachable recognises that nobody was spoken to. That is only temporary if the
// registry has been there before.
func (s *Store) unreachable(e *Error, err error) bool {
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		e.Reason = "no such host"
	case errors.As(err, &dns):
		e.Reason = "the name of the host cannot be looked up"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Reason, e.cause = "connection refused", syscall.ECONNREFUSED
	case errors.As(err, &op) && op.Op == "dial":
		e.Reason = "the host does not answer"
	default:
		return false
	}
	e.Kind, e.temporary = ErrUnreachable, s.connected.Load()
	if errors.As(err, &dns) && !dns.IsNotFound {
		e.temporary = true
	}
	return true
}

// broken returns the known way in which a connection broke, or nil.
func broken(err error) error {
	for _, way := range []error{syscall.ECONNRESET, syscall.EPIPE, io.ErrUnexpectedEOF, net.ErrClosed} {
		if errors.Is(err, way) {
			return way
		}
	}
	var timeout net.Error
	switch {
	case errors.Is(err, io.EOF):
		// An end of the connection, which nobody must take for one of a blob.
		return io.ErrUnexpectedEOF
	case errors.As(err, &timeout) && timeout.Timeout():
		return errSilent
	}
	return nil
}

// innermost is the text of an error without the URLs that package net/http puts around it.
func innermost(err error) string {
	for {
		var outer *url.Error
		if !errors.As(err, &outer) {
			return err.Error()
		}
		err = outer.Err
	}
}

// contextError says that the caller ended what he wanted.
func (s *Store) contextError(ctx context.Context, op string) error {
	err := ctx.Err()
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, err) {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return fmt.Errorf("%s: %s: %w", s.Repository(), op, err)
}

// credentialsError says that the keychain failed.
func (s *Store) credentialsError(err error) error {
	return &Error{
		Repository: s.Repository(), Op: "log in", Kind: ErrUnauthorized,
		Reason: "the credentials cannot be read: " + s.printable(innermost(err), 300, nil),
	}
}

// address matches URLs: scheme, user and password, host and path, query. The second
// and the fourth may grant access.
var address = regexp.MustCompile(`([a-z]+://)([^/@\s"]*@)?([^\s"?]*)(\?[^\s"]*)?`)

// printable returns what others wrote as a piece of a line, of at most so many
// characters. Only the first line counts: what follows may be the answer of a token
// server. A text with a secret in it is dropped: one that was given to the
// registry, or that request carried.
func (s *Store) printable(text string, most int, request *http.Request) string {
	text, _, _ = strings.Cut(strings.TrimSpace(text), "\n")
	text = oneline.Of(address.ReplaceAllString(text, "$1$3"))
	if request != nil {
		if _, token, _ := strings.Cut(request.Header.Get("Authorization"), " "); token != "" && strings.Contains(text, token) {
			return ""
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for secret := range s.secrets {
		if strings.Contains(text, secret) {
			return ""
		}
	}
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most]) + "…"
	}
	return text
}
