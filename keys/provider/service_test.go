package provider_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"imgcrypt/internal/testprovider"
	"imgcrypt/keys"
	"imgcrypt/keys/provider"
	"imgcrypt/layer"
)

// counter is a listener that counts connections, and can end them all.
type counter struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
	open  atomic.Int64
}

type counted struct {
	net.Conn
	once sync.Once
	c    *counter
}

func (c *counted) Close() error {
	c.once.Do(func() { c.c.open.Add(-1) })
	return c.Conn.Close()
}

func (c *counter) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c.open.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	conn = &counted{Conn: conn, c: c}
	c.conns = append(c.conns, conn)
	return conn, nil
}

func (c *counter) accepted() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.conns)
}

func (c *counter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
}

func listen(t testing.TB, address string) *counter {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return &counter{Listener: l}
}

// start serves a vault until the test ends or stop is called.
func start(t testing.TB, l net.Listener) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- provider.Server{Provider: testprovider.Vault{}}.Serve(ctx, l, nil) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// at returns a scheme whose provider "p" is called at a target.
func at(t testing.TB, target string, c provider.Config) keys.Scheme {
	t.Helper()
	p := &testprovider.Provider{Name: "p"}
	p.Entry.GRPC = target
	c.File = testprovider.WriteConfig(t, p)
	if c.Timeout == 0 {
		c.Timeout = 20 * time.Second
	}
	return provider.Scheme(c)
}

