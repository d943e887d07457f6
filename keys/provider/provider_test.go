package provider_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"imgcrypt/internal/testprovider"
	"imgcrypt/keys"
	"imgcrypt/keys/provider"
	"imgcrypt/layer"
)

// No goroutine outlives the tests: connections end when they have been idle.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scheme returns the scheme with a configuration file, and times fit for tests.
func scheme(file string) keys.Scheme {
	return provider.Scheme(provider.Config{File: file, Timeout: 20 * time.Second, IdleTimeout: 50 * time.Millisecond})
}

func wrap(t testing.TB, s keys.Scheme, arg, secret string) layer.Packet {
	t.Helper()
	r, err := s.Recipient(t.Context(), arg, new(keys.Files))
	if err != nil {
		t.Fatal(err)
	}
	p, err := r.Wrap(t.Context(), []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func unwrap(t testing.TB, s keys.Scheme, arg string, packets ...layer.Packet) (string, error) {
	t.Helper()
	id, err := s.Named(arg)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := id.Unwrap(t.Context(), packets)
	return string(secret), err
}

// kind is one way of asking a provider.
type kind struct {
	name    string
	options testprovider.Options
}

func kinds() []kind {
	return []kind{
		{"command", testprovider.Options{}},
		{"service", testprovider.Options{Transport: testprovider.GRPC}},
		{"unix socket", testprovider.Options{Transport: testprovider.GRPCUnix}},
		{"service with TLS", testprovider.Options{Transport: testprovider.GRPC, TLS: true}},
		{"service with client certificate", testprovider.Options{Transport: testprovider.GRPC, ClientCert: true}},
		{"unix socket with TLS", testprovider.Options{Transport: testprovider.GRPCUnix, TLS: true}},
		{"grpc-go", testprovider.Options{Transport: testprovider.GRPCGo}},
		{"grpc-go with TLS", testprovider.Options{Transport: testprovider.GRPCGo, TLS: true}},
		{"grpc-go with client certificate", testprovider.Options{Transport: testprovider.GRPCGo, ClientCert: true}},
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			p := testprovider.New(t, k.options)
			s := scheme(p.File)
			packet := wrap(t, s, "vault:tenant=7:a", "secret")
			if packet.Scheme != "provider.vault" || bytes.Contains(packet.Data, []byte("secret")) {
				t.Errorf("packet %s: %q", packet.Scheme, packet.Data)
			}
			if got, err := unwrap(t, s, "vault:tenant=7:a", packet); err != nil || got != "secret" {
				t.Errorf("opened: %q, %v", got, err)
			}
			want := []string{
				`{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"vault":["dGVuYW50PTc6YQ=="]},"DecryptConfig":{"Parameters":{}}},` +
					`"optsdata":"c2VjcmV0"},"keyunwrapparams":{"dc":null,"annotation":null}}`,
				`{"op":"keyunwrap","keywrapparams":{"ec":null,"optsdata":null},"keyunwrapparams":{"dc":{"Parameters":{"vault":["dGVuYW50PTc6YQ=="]}},"annotation":`,
			}
			got := p.Requests(t)
			if len(got) != 2 || got[0] != want[0] || !strings.HasPrefix(got[1], want[1]) {
				t.Errorf("requests: %q", got)
			}
			// What it refuses is not what it cannot do.
			for _, arg := range []string{"vault:" + testprovider.Denied, "vault"} {
				other := layer.Packet{Scheme: "provider.vault", Data: []byte("another's")}
				_, err := unwrap(t, s, arg, other)
				var e *provider.Error
				if !errors.As(err, &e) || e.Provider != "vault" || e.Op != "keyunwrap" || errors.Is(err, keys.ErrUnreachable) ||
					!strings.HasPrefix(err.Error(), "provider vault: ") || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: %v", arg, err)
				}
			}
		})
	}
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}
