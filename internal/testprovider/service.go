package testprovider

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	keyproviderpb "github.com/containers/ocicrypt/utils/keyprovider"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"imgcrypt/keys/provider"
)

// SlowTime is how long a slow provider takes.
const SlowTime = 500 * time.Millisecond

// serve starts the service and enters how it is called.
func (p *Provider) serve(t testing.TB, dir string, o Options) {
	t.Helper()
	listener := listen(t, dir, o.Transport)
	p.Entry.GRPC = listener.Addr().String()
	if o.Transport == GRPCUnix {
		p.Entry.GRPC = "unix://" + p.Entry.GRPC
	}
	var config *tls.Config
	if o.TLS || o.ClientCert || o.Fault == NoTLS {
		config = p.certificates(t, o.ClientCert)
	}
	switch {
	case o.Fault == Absent:
		listener.Close()
		return
	case o.Fault == NoTLS:
		config = nil
	}
	if o.Transport == GRPCGo {
		p.serveGRPCGo(t, listener, config, o)
		return
	}
	s := &service{p: p, o: o, server: provider.Server{Provider: Vault{Seed: o.Seed}, Name: o.Name}}
	server := &http.Server{Handler: s, TLSConfig: config, Protocols: new(http.Protocols)}
	serve := func() error { return server.Serve(listener) }
	server.Protocols.SetUnencryptedHTTP2(true)
	if config != nil {
		server.Protocols.SetUnencryptedHTTP2(false)
		server.Protocols.SetHTTP2(true)
		serve = func() error { return server.ServeTLS(listener, "", "") }
	}
	server.ErrorLog = quiet()
	done := make(chan error, 1)
	go func() { done <- serve() }()
	t.Cleanup(func() {
		server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("key provider %s: %v", p.Name, err)
		}
	})
}

func listen(t testing.TB, dir string, transport Transport) net.Listener {
	t.Helper()
	if transport != GRPCUnix {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	// A test's own directory may have a name that is too long for a socket.
	short, err := os.MkdirTemp("", "kp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	l, err := net.Listen("unix", filepath.Join(short, "s"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// service is the service of package provider, which records, and fails where it should.
type service struct {
	p      *Provider
	o      Options
	server provider.Server
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if request := message(body); request != nil {
		s.p.note(request)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	answer := func(data []byte) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		w.Write(data)
		w.Header().Set("Grpc-Status", "0")
	}
	switch s.o.Fault {
	case Hang:
		<-r.Context().Done()
	case Flood:
		w.Header().Set("Content-Type", "application/grpc")
		chunk := make([]byte, 1<<20)
		for range 1 << 10 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	case Fail:
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", "7")
		w.Header().Set("Grpc-Message", FailText)
	case NoJSON:
		answer(append([]byte{0, 0, 0, 0, byte(2 + len(NoJSONText)), 0x0a, byte(len(NoJSONText))}, NoJSONText...))
	case Crash:
		panic(http.ErrAbortHandler)
	case Slow:
		time.Sleep(SlowTime)
		s.server.ServeHTTP(w, r)
	default:
		s.server.ServeHTTP(w, r)
	}
}

// message returns the JSON in a request, which begins at its first brace.
func message(body []byte) []byte {
	if i := bytes.IndexByte(body, '{'); i >= 0 {
		return body[i:]
	}
	return nil
}

func (p *Provider) note(request []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := Record(p.record, request); err != nil {
		panic(err)
	}
}

// serveGRPCGo starts the same by grpc-go.
func (p *Provider) serveGRPCGo(t testing.TB, listener net.Listener, config *tls.Config, o Options) {
	t.Helper()
	options := []grpc.ServerOption{}
	if config != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(config)))
	}
	server := grpc.NewServer(options...)
	keyproviderpb.RegisterKeyProviderServiceServer(server, &grpcService{p: p, o: o})
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("key provider %s: %v", p.Name, err)
		}
	})
}

// grpcService answers by ocicrypt's generated code, and nothing of package provider.
type grpcService struct {
	keyproviderpb.UnimplementedKeyProviderServiceServer
	p *Provider
	o Options
}

func (s *grpcService) WrapKey(ctx context.Context, in *keyproviderpb.KeyProviderKeyWrapProtocolInput) (*keyproviderpb.KeyProviderKeyWrapProtocolOutput, error) {
	return s.do(ctx, in)
}

func (s *grpcService) UnWrapKey(ctx context.Context, in *keyproviderpb.KeyProviderKeyWrapProtocolInput) (*keyproviderpb.KeyProviderKeyWrapProtocolOutput, error) {
	return s.do(ctx, in)
}

func (s *grpcService) do(ctx context.Context, in *keyproviderpb.KeyProviderKeyWrapProtocolInput) (*keyproviderpb.KeyProviderKeyWrapProtocolOutput, error) {
	s.p.note(in.GetKeyProviderKeyWrapProtocolInput())
	out := func(data []byte) (*keyproviderpb.KeyProviderKeyWrapProtocolOutput, error) {
		return &keyproviderpb.KeyProviderKeyWrapProtocolOutput{KeyProviderKeyWrapProtocolOutput: data}, nil
	}
	switch s.o.Fault {
	case Hang:
		<-ctx.Done()
		return nil, ctx.Err()
	case Flood:
		return out(make([]byte, 8<<20))
	case Fail:
		return nil, errors.New(FailText)
	case NoJSON:
		return out([]byte(NoJSONText))
	case Crash:
		return nil, errors.New("grpc-go does not crash")
	case Slow:
		time.Sleep(SlowTime)
	}
	data, err := answerPlainly(ctx, Vault{Seed: s.o.Seed}, s.o.Name, in.GetKeyProviderKeyWrapProtocolInput())
	if err != nil {
		return nil, err
	}
	return out(data)
}

// answerPlainly is the protocol once more, as ocicrypt's documentation has it.
func answerPlainly(ctx context.Context, v Vault, name string, request []byte) ([]byte, error) {
	type config struct{ Parameters map[string][][]byte }
	var in struct {
		Op   string `json:"op"`
		Wrap struct {
			EC   config `json:"ec"`
			Opts []byte `json:"optsdata"`
		} `json:"keywrapparams"`
		Unwrap struct {
			DC         config `json:"dc"`
			Annotation []byte `json:"annotation"`
		} `json:"keyunwrapparams"`
	}
	if err := json.Unmarshal(request, &in); err != nil {
		return nil, err
	}
	if in.Op == "keywrap" {
		packet, err := v.Wrap(ctx, in.Wrap.EC.Parameters[name], in.Wrap.Opts)
		if err != nil {
			return nil, err
		}
		return json.Marshal(map[string]any{"keywrapresults": map[string][]byte{"annotation": packet}})
	}
	secret, err := v.Unwrap(ctx, in.Unwrap.DC.Parameters[name], in.Unwrap.Annotation)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"keyunwrapresults": map[string][]byte{"optsdata": secret}})
}
