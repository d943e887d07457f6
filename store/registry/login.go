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

func (a access) scope() string {
	return [...]string{pull: transport.PullScope, push: transport.PushScope, remove: transport.DeleteScope}[a]
}

// session is a login at the registry.
type session struct {
	access access
	client *http.Client
	// anonymous says that there were no credentials.
	anonymous bool
	// worked says that something was done in it.
	worked atomic.Bool
}

// session returns a login that is good for want. More than is needed is not asked for:
// some registries refuse who asks to push where he may only pull.
func (s *Store) session(ctx context.Context, op string, want access) (*session, error) {
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

func (s *Store) loggedIn(want access) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a := levels - 1; a >= want; a-- {
		if s.sessions[a] != nil {
			return s.sessions[a]
		}
	}
	return nil
}

// drop makes the next request log in anew, unless another one has done so already.
func (s *Store) drop(old *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[old.access] == old {
		s.sessions[old.access] = nil
	}
}

func (s *Store) login(ctx context.Context, want access) (*session, error) {
	const op = "log in"
	auth, err := authn.Resolve(ctx, s.options.Keychain, s.repo)
	if err != nil {
		return nil, s.credentialsError(err)
	}
	made := &session{access: want, anonymous: auth == authn.Anonymous}
	if !made.anonymous {
		auth = &recorder{auth: auth, store: s}
	}
	silence := newPatience(ctx, s.options.Silence)
	defer silence.end()
	silence.start()
	inner := transport.NewUserAgent(s.base, s.options.UserAgent)
	wrapped, err := transport.NewWithContext(silence.ctx, s.repo.Registry, auth, inner, []string{s.repo.Scope(want.scope())})
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
