package provider_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imgcrypt/internal/testprovider"
	"imgcrypt/keys"
	"imgcrypt/keys/provider"
	"imgcrypt/layer"
)

// Every fault ends in time, in an error of its own.
func TestFaults(t *testing.T) {
	t.Parallel()
	const (
		command = testprovider.Command
		service = testprovider.GRPC
		socket  = testprovider.GRPCUnix
		grpcGo  = testprovider.GRPCGo
	)
	cases := []struct {
		fault       testprovider.Fault
		transports  []testprovider.Transport
		unreachable bool
		says        string
	}{
		{testprovider.Hang, []testprovider.Transport{command, service, socket, grpcGo}, true, "cannot be asked: no answer within 1s"},
		{testprovider.Flood, []testprovider.Transport{command, service, socket, grpcGo}, true, "cannot be asked: its answer is over 1572864 bytes"},
		{testprovider.Fail, []testprovider.Transport{command}, false, "/testprovider exited with status 1: the vault is sealed"},
		{testprovider.Fail, []testprovider.Transport{service, socket}, false, "refused: gRPC status PERMISSION_DENIED: the vault is sealed"},
		{testprovider.Fail, []testprovider.Transport{grpcGo}, false, "refused: the vault is sealed"},
		{testprovider.NoJSON, []testprovider.Transport{command, service, socket, grpcGo}, true, "its answer is not the JSON of the protocol"},
		{testprovider.NoTLS, []testprovider.Transport{service, socket, grpcGo}, true, ": TLS handshake: "},
		{testprovider.Absent, []testprovider.Transport{command}, true, "no-such-program: no such file or directory"},
		{testprovider.Absent, []testprovider.Transport{service, grpcGo}, true, "connection refused"},
		{testprovider.Absent, []testprovider.Transport{socket}, true, "no such file or directory"},
		{testprovider.Crash, []testprovider.Transport{command}, true, "signal: killed"},
		{testprovider.Crash, []testprovider.Transport{service, socket}, true, "stream error"},
	}
	for _, c := range cases {
		for _, transport := range c.transports {
			t.Run(fmt.Sprintf("%s by %d", c.fault, transport), func(t *testing.T) {
				t.Parallel()
				p := testprovider.New(t, testprovider.Options{Transport: transport, Fault: c.fault})
				timeout := 20 * time.Second
				if c.fault == testprovider.Hang {
					timeout = time.Second
				}
				s := provider.Scheme(provider.Config{File: p.File, Timeout: timeout, IdleTimeout: time.Millisecond})
				r, err := s.Recipient(t.Context(), "vault", new(keys.Files))
				if err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				_, err = r.Wrap(t.Context(), []byte("secret"))
				check := func(op string) {
					t.Helper()
					var e *provider.Error
					if !errors.As(err, &e) || e.Provider != "vault" || e.Op != op {
						t.Fatalf("%s: %v", op, err)
					}
					if errors.Is(err, keys.ErrUnreachable) != c.unreachable || !strings.Contains(err.Error(), c.says) ||
						!strings.HasPrefix(err.Error(), "provider vault: ") || strings.Contains(err.Error(), "\n") {
						t.Errorf("%s: %v", op, err)
					}
					if took := time.Since(begin); took > timeout+5*time.Second {
						t.Errorf("%s took %v", op, took)
					}
				}
				check("keywrap")
				begin = time.Now()
				_, err = unwrap(t, s, "vault", layer.Packet{Scheme: "provider.vault", Data: []byte("packet")})
				check("keyunwrap")
			})
		}
	}
}

func TestSlow(t *testing.T) {
	t.Parallel()
	for _, transport := range []testprovider.Transport{testprovider.Command, testprovider.GRPC, testprovider.GRPCGo} {
		p := testprovider.New(t, testprovider.Options{Transport: transport, Fault: testprovider.Slow})
		s := scheme(p.File)
		if got, err := unwrap(t, s, "vault", wrap(t, s, "vault", "secret")); err != nil || got != "secret" {
			t.Errorf("%d: %q, %v", transport, got, err)
		}
	}
}