func packetOf(t testing.TB, seed, secret string) layer.Packet {
	t.Helper()
	data, err := testprovider.Vault{Seed: seed}.Wrap(t.Context(), nil, []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return layer.Packet{Scheme: "provider.p", Data: data}
}

// All layers, by whatever identity, share one connection.
func TestOneConnection(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	start(t, l)
	s := at(t, l.Addr().String(), provider.Config{IdleTimeout: time.Second})
	packet := packetOf(t, "", "secret")
	var wg sync.WaitGroup
	for range 300 { // more than an HTTP/2 connection takes at the same time
		wg.Go(func() {
			if got, err := unwrap(t, s, "p", packet); err != nil || got != "secret" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	wg.Wait()
	if n := l.accepted(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestIdleConnectionIsClosed(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	start(t, l)
	s := at(t, l.Addr().String(), provider.Config{IdleTimeout: 100 * time.Millisecond})
	packet := packetOf(t, "", "secret")
	for n := 1; n <= 2; n++ {
		for range 2 {
			if _, err := unwrap(t, s, "p", packet); err != nil {
				t.Fatal(err)
			}
		}
		if got := l.accepted(); got != n {
			t.Fatalf("%d connections, want %d", got, n)
		}
		for deadline := time.Now().Add(10 * time.Second); l.open.Load() > 0; {
			if time.Now().After(deadline) {
				t.Fatal("it stays open")
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// A service that was restarted, with or without a goodbye, is called again.
func TestServiceRestarts(t *testing.T) {
	t.Parallel()
	for name, abrupt := range map[string]bool{"goodbye": false, "no goodbye": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := listen(t, "127.0.0.1:0")
			stop := start(t, l)
			address := l.Addr().String()
			s := at(t, address, provider.Config{IdleTimeout: time.Second})
			packet := packetOf(t, "", "secret")
			for range 5 {
				var wg sync.WaitGroup
				for range 8 {
					wg.Go(func() {
						if _, err := unwrap(t, s, "p", packet); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				if abrupt {
					l.cut()
					continue
				}
				stop()
				l = listen(t, address)
				stop = start(t, l)
			}
		})
	}
}

// A service that takes connections and then says nothing costs no more than the deadline,
// however many wait for it.
func TestServiceIsMute(t *testing.T) {
	t.Parallel()
	for name, tls := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := listen(t, "127.0.0.1:0")
			defer l.Close()
			p := &testprovider.Provider{Name: "p"}
			p.Entry.GRPC = l.Addr().String()
			if tls {
				p.Entry.TLS = &testprovider.EntryTLS{InsecureSkipVerify: true}
			}
			s := provider.Scheme(provider.Config{File: testprovider.WriteConfig(t, p), Timeout: 500 * time.Millisecond, IdleTimeout: time.Millisecond})
			begin := time.Now()
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					_, err := unwrap(t, s, "p", packetOf(t, "", "secret"))
					if !errors.Is(err, keys.ErrUnreachable) || !strings.Contains(err.Error(), "provider p: cannot be asked: no answer within 500ms") {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// server runs a handler, by HTTP/2 without TLS if h2, else by HTTP/1.
func server(t testing.TB, h2 bool, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	if h2 {
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
	}
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// answer writes an answer by gRPC, whatever it is.
func answer(status, text string, body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/grpc")
		w.Write(body)
		if status != "" {
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", status)
			w.Header().Set(http.TrailerPrefix+"Grpc-Message", text)
		}
	}
}

func TestServicesThatAnswerOddly(t *testing.T) {
	t.Parallel()
	good := provider.Frame([]byte(`{"keyunwrapresults":{"optsdata":"c2VjcmV0"}}`))
	compressed := append([]byte{1}, good[1:]...)
	for _, c := range []struct {
		name    string
		h1      bool
		handler http.HandlerFunc
		refused bool
		says    string // empty means that it opens
	}{
		{name: "well", handler: answer("0", "", good)},
		{name: "with another field", handler: answer("0", "", func() []byte {
			b := append(provider.Frame([]byte(`{"keyunwrapresults":{"optsdata":"c2VjcmV0"}}`)), 0x10, 0x07)
			b[4] += 2
			return b
		}())},
		{name: "by HTTP/1", h1: true, handler: answer("0", "", good), says: "cannot be asked: 127.0.0.1:"},
		{name: "with a web page", handler: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, says: "its answer has no gRPC status"},
		{name: "not found", handler: http.NotFound, says: "HTTP status 404, so it is no gRPC service"},
		{name: "without a status", handler: answer("", "", good), says: "its answer has no gRPC status"},
		{name: "with no number", handler: answer("fine", "", good), says: "its answer has no gRPC status"},
		{name: "with nothing", handler: answer("0", "", nil), says: "it is not one gRPC message"},
		{name: "with a short message", handler: answer("0", "", good[:len(good)-1]), says: "it is not one gRPC message"},
		{name: "with two messages", handler: answer("0", "", append(good[:len(good):len(good)], good...)), says: "it is not one gRPC message"},
		{name: "compressed", handler: answer("0", "", compressed), says: "it is compressed"},
		{name: "with no protobuf", handler: answer("0", "", []byte{0, 0, 0, 0, 2, 0xff, 0xff}), says: "it is not one gRPC message"},
		{name: "unavailable", handler: answer("14", "try later", nil), says: "gRPC status UNAVAILABLE: try later"},
		{name: "unimplemented", handler: answer("12", "", nil), says: "gRPC status UNIMPLEMENTED"},
		{name: "unauthenticated", handler: answer("16", "who are you?", nil), says: "refused: gRPC status UNAUTHENTICATED: who are you?", refused: true},
		{name: "unknown", handler: answer("2", "no%20such%0Akey%C3%A9 100%", nil), says: "refused: no%20such", refused: true},
		{name: "unknown, encoded", handler: answer("2", "no such%0Akey %C3%A9", nil), says: "refused: no such; key é", refused: true},
		{name: "unknown, silent", handler: answer("2", "", nil), says: "refused: gRPC status UNKNOWN", refused: true},
		{name: "with a status of its own", handler: answer("99", "x", nil), says: "refused: gRPC status 99: x", refused: true},
		{name: "negative", handler: answer("-1", "x", nil), says: "refused: gRPC status -1: x", refused: true},
		{name: "verbosely", handler: answer("7", strings.Repeat("x", 5000), nil), says: "xxx … xxx", refused: true},
		{name: "with too many headers", handler: answer("7", strings.Repeat("x", 500_000), nil), says: "cannot be asked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := at(t, server(t, !c.h1, c.handler), provider.Config{IdleTimeout: time.Millisecond})
			begin := time.Now()
			got, err := unwrap(t, s, "p", packetOf(t, "", "secret"))
			if time.Since(begin) > 10*time.Second {
				t.Error("it took until the deadline")
			}
			if c.says == "" {
				if err != nil || got != "secret" {
					t.Errorf("%q, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 600 ||
				errors.Is(err, keys.ErrUnreachable) == c.refused {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// What grpc-go understands is understood alike.
func TestTargets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, c := range []struct{ target, network, address, authority string }{
		{"localhost:50051", "tcp", "localhost:50051", "localhost:50051"},
		{"kms.test:443", "tcp", "kms.test:443", "kms.test:443"},
		{":50051", "tcp", ":50051", "localhost:50051"},
		{"127.0.0.1:50051", "tcp", "127.0.0.1:50051", "127.0.0.1:50051"},
		{"[::1]:50051", "tcp", "[::1]:50051", "[::1]:50051"},
		{"passthrough:///kms.test:1", "tcp", "kms.test:1", "kms.test:1"},
		{"dns:///kms.test:1", "tcp", "kms.test:1", "kms.test:1"},
		{"dns:kms.test:1", "tcp", "kms.test:1", "kms.test:1"},
		{"dns:///kms.test", "tcp", "kms.test:443", "kms.test:443"},
		{"dns:///[::1]", "tcp", "[::1]:443", "[::1]:443"},
		{"unix:///run/kms.sock", "unix", "/run/kms.sock", "localhost"},
		{"unix:/run/kms.sock", "unix", "/run/kms.sock", "localhost"},
		{"unix:kms.sock", "unix", "kms.sock", "localhost"},
		{"unix-abstract:kms", "unix", "@kms", "localhost"},
	} {
		network, address, authority, err := provider.ParseTarget(c.target)
		if err != nil || network != c.network || address != c.address || authority != c.authority {
			t.Errorf("%s: %s %s %s, %v", c.target, network, address, authority, err)
		}
	}
	for _, target := range []string{"", "localhost", "http://localhost:1", "unix://run/kms.sock", "unix:", "dns://8.8.8.8/kms.test:1", "dns:///", "host:", "a:b:c", "%"} {
		if _, _, _, err := provider.ParseTarget(target); err == nil {
			t.Errorf("%q is taken", target)
		}
	}
	// Sockets whose names grpc-go takes, too.
	for _, target := range []string{"unix:" + filepath.Join(dir, "s"), "unix-abstract:imgcrypt-test-" + filepath.Base(dir)} {
		network, address, _, err := provider.ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		start(t, l)
		if got, err := unwrap(t, at(t, target, provider.Config{}), "p", packetOf(t, "", "secret")); err != nil || got != "secret" {
			t.Errorf("%s: %q, %v", target, got, err)
		}
	}
}

// The deadline goes with the call, so that a service need not work in vain.
func TestDeadlineIsSent(t *testing.T) {
	t.Parallel()
	sent := make(chan string, 1)
	address := server(t, true, func(w http.ResponseWriter, r *http.Request) {
		sent <- r.Header.Get("Grpc-Timeout") + " " + r.Host + " " + r.URL.Path + " " + r.Header.Get("Te")
		answer("5", "", nil)(w, r)
	})
	_, err := unwrap(t, at(t, address, provider.Config{IdleTimeout: time.Millisecond}), "p", packetOf(t, "", "secret"))
	if err == nil {
		t.Error("it opens")
	}
	got := <-sent
	if !strings.HasPrefix(got, "2") || !strings.HasSuffix(got, "m "+address+" /keyprovider.KeyProviderService/UnWrapKey trailers") {
		t.Errorf("sent %s", got)
	}
}

func TestTimeouts(t *testing.T) {
	t.Parallel()
	for d, text := range map[time.Duration]string{
		-time.Second: "0n", 0: "0n", time.Microsecond: "1m", time.Second: "1000m", 20 * time.Hour: "72000000m",
		28 * time.Hour: "100800S", 1<<63 - 1: "99999999S",
	} {
		if got := provider.FormatTimeout(d); got != text {
			t.Errorf("%v: %s", d, got)
		}
	}
	for text, d := range map[string]time.Duration{
		"0n": 0, "7u": 7 * time.Microsecond, "1000m": time.Second, "5S": 5 * time.Second, "2M": 2 * time.Minute, "1H": time.Hour, "99999999S": 99999999 * time.Second,
	} {
		if got, ok := provider.ParseTimeout(text); !ok || got != d {
			t.Errorf("%s: %v, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "5", "S", "-1S", "5s", "1.5S", "999999999S", "99999999H"} {
		if got, ok := provider.ParseTimeout(text); ok {
			t.Errorf("%s: %v", text, got)
		}
	}
}
