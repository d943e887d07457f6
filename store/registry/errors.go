package registry

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"imgcrypt"
)

// What an [Error] may be about, beside [imgcrypt.ErrNotFound], [imgcrypt.ErrMismatch]
// and [imgcrypt.ErrManifest].
var (
	// ErrUnauthorized: 401. There are no credentials, or the registry or its token
	// server does not take them.
	ErrUnauthorized = errors.New("login needed")
	// ErrForbidden: 403. The login is good, but not for this.
	ErrForbidden = errors.New("access denied")
	// ErrRateLimited: 429, more often than it is tried again.
	ErrRateLimited = errors.New("too many requests")
	// ErrUnavailable: a 5xx, more often than it is tried again.
	ErrUnavailable = errors.New("registry does not work at the moment")
	// ErrUnsupported: the registry does not do this at all.
	ErrUnsupported = errors.New("not supported by the registry")
	// ErrRejected: any other answer that was not expected.
	ErrRejected = errors.New("rejected by the registry")
	// ErrUnreachable: no such host, or nobody is there.
	ErrUnreachable = errors.New("registry not reachable")
	// ErrConnection: a connection broke, more often than it is tried again.
	ErrConnection = errors.New("connection broke")
	// ErrTLS: the registry's certificate, or its TLS, is not good.
	ErrTLS = errors.New("no secure connection")
	// ErrPlainHTTP: the registry, which is not on this machine, speaks http.
	ErrPlainHTTP = errors.New("registry speaks plain http, not https")
	// ErrSchema1: the name is that of a Docker schema 1 manifest. It goes with
	// [imgcrypt.ErrManifest].
	ErrSchema1 = errors.New("docker schema 1 manifest, which is obsolete and cannot be encrypted")
	// ErrManifestType: the name is that of no image, nor of an index of images. It
	// goes with [imgcrypt.ErrManifest].
	ErrManifestType = errors.New("not an image")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("the store is closed")
)

// Error is what a registry answered, or why it could not be asked. Its text has
// nothing secret in it and is one line, whatever the registry wrote.
type Error struct {
	// Repository is the full name, "HOST/REPO".
	Repository string
	// Op is what was to be done: "get blob sha256:…".
	Op string
	// Kind is what errors.Is finds: one of the package's errors,
	// [imgcrypt.ErrNotFound] or [imgcrypt.ErrMismatch].
	Kind error
	// Reason says more than Kind, or is empty.
	Reason string
	// Status is that of the answer, 0 where there was none.
	Status int
	// Code and Message are the registry's own, where it gave some: "DENIED".
	Code, Message string
	// After is how long the registry wants to be left alone.
	After time.Duration

	temporary bool
	cause     error
}

func (e *Error) Error() string {
	reason := e.Reason
	if reason == "" {
		reason = e.Kind.Error()
	}
	var details []string
	if e.Status != 0 {
		details = append(details, strings.TrimSpace(fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status))))
	}
	switch {
	case e.Code != "" && e.Message != "":
		details = append(details, e.Code+": "+e.Message)
	case e.Code != "" || e.Message != "":
		details = append(details, e.Code+e.Message)
	}
	if e.After > 0 {
		details = append(details, "try again in "+e.After.String())
	}
	text := e.Repository + ": " + e.Op + ": " + reason
	if len(details) > 0 {
		text += " (" + strings.Join(details, ", ") + ")"
	}
	return text
}

// Unwrap returns Kind and what else the error is. Errors of package net/http and of
// go-containerregistry, which know more than is fit to print, are not among it.
func (e *Error) Unwrap() []error {
	if e.cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.cause}
}

// interruptedError says that an upload broke, and may succeed with a new reader.
type interruptedError struct{ err error }

func (e *interruptedError) Error() string { return e.err.Error() + " (upload interrupted)" }

func (e *interruptedError) Unwrap() []error { return []error{imgcrypt.ErrInterrupted, e.err} }

// manifestError is the error for a name of something that is no image.
func (s *Store) manifestError(op string, kind error, reason string) error {
	return &Error{Repository: s.Repository(), Op: op, Kind: kind, Reason: reason, cause: imgcrypt.ErrManifest}
}

// mismatch is the error for what does not have the digest or the size that it should.
func (s *Store) mismatch(op, format string, args ...any) *Error {
	reason := imgcrypt.ErrMismatch.Error() + ": " + fmt.Sprintf(format, args...)
	return &Error{Repository: s.Repository(), Op: op, Kind: imgcrypt.ErrMismatch, Reason: reason}
}