// tlsCase is a service and a configuration that do not fit.
type tlsCase struct {
	name string
	edit func(t *testing.T, e *testprovider.Entry)
	says string
}

func TestTLSThatDoesNotFit(t *testing.T) {
	t.Parallel()
	cases := []tlsCase{
		{"wrong authority", func(t *testing.T, e *testprovider.Entry) {
			e.TLS.RootCAFile = testprovider.NewAuthority(t).File
		}, "unknown authority"},
		{"system's authorities", func(_ *testing.T, e *testprovider.Entry) { e.TLS.RootCAFile = "" }, "unknown authority"},
		{"wrong name", func(_ *testing.T, e *testprovider.Entry) { e.TLS.ServerName = "else.test" }, "not else.test"},
		{"name of the address", func(_ *testing.T, e *testprovider.Entry) { e.TLS.ServerName = "" }, "127.0.0.1"},
		{"no client certificate", func(_ *testing.T, e *testprovider.Entry) { e.TLS.CertFile, e.TLS.KeyFile = "", "" }, "certificate required"},
		{"a stranger's client certificate", func(t *testing.T, e *testprovider.Entry) {
			e.TLS.CertFile, e.TLS.KeyFile = testprovider.NewAuthority(t).Pair(t, "client")
		}, "tls: "},
		{"half a client certificate", func(_ *testing.T, e *testprovider.Entry) { e.TLS.KeyFile = "" }, "cert-file and key-file belong together"},
		{"no such authority file", func(_ *testing.T, e *testprovider.Entry) { e.TLS.RootCAFile = "/no/ca.pem" }, "root-ca-file /no/ca.pem: no such file or directory"},
		{"no authority in the file", func(_ *testing.T, e *testprovider.Entry) { e.TLS.RootCAFile = e.TLS.KeyFile }, "no certificate in it"},
		{"no such certificate", func(_ *testing.T, e *testprovider.Entry) { e.TLS.CertFile = "/no/cert.pem" }, "/no/cert.pem"},
		{"no TLS", func(_ *testing.T, e *testprovider.Entry) { e.TLS = nil }, "127.0.0.1"},
	}
	for _, transport := range []testprovider.Transport{testprovider.GRPC, testprovider.GRPCGo} {
		for _, c := range cases {
			t.Run(fmt.Sprintf("%s by %d", c.name, transport), func(t *testing.T) {
				t.Parallel()
				p := testprovider.New(t, testprovider.Options{Transport: transport, ClientCert: true})
				c.edit(t, &p.Entry)
				s := scheme(testprovider.WriteConfig(t, p))
				begin := time.Now()
				_, err := unwrap(t, s, "vault", layer.Packet{Scheme: "provider.vault", Data: []byte("packet")})
				if !errors.Is(err, keys.ErrUnreachable) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%v", err)
				}
				if time.Since(begin) > 10*time.Second {
					t.Error("it took until the deadline")
				}
				if got := p.Requests(t); len(got) > 0 {
					t.Errorf("it was sent %q", got)
				}
			})
		}
	}
}

