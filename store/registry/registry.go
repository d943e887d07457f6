// Package registry is one repository of a container registry as a store of blobs and
// names: docker://HOST/REPO.
//
// Names, credentials, tokens and redirects are go-containerregistry's. What it lacks
// is here: blobs are streamed in both directions without ever being held, on disk or
// in memory; a download that breaks goes on from where it stopped; an upload whose
// digest is not known before its end is one PATCH in chunks, as Docker's own client
// does it; and what a registry answers becomes errors that say what is wrong,
// without anything that is secret.
//
// # Uploads that break
//
// A reader can be read once. So [Store.Put] repeats an upload by itself only while
// nothing was read from the reader, or if that is an [io.Seeker]. Otherwise it makes
// the pause that is due and returns an error that wraps [imgcrypt.ErrInterrupted],
// and the caller starts the blob again with a new reader. Who encrypts has to take a
// new key and a new nonce for that: the registry, and whoever listens, may have kept
// the beginning of the first attempt, and two texts under the same key and nonce
// give each other away.
package registry

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

// Options are the options of [Open]. The zero value is right for a registry on the
// Internet, and for one on this machine.
type Options struct {
	// Keychain finds the credentials. nil: [authn.DefaultKeychain], which reads the
	// file of `docker login` and asks its helpers, or where there is no such file, that
	// of `podman login`.
	Keychain authn.Keychain
	// PlainHTTP speaks http with the registry, never https. Zero: https; a loopback
	// registry is spoken to by http if it does not speak https.
	PlainHTTP bool
	// Insecure accepts any certificate. Zero: the registry's has to be valid.
	Insecure bool
	// CAFile is a PEM file with authorities to trust beside the system's. Empty: none.
	CAFile string
	// UserAgent goes in front of what go-containerregistry says of itself. Empty:
	// nothing does.
	UserAgent string
	// Retry says how often and how fast to try again. Zero: see there.
	Retry RetryOptions
	// Silence is how long the registry may neither send nor take a byte before the
	// connection counts as broken; ten times as long to answer to a whole blob or
	// manifest. Zero: a minute.
	Silence time.Duration
	// Notify is told before each pause after which something is tried again. It may
	// be called by several goroutines at once. nil: nobody is told.
	Notify func(Event)
	// Transport replaces the HTTP transport, and with it Insecure and CAFile. nil: a
	// transport of the store's own, with the proxies of the environment as
	// [http.ProxyFromEnvironment] has them.
	Transport http.RoundTripper
}

// RetryOptions say how often and how fast a request is made again after a broken
// connection, a 429 or a 5xx.
type RetryOptions struct {
	// Attempts is how often something is tried at all, without anything being gained
	// by it. Zero: 6.
	Attempts int
	// Wait is the first pause; each is twice as long as the one before, give or take a
	// quarter. Zero: half a second.
	Wait time.Duration
	// MaxWait is the longest pause. A registry that asks for a longer one by
	// Retry-After is not waited for. Zero: a minute.
	MaxWait time.Duration
}

// Event is something that went wrong and will be tried again.
type Event struct {
	// Err is what went wrong.
	Err error
	// Attempt counts the failed ones, from 1.
	Attempt int
	// Wait is the pause until the next one.
	Wait time.Duration
}

// Store is one repository. It implements [imgcrypt.Store] and [imgcrypt.Tags], is
// safe for concurrent use and has to be closed.
type Store struct {
	repo    name.Repository
	options Options
	base    *guard
	// connected is set once the registry has answered anything. From then on a
	// registry that cannot be reached may be one that starts again.
	connected atomic.Bool
	// impatient is set once the registry has refused to be asked before a blob is sent,
	// or has said nothing to that.
	impatient atomic.Bool
	// interrupted counts the uploads that broke since the last one that did not.
	interrupted atomic.Int64
	closed      atomic.Bool
	// logins is held by who logs in: the others wait for the result.
	logins chan struct{}

	mu       sync.Mutex
	sessions map[scope]*session
	secrets  map[string]struct{}
	// last is the manifest that was put last: the one that is most likely tagged next.
	last struct {
		desc ocispec.Descriptor
		text []byte
	}
}

var (
	_ imgcrypt.Store = (*Store)(nil)
	_ imgcrypt.Tags  = (*Store)(nil)
)

// Open returns the store of a repository, "HOST/REPO"; without a host it is one of
// Docker Hub. The registry is not asked before something is wanted of it.
func Open(repository string, o Options) (*Store, error) {
	var names []name.Option
	host, _, _ := strings.Cut(repository, "/")
	if o.PlainHTTP || loopback(host) {
		names = append(names, name.Insecure)
	}
	repo, err := name.NewRepository(repository, names...)
	if err == nil && strings.Contains(repository, "://") {
		err = errors.New("not a valid name")
	}
	if err != nil {
		return nil, fmt.Errorf("repository %.300q: %w", repository, cleanName(err))
	}
	base := o.Transport
	if base == nil {
		if base, err = newTransport(o); err != nil {
			return nil, err
		}
	}
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	if o.Silence <= 0 {
		o.Silence = time.Minute
	}
	o.Retry = o.Retry.withDefaults()
	return &Store{
		repo: repo, options: o,
		base:     newGuard(base, repo.RegistryStr(), o.PlainHTTP),
		logins:   make(chan struct{}, 1),
		sessions: map[scope]*session{},
		secrets:  map[string]struct{}{},
	}, nil
}

// Repository returns the repository's full name, "HOST/REPO".
func (s *Store) Repository() string { return s.repo.Name() }

// Close ends the use of the store. Blobs that are open remain so; connections that
// nobody uses are closed.
func (s *Store) Close() error {
	s.closed.Store(true)
	if c, ok := s.base.inner.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
	return nil
}

// Parse splits a reference, "HOST/REPO[:TAG][@DIGEST]", into what [Open] takes and
// what [Store.Resolve] takes. Of a tag and a digest the digest counts. Without either
// ref is empty.
func Parse(reference string) (repository, ref string, err error) {
	parsed, err := name.ParseReference(reference, name.WithDefaultTag(""))
	if err != nil {
		return "", "", fmt.Errorf("reference %.300q: %w", reference, cleanName(err))
	}
	return parsed.Context().Name(), parsed.Identifier(), nil
}

// cleanName is why go-containerregistry does not like a name, without the name.
func cleanName(err error) error {
	var bad *name.ErrBadName
	if errors.As(err, &bad) {
		return errors.New("not a valid name")
	}
	return err
}

// loopback says whether a host, which may have a port, is this machine.
func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
