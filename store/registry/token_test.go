package registry_test

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"imgcrypt/internal/testregistry"
)

// tokens is a registry's token server, and the check of its tokens.
type tokens struct {
	user, password string
	// anonymous says that those without a login may pull.
	anonymous bool
	// strict refuses who asks for more than he may do, instead of giving him less.
	strict bool
	// field is the name under which the token is given, "token" if empty.
	field string

	mu     sync.Mutex
	host   string
	valid  map[string][]string
	issued int
	// left is how many requests a token is good for; 0: any number.
	left int
	used map[string]int
	// asked are the scopes that tokens were asked for.
	asked []string
}

// startTokens runs a registry that wants tokens.
func startTokens(t *testing.T, s *tokens) *testregistry.Registry {
	t.Helper()
	s.valid, s.used = map[string][]string{}, map[string]int{}
	r := testregistry.StartWith(t, func(registry http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/token" {
				s.issue(w, req)
			} else if s.check(w, req) {
				registry.ServeHTTP(w, req)
			}
		})
	})
	s.host = r.Host()
	return r
}

// issue gives a token for what the user may do.
func (s *tokens) issue(w http.ResponseWriter, req *http.Request) {
	user, password, login := req.BasicAuth()
	known := login && user == s.user && password == s.password
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, req.URL.Query()["scope"]...)
	if login && !known || !login && !s.anonymous {
		w.WriteHeader(http.StatusUnauthorized)
		// As careless as can be.
		w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"wrong password ` + password + ` of ` + user + `, ` + req.Header.Get("Authorization") + `"}]}`))
		return
	}
	var granted []string
	for _, scope := range req.URL.Query()["scope"] {
		name, actions, _ := cutLast(scope, ":")
		for _, action := range strings.Split(actions, ",") {
			if known || action == "pull" {
				granted = append(granted, name+":"+action)
			} else if s.strict {
				w.WriteHeader(http.StatusForbidden)
				w.Write([]byte(`{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`))
				return
			}
		}
	}
	token := "secret-" + rand.Text()
	s.valid[token] = granted
	s.issued++
	field := s.field
	if field == "" {
		field = "token"
	}
	_ = json.NewEncoder(w).Encode(map[string]any{field: token, "expires_in": 60})
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	return s[:i], s[i+1:], true
}

// check lets a request through that has a good token.
func (s *tokens) check(w http.ResponseWriter, req *http.Request) bool {
	action := map[string]string{http.MethodGet: "pull", http.MethodHead: "pull", http.MethodDelete: "delete"}[req.Method]
	if action == "" || strings.Contains(req.URL.Path, "/uploads/") {
		action = "push"
	}
	scope := ""
	if repository, _, ok := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/"); ok && repository != "" {
		scope = "repository:" + repository
	}
	token := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")
	s.mu.Lock()
	defer s.mu.Unlock()
	granted, known := s.valid[token]
	s.used[token]++
	if known && (s.left == 0 || s.used[token] <= s.left) && (scope == "" || slices.Contains(granted, scope+":"+action)) {
		return true
	}
	challenge := `Bearer realm="http://` + s.host + `/token",service="test"`
	if scope != "" {
		challenge += `,scope="` + scope + ":" + map[bool]string{true: "pull", false: "pull," + action}[action == "pull"] + `"`
	}
	w.Header().Set("WWW-Authenticate", challenge)
	w.WriteHeader(http.StatusUnauthorized)
	w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"not with ` + token + `"}]}`))
	return false
}

// expire makes all tokens worthless.
func (s *tokens) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.valid)
}

// limit makes every token good for so many requests only.
func (s *tokens) limit(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = n
}

func (s *tokens) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.issued
}

// scopes returns the scopes that were asked for, without the repository.
func (s *tokens) scopes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, scope := range s.asked {
		_, actions, _ := cutLast(scope, ":")
		list = append(list, actions)
	}
	return list
}

// wasAsked says whether a token was asked for with exactly this scope among others.
func (s *tokens) wasAsked(scope string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.asked, scope)
}
