package registry

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// access is what a session is allowed to do; each level includes those before it.
type access int

const (
	pull access = iota
	push
	remove
	levels
)

func (a access) String() string {
	return [...]string{pull: transport.PullScope, push: transport.PushScope, remove: transport.DeleteScope}[a]
}

// scope is what a session is for.
type scope struct {
	access access
	// also is a scope in another repository, or empty.
	also string
}

// session is a login at the registry.
type session struct {
	scope  scope
	client *http.Client
	// anonymous says that there were no credentials.
	anonymous bool
	// worked says that something was done in it.
	worked atomic.Bool
}

// session returns a login that is good for want. More than is needed is not asked for:
// some registries refuse who asks to push where he may only pull.
func (s *Store) session(ctx context.Context, op string, want scope) (*session, error) {
	if s.closed.Load() {
		return nil, &Error{Repository: s.Repository(), Op: op, Kind: ErrClosed}
	}
	if ctx.Err() != nil {
		return nil, s.contextError(ctx, op)
	}
	if found := s.loggedIn(want); found != nil {
		return found, nil
	}
	select {
	case s.logins <- struct{}{}:
		defer func() { <-s.logins }()
	case <-ctx.Done():
		return nil, s.contextError(ctx, op)
	}
	if found := s.loggedIn(want); found != nil {
		return found, nil
	}
	made, err := s.login(ctx, want)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[want] = made
	return made, nil
}

// loggedIn returns a session that is good for want, or nil.
func (s *Store) loggedIn(want scope) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; want.access < levels; want.access++ {
		if found := s.sessions[want]; found != nil {
			return found
		}
	}
	return nil
}

// drop makes the next request log in anew, unless another one has done so already.
func (s *Store) drop(old *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[old.scope] == old {
		delete(s.sessions, old.scope)
	}
}

func (s *Store) login(ctx context.Context, want scope) (*session, error) {
	const op = "log in"
	auth, err := authn.Resolve(ctx, s.options.Keychain, s.repo)
	if err != nil {
		return nil, s.credentialsError(err)
	}
	made := &session{scope: want, anonymous: auth == authn.Anonymous}
	if !made.anonymous {
		auth = &recorder{auth: auth, store: s}
	}
	silence := newPatience(ctx, s.options.Silence)
	defer silence.end()
	silence.start()
	inner := transport.NewUserAgent(s.base, s.options.UserAgent)
	scopes := []string{s.repo.Scope(want.access.String())}
	if want.also != "" {
		scopes = append(scopes, want.also)
	}
	wrapped, err := transport.NewWithContext(silence.ctx, s.repo.Registry, auth, inner, scopes)
	if err != nil {
		return nil, s.transportError(silence.ctx, ctx, op, made, err)
	}
	s.connected.Store(true)
	made.client = &http.Client{Transport: wrapped, CheckRedirect: checkRedirect}
	return made, nil
}

// Why a redirect is not followed.
var (
	errRedirects = errors.New("too many redirects")
	errDowngrade = errors.New("redirected to plain http")
)

// checkRedirect follows as many redirects as package net/http does, but not into the open.
func checkRedirect(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) >= 10:
		return errRedirects
	case req.URL.Scheme == "https" || req.URL.Host == via[0].URL.Host:
		// The registry itself is spoken to as was agreed whatever it says.
		return nil
	case via[len(via)-1].URL.Scheme == "https":
		return errDowngrade
	}
	return nil
}

// recorder notes the secrets that it hands out, so that no message of a registry that
// quotes one is passed on.
type recorder struct {
	auth  authn.Authenticator
	store *Store
}

func (r *recorder) Authorization() (*authn.AuthConfig, error) {
	return r.AuthorizationContext(context.Background())
}

func (r *recorder) AuthorizationContext(ctx context.Context) (*authn.AuthConfig, error) {
	config, err := authn.Authorization(ctx, r.auth)
	if err != nil {
		return nil, err
	}
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	for _, secret := range []string{config.Password, config.Auth, config.IdentityToken, config.RegistryToken} {
		if secret != "" {
			r.store.secrets[secret] = struct{}{}
		}
	}
	return config, nil
}
