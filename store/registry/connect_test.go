package registry_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/internal/testfault"
	"imgcrypt/internal/testregistry"
	"imgcrypt/store/registry"
)

func TestOpen(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ repository, want, text string }{
		{"127.0.0.1:5000/app", "127.0.0.1:5000/app", ""},
		{"[::1]:5000/app", "[::1]:5000/app", ""},
		{"localhost/a/b", "localhost/a/b", ""},
		{"example.com/a/b", "example.com/a/b", ""},
		{"docker.io/app", "index.docker.io/library/app", ""},
		{"app", "index.docker.io/library/app", ""},
		{"", "", "not a valid name"},
		{"example.com/", "", "not a valid name"},
		{"example.com/A", "", "not a valid name"},
		{"user:secret@example.com/a", "", ""},
		{"example.com/a b", "", "not a valid name"},
		{"https://example.com/a", "", "not a valid name"},
	} {
		s, err := registry.Open(c.repository, registry.Options{})
		if c.want == "" {
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%q: got %v", c.repository, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", c.repository, err)
		} else if s.Repository() != c.want {
			t.Errorf("%q is %s, want %s", c.repository, s.Repository(), c.want)
		}
	}
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{empty, empty + ".missing"} {
		if _, err := registry.Open("example.com/app", registry.Options{CAFile: file}); err == nil {
			t.Errorf("%s was accepted", file)
		}
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	sum := "sha256:" + strings.Repeat("0", 64)
	for _, c := range []struct{ in, repository, ref string }{
		{"127.0.0.1:5000/app:v1", "127.0.0.1:5000/app", "v1"},
		{"127.0.0.1:5000/app", "127.0.0.1:5000/app", ""},
		{"localhost:5000/app@" + sum, "localhost:5000/app", sum},
		{"localhost:5000/app:v1@" + sum, "localhost:5000/app", sum},
		{"ubuntu:24.04", "index.docker.io/library/ubuntu", "24.04"},
		{"example.com/a/b/c:x_y.z-1", "example.com/a/b/c", "x_y.z-1"},
		{"example.com/a:", "", ""}, {"example.com/a@sha256:00", "", ""}, {"", "", ""}, {"http://example.com/a:v1", "", ""},
		{"example.com/a:b c", "", ""},
	} {
		repository, ref, err := registry.Parse(c.in)
		if repository != c.repository || ref != c.ref || (err == nil) != (c.repository != "") {
			t.Errorf("%q: %q, %q, %v", c.in, repository, ref, err)
		}
	}
}

// A loopback registry is spoken to as it speaks, by any of its names.
func TestLoopback(t *testing.T) {
	t.Parallel()
	ca := testregistry.NewAuthority(t)
	cert := ca.Certificate(t, "127.0.0.1", "localhost")
	plain := testregistry.Start(t)
	secure := testfault.StartWith(t, testfault.Options{Target: plain.Host(), Certificate: &cert})
	o := quick()
	o.CAFile = ca.File
	for i, host := range []string{plain.Host(), secure.Host()} {
		_, port, _ := net.SplitHostPort(host)
		for _, name := range []string{"127.0.0.1", "localhost"} {
			s := open(t, name+":"+port+"/app", o)
			desc := put(t, s, layerType, []byte("data"))
			checkGet(t, s, desc, []byte("data"))
		}
		if secure := i == 1; secure {
			continue
		}
		o.PlainHTTP = true
		put(t, open(t, host+"/app", o), layerType, []byte("data"))
		o.PlainHTTP = false
	}
}

// dialing returns a transport for which every name is this machine, and one port another.
func dialing(ca *testregistry.Authority, address string) http.RoundTripper {
	return &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
		TLSClientConfig: &tls.Config{RootCAs: ca.Pool()},
	}
}

type dialFails struct{ err error }

func (d dialFails) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: d.err}
}

