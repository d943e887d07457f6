package provider_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"imgcrypt/internal/testprovider"
	"imgcrypt/keys"
	"imgcrypt/keys/provider"
)

// spy is a provider that notes its parameters, and answers as it was told.
type spy struct {
	mu     sync.Mutex
	params [][]byte
	out    []byte
	err    error
}

func (s *spy) note(params [][]byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.params = params
	return s.out, s.err
}

func (s *spy) Wrap(_ context.Context, params [][]byte, _ []byte) ([]byte, error) {
	return s.note(params)
}

func (s *spy) Unwrap(_ context.Context, params [][]byte, _ []byte) ([]byte, error) {
	return s.note(params)
}

// The provider sees its own parameters, whatever the client sends.
func TestServerSelectsParameters(t *testing.T) {
	t.Parallel()
	const (
		wrap   = `{"op":"keywrap","keywrapparams":{"ec":%s,"optsdata":"c2VjcmV0"}}`
		unwrap = `{"op":"keyunwrap","keyunwrapparams":{"dc":%s,"annotation":"c2VjcmV0"}}`
	)
	for _, c := range []struct {
		name, config, want, fails string
	}{
		{"", `null`, "[]", ""},
		{"", `{}`, "[]", ""},
		{"", `{"Parameters":null}`, "[]", ""},
		{"", `{"Parameters":{"mine":["YQ==","Yg=="]}}`, "[a b]", ""},
		{"mine", `{"Parameters":{"mine":["YQ=="],"other":["Yg=="]}}`, "[a]", ""},
		{"mine", `{"Parameters":{"other":["Yg=="]}}`, "[]", ""},
		{"", `{"Parameters":{"mine":["YQ=="],"privkeys":["Yg=="],"privkeys-passwords":["Yg=="],"pubkeys":["Yg=="],"x509s":["Yg=="],` +
			`"gpg-privatekeys":["Yg=="],"pkcs11-yamls":["Yg=="]}}`, "[a]", ""},
		{"", `{"Parameters":{"mine":["YQ=="],"other":["Yg=="]}}`, "", "does not know its name"},
	} {
		for _, form := range []string{wrap, unwrap} {
			s := &spy{out: []byte("x")}
			err := provider.Server{Name: c.name, Provider: s}.Command(t.Context(), strings.NewReader(fmt.Sprintf(form, c.config)), new(bytes.Buffer))
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("%s: %v", c.config, err)
				}
			} else if err != nil || fmt.Sprintf("%s", s.params) != c.want {
				t.Errorf("%s: %s, %v", c.config, s.params, err)
			}
		}
	}
}

func TestServerCommandFails(t *testing.T) {
	t.Parallel()
	const request = `{"op":"keywrap","keywrapparams":{"optsdata":"c2VjcmV0"}}`
	broken := errors.New("broken")
	for _, c := range []struct {
		request string
		spy     *spy
		says    string
	}{
		{"", &spy{}, "malformed"}, {"null", &spy{}, `op ""`}, {"{} {}", &spy{}, "malformed"}, {`{"op":"destroy"}`, &spy{}, `op "destroy"`},
		{`{"op":"keyunwrap"}`, &spy{out: []byte("x")}, "nothing to work on"},
		{strings.Repeat(" ", 16<<20) + "{}", &spy{}, "over 16777216 bytes"},
		{request, &spy{}, "returned nothing"}, {request, &spy{err: broken}, "broken"},
	} {
		var out bytes.Buffer
		err := provider.Server{Provider: c.spy}.Command(t.Context(), strings.NewReader(c.request), &out)
		if err == nil || !strings.Contains(err.Error(), c.says) || out.Len() > 0 || c.spy.err != nil && !errors.Is(err, c.spy.err) {
			t.Errorf("%.50q: %v, %q", c.request, err, &out)
		}
	}
	s := provider.Server{Provider: &spy{out: []byte("x")}}
	if err := s.Command(t.Context(), iotest.ErrReader(broken), new(bytes.Buffer)); !errors.Is(err, broken) {
		t.Errorf("input: %v", err)
	}
	full := writerFunc(func([]byte) (int, error) { return 0, broken })
	if err := s.Command(t.Context(), strings.NewReader(request), full); !errors.Is(err, broken) {
		t.Errorf("output: %v", err)
	}
}