func TestInsecureSkipVerify(t *testing.T) {
	t.Parallel()
	p := testprovider.New(t, testprovider.Options{Transport: testprovider.GRPCGo, TLS: true})
	p.Entry.TLS = &testprovider.EntryTLS{InsecureSkipVerify: true}
	s := scheme(testprovider.WriteConfig(t, p))
	if got, err := unwrap(t, s, "vault", wrap(t, s, "vault", "secret")); err != nil || got != "secret" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestConfigurations(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var many []string
	for i := range 25 {
		many = append(many, fmt.Sprintf(`"p%02d": {"cmd": {"path": "x"}}`, i+1))
	}
	for name, content := range map[string]string{
		"empty": "", "null": "null", "none": "{}", "text": "hello", "list": "[]", "cut": `{"key-providers": {`,
		"trailing": `{"key-providers": {}} x`, "type": `{"key-providers": {"vault": {"cmd": "path"}}}`,
		"old":      `{"key-providers": {"vault": {"path": "/bin/true", "args": []}}}`,
		"pathless": `{"key-providers": {"vault": {"cmd": {"args": ["x"]}}}}`,
		"portless": `{"key-providers": {"vault": {"grpc": "localhost"}}}`,
		"http":     `{"key-providers": {"vault": {"grpc": "http://localhost:1"}}}`,
		"dns":      `{"key-providers": {"vault": {"grpc": "dns://1.1.1.1/localhost:1"}}}`,
		"socket":   `{"key-providers": {"vault": {"grpc": "unix://"}}}`,
		"others":   `{"key-providers": {"b": {"cmd": {"path": "x"}}, "a": {"grpc": "h:1"}, "bad": {}, "odd\nname": {"cmd": {"path": "x"}}}}`,
		"many":     `{"key-providers": {` + strings.Join(many, ",") + `}}`,
		"huge":     strings.Repeat(" ", 1<<20) + "{}",
	} {
		write(t, filepath.Join(dir, name), content)
	}
	for _, c := range []struct{ file, says string }{
		{"empty", "malformed"}, {"text", "malformed"}, {"list", "malformed"}, {"cut", "malformed"},
		{"trailing", "malformed"}, {"type", "malformed"},
		{"null", "it has no provider vault (it has none)"}, {"none", "it has no provider vault (it has none)"},
		{"old", "vault: it has neither cmd nor grpc"}, {"pathless", "vault: its cmd has no path"},
		{"portless", `vault: grpc "localhost": it is no HOST:PORT`}, {"http", "it is no HOST:PORT"},
		{"dns", "a DNS server of its own is not supported"}, {"socket", "a path is missing"},
		{"others", `it has no provider vault (it has a, b, "odd\nname", bad)`},
		{"many", "p20 and 5 more)"}, {"huge", "over 1048576 bytes"}, {"missing", "no such file or directory"}, {".", "directory"},
	} {
		t.Run(c.file, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(dir, c.file)
			checkConfigError(t, scheme(file), "key-provider configuration "+file+": ", c.says)
		})
	}
	checkConfigError(t, scheme(""), "no key-provider configuration is set", "")
}

// checkConfigError looks at the error of all ways of needing the provider vault.
func checkConfigError(t *testing.T, s keys.Scheme, prefix, says string) {
	t.Helper()
	packet := layer.Packet{Scheme: "provider.vault", Data: []byte("packet")}
	params := keys.Parameters{"vault": {[]byte("x")}}
	_, recipient := s.Recipient(t.Context(), "vault:x", new(keys.Files))
	_, recipients := s.Recipients(t.Context(), params)
	_, named := s.Named("vault")
	_, unwrapped := s.Identities(params)[0].Unwrap(t.Context(), []layer.Packet{packet})
	_, unnamed := s.Fallback(nil).Unwrap(t.Context(), []layer.Packet{{Scheme: "jwe", Data: []byte("x")}, packet})
	for way, err := range map[string]error{"recipient": recipient, "recipients": recipients, "named": named} {
		if !errors.Is(err, provider.ErrConfig) || !strings.HasPrefix(err.Error(), "vault: "+prefix) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", way, err)
		}
	}
	for way, err := range map[string]error{"identity": unwrapped, "fallback": unnamed} {
		if !errors.Is(err, provider.ErrConfig) || !errors.Is(err, keys.ErrUnreachable) || !strings.Contains(err.Error(), says) ||
			!strings.HasPrefix(err.Error(), "provider vault: cannot be asked: "+prefix) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", way, err)
		}
	}
}