func TestConnectFails(t *testing.T) {
	t.Parallel()
	ca, other := testregistry.NewAuthority(t), testregistry.NewAuthority(t)
	plain := testregistry.Start(t)
	secure := func(cert tls.Certificate) string {
		return testfault.StartWith(t, testfault.Options{Target: plain.Host(), Certificate: &cert}).Host()
	}
	expired, err := tls.LoadX509KeyPair(ca.PairUntil(t, time.Now().Add(-time.Hour), "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	good := secure(ca.Certificate(t, "127.0.0.1", "example.test"))
	free := freeAddress(t)
	for _, c := range []struct {
		name, host string
		options    registry.Options
		want       error
		text       string
	}{
		{"unknown authority", good, registry.Options{CAFile: other.File}, registry.ErrTLS, "signed by an unknown authority"},
		{"system's authorities", good, registry.Options{}, registry.ErrTLS, "signed by an unknown authority"},
		{"another host", secure(ca.Certificate(t, "example.test")), registry.Options{CAFile: ca.File}, registry.ErrTLS, "certificate is for another host"},
		{"expired", secure(expired), registry.Options{CAFile: ca.File}, registry.ErrTLS, "has expired"},
		{"http on the network", "example.test", registry.Options{Transport: dialing(ca, plain.Host())}, registry.ErrPlainHTTP, "plain http, not https"},
		// go-containerregistry would fall back to http for such an address.
		{"http in a private network", "10.1.2.3", registry.Options{Transport: dialing(ca, plain.Host())}, registry.ErrPlainHTTP, "plain http, not https"},
		{"https where http was asked for", good, registry.Options{PlainHTTP: true}, registry.ErrRejected, "400"},
		{"nobody there", free, registry.Options{}, registry.ErrUnreachable, "connection refused"},
		{"no such host", "example.test", registry.Options{Transport: dialFails{&net.DNSError{Err: "no such host", Name: "example.test", IsNotFound: true}}}, registry.ErrUnreachable, "no such host"},
		{"no name server", "example.test", registry.Options{Transport: dialFails{&net.DNSError{Err: "i/o timeout", IsTimeout: true}}}, registry.ErrUnreachable, "cannot be looked up"},
		{"no route", "example.test", registry.Options{Transport: dialFails{os.ErrDeadlineExceeded}}, registry.ErrUnreachable, "does not answer"},
		{"no HTTP", mute(t), registry.Options{PlainHTTP: true}, registry.ErrConnection, "connection broke: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := quick()
			o.CAFile, o.PlainHTTP, o.Transport = c.options.CAFile, c.options.PlainHTTP, c.options.Transport
			s := open(t, c.host+"/app", o)
			_, err := s.Resolve(t.Context(), "v1")
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %q", err, c.text)
			}
			checkSecrets(t, err)
		})
	}
	// With whatever certificate, if the user wants that.
	o := quick()
	o.Insecure = true
	put(t, open(t, good+"/app", o), layerType, []byte("data"))
}

// mute speaks something else than HTTP.
func mute(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("220 \x1b[2Jhello\n"))
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A registry that was there and is not any more may come back.
func TestRegistryRestarts(t *testing.T) {
	t.Parallel()
	r, err := testregistry.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	o := quick()
	events := make(chan registry.Event, 10)
	o.Notify = func(e registry.Event) { events <- e }
	s := open(t, r.Ref("app"), o)
	desc := put(t, s, layerType, []byte("data"))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := get(t.Context(), s, desc); !errors.Is(err, registry.ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	for i := 1; i < o.Retry.Attempts; i++ {
		if e := <-events; e.Attempt != i || e.Err == nil || e.Wait <= 0 || e.Wait > o.Retry.MaxWait {
			t.Errorf("event %d: %+v", i, e)
		}
	}
}

// All the same over HTTP/2, where requests share a connection and a cut is the end of
// a stream.
func TestHTTP2(t *testing.T) {
	t.Parallel()
	ca := testregistry.NewAuthority(t)
	cert := ca.Certificate(t, "127.0.0.1")
	data := noise(70, 2<<20)
	o := quick()
	o.CAFile = ca.File
	for _, rule := range []testfault.Rule{
		{Method: "GET", Path: "/blobs/", Times: 2, Fault: testfault.Cut(500_000)},
		{Method: "GET", Path: "/blobs/", Fault: testfault.Stall(500_000)},
		{Method: "GET", Path: "/blobs/", Fault: testfault.Drop()},
		{Method: "POST", Fault: testfault.Drop()},
		{Method: "PATCH", Fault: testfault.CutUp(500_000)},
		{Method: "PATCH", Fault: testfault.Answer(503, "", "")},
		{Method: "PATCH", Fault: testfault.Lose()},
		{Method: "PUT", Fault: testfault.Lose()},
	} {
		t.Run(rule.Method+" "+rule.Fault.Name, func(t *testing.T) {
			t.Parallel()
			o := o
			if rule.Fault.Name == "stall" {
				o.Silence = time.Second
			}
			r := testregistry.Start(t)
			proxy := testfault.StartWith(t, testfault.Options{Target: r.Host(), Certificate: &cert, HTTP2: true}, rule)
			s := open(t, proxy.Ref("app"), o)
			desc, err := s.Put(t.Context(), ocispec.Descriptor{MediaType: layerType}, bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			checkGet(t, s, desc, data)
			if proxy.Faults() == 0 {
				t.Error("there was no fault")
			}
		})
	}
}