// What a provider's error means arrives at the other end.
func TestServerErrorsArrive(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err         error
		unreachable bool
		says        string
	}{
		{errors.New("not today\nnor tomorrow: 100% é"), false, "refused: not today; nor tomorrow: 100% é"},
		{fmt.Errorf("the vault: %w", keys.ErrUnreachable), true, "gRPC status UNAVAILABLE: the vault: cannot be asked"},
	} {
		s := at(t, serve(t, provider.Server{Provider: &spy{err: c.err}}), provider.Config{IdleTimeout: time.Millisecond})
		_, err := unwrap(t, s, "p", packetOf(t, "", "secret"))
		if err == nil || !strings.Contains(err.Error(), c.says) || errors.Is(err, keys.ErrUnreachable) != c.unreachable {
			t.Errorf("%v", err)
		}
	}
}

// slow is a provider that waits for its context.
type slow struct{ ended chan error }

func (s slow) Wrap(ctx context.Context, _ [][]byte, _ []byte) ([]byte, error) {
	<-ctx.Done()
	s.ended <- ctx.Err()
	return nil, ctx.Err()
}

func (s slow) Unwrap(ctx context.Context, params [][]byte, packet []byte) ([]byte, error) {
	return s.Wrap(ctx, params, packet)
}

// A provider learns that nobody waits for it any more.
func TestServerStopsWork(t *testing.T) {
	t.Parallel()
	p := slow{ended: make(chan error, 1)}
	s := at(t, serve(t, provider.Server{Provider: p}), provider.Config{Timeout: 300 * time.Millisecond, IdleTimeout: time.Millisecond})
	if _, err := unwrap(t, s, "p", packetOf(t, "", "secret")); !errors.Is(err, keys.ErrUnreachable) {
		t.Errorf("%v", err)
	}
	select {
	case <-p.ended:
	case <-time.After(10 * time.Second):
		t.Error("it works on")
	}
}

// What is not gRPC is told so.
func TestServerForOthers(t *testing.T) {
	t.Parallel()
	h := provider.Server{Provider: testprovider.Vault{}}
	for _, edit := range []func(*http.Request){
		func(r *http.Request) { r.ProtoMajor = 1 },
		func(r *http.Request) { r.Method = http.MethodGet },
		func(r *http.Request) { r.Header.Set("Content-Type", "application/json") },
		func(r *http.Request) { r.Header.Set("Content-Type", "application/grpc-web") },
	} {
		r := httptest.NewRequest(http.MethodPost, "/keyprovider.KeyProviderService/WrapKey", strings.NewReader(""))
		r.ProtoMajor = 2
		r.Header.Set("Content-Type", "application/grpc+proto")
		edit(r)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusUnsupportedMediaType {
			t.Errorf("status %d", w.Code)
		}
	}
}

// panics is a provider with a fault of its own.
type panics struct{ testprovider.Vault }

func (panics) Unwrap(context.Context, [][]byte, []byte) ([]byte, error) { panic("a fault") }

// A panic ends one call, not the service, and is in its log.
func TestServerSurvivesPanics(t *testing.T) {
	t.Parallel()
	logged := make(chan string, 10)
	logger := log.New(writerFunc(func(p []byte) (int, error) {
		logged <- string(p)
		return len(p), nil
	}), "", 0)
	s := at(t, serve(t, provider.Server{Provider: panics{}, ErrorLog: logger}), provider.Config{IdleTimeout: time.Millisecond})
	if _, err := unwrap(t, s, "p", packetOf(t, "", "secret")); !errors.Is(err, keys.ErrUnreachable) {
		t.Errorf("%v", err)
	}
	wrap(t, s, "p", "secret")
	select {
	case text := <-logged:
		if !strings.Contains(text, "a fault") {
			t.Errorf("logged %q", text)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing is logged")
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A listener that fails ends the service with its error.
func TestServerWithoutListener(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := (provider.Server{Provider: testprovider.Vault{}}).Serve(t.Context(), l, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v", err)
	}
}
