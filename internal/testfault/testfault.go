// Package testfault is a reverse proxy for tests that does to the traffic between a client and a registry, or
// any HTTP server, what networks and servers do on bad days: connections that break in the middle, answers that
// are refusals, slow, short or wrong.
//
//	proxy := testfault.Start(t, registry.Host())
//	proxy.Add(testfault.Rule{Method: "GET", Path: "/blobs/", Fault: testfault.Cut(1000)})
//	// The first blob that is pulled from proxy.Host() breaks off after 1000 bytes.
//
// A rule applies to the requests that fit it; the first rule that applies wins. Requests that none applies to go
// through as they are. Faults of other kinds are functions around an http.Handler, see [Fault].
package testfault

import (
	"cmp"
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// Rule says what happens to which requests.
type Rule struct {
	// Method is that of the requests; empty: any.
	Method string
	// Path is a regular expression that the path, with the query if there is one, matches somewhere; empty: any.
	Path string
	// Header is the name of one that the requests have; empty: none is needed.
	Header string
	// Skip is how many requests that fit go through before the first fault.
	Skip int
	// Times is how many requests fare badly. Zero: one; negative: all from then on.
	Times int
	// Fault is what happens to them.
	Fault Fault
}

// Fault is something that goes wrong with a request: a handler around the one that passes it on.
type Fault struct {
	// Name is what [Request] calls it.
	Name string
	// Wrap returns the handler. next passes the request on, and the answer back.
	Wrap func(next http.Handler) http.Handler
}

// Request is one that came by.
type Request struct {
	Method, Path string
	// Header is the request's.
	Header http.Header
	// Fault is the name of the one that it met, or empty.
	Fault string
	// Status is that of the answer, 0 where there was none.
	Status int
	// Up and Down count the bytes of the bodies that passed the proxy.
	Up, Down int64
}

// String is "METHOD PATH".
func (r Request) String() string { return r.Method + " " + r.Path }

// Options are the options of [New].
type Options struct {
	// Target is the server, HOST:PORT or a URL with its scheme.
	Target string
	// Certificate makes the proxy speak https. nil: http.
	Certificate *tls.Certificate
	// HTTP2 lets clients that can speak HTTP/2, with a Certificate only.
	HTTP2 bool
	// Transport is how to reach the target. nil: a transport without any settings.
	Transport http.RoundTripper
}

// Proxy is a running proxy.
type Proxy struct {
	host   string
	server *http.Server
	served chan error
	inner  *http.Transport
	// ctx ends with the proxy, and handlers are those that run.
	ctx      context.Context
	cancel   context.CancelFunc
	handlers sync.WaitGroup

	mu       sync.Mutex
	rules    []*rule
	requests []*Request
}

// rule is a Rule in use.
type rule struct {
	Rule
	path *regexp.Regexp
	seen int
}

// Start runs a proxy that speaks http, until the end of the test.
func Start(t testing.TB, target string, rules ...Rule) *Proxy {
	t.Helper()
	return StartWith(t, Options{Target: target}, rules...)
}

// StartWith is Start with options.
func StartWith(t testing.TB, o Options, rules ...Rule) *Proxy {
	t.Helper()
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	p.Add(rules...)
	return p
}

// New is StartWith for programs that are no tests.
func New(o Options) (*Proxy, error) {
	if !strings.Contains(o.Target, "://") {
		o.Target = "http://" + o.Target
	}
	target, err := url.Parse(o.Target)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{host: listener.Addr().String(), served: make(chan error, 1), inner: &http.Transport{DisableCompression: true}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			// The registry makes URLs out of what it takes for its name.
			r.Out.Host = r.In.Host
			r.SetXForwarded()
			r.Out.Header.Del("Expect")
		},
		Transport:     cmp.Or[http.RoundTripper](o.Transport, p.inner),
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0),
		// What goes wrong behind the proxy is a broken connection in front of it.
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { abort(w) },
	}
	p.server = &http.Server{Handler: p.handler(forward), ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute}
	serve := p.server.Serve
	if o.Certificate != nil {
		p.server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*o.Certificate}, MinVersion: tls.VersionTLS12}
		p.server.Protocols = new(http.Protocols)
		p.server.Protocols.SetHTTP1(true)
		p.server.Protocols.SetHTTP2(o.HTTP2)
		serve = func(l net.Listener) error { return p.server.ServeTLS(l, "", "") }
	}
	go func() { p.served <- serve(listener) }()
	return p, nil
}

// Host returns the proxy's address: "127.0.0.1:PORT".
func (p *Proxy) Host() string { return p.host }

// Ref returns the reference of an image in the registry behind the proxy, "127.0.0.1:PORT/app:v1" for "app:v1".
func (p *Proxy) Ref(name string) string { return p.host + "/" + name }

// Close ends the proxy and all connections through it.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.cancel()
	p.mu.Unlock()
	err := p.server.Close()
	<-p.served
	p.handlers.Wait()
	p.inner.CloseIdleConnections()
	return err
}

// Add appends rules. One with a Path that is no regular expression panics.
func (p *Proxy) Add(rules ...Rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range rules {
		p.rules = append(p.rules, &rule{Rule: r, path: regexp.MustCompile(r.Path)})
	}
}

// Reset removes all rules and forgets all requests.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules, p.requests = nil, nil
}

// Requests lists the requests since the start or the last Reset, in the order in which they came. Status and counts are
// known of those that have ended.
func (p *Proxy) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]Request, len(p.requests))
	for i, r := range p.requests {
		list[i] = *r
	}
	return list
}

// Faults counts the requests that met one.
func (p *Proxy) Faults() int {
	n := 0
	for _, r := range p.Requests() {
		if r.Fault != "" {
			n++
		}
	}
	return n
}

// fault returns what is to happen to a request.
func (p *Proxy) fault(req *http.Request) (Fault, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.rules {
		if r.applies(req) {
			return r.Fault, true
		}
	}
	return Fault{}, false
}

func (r *rule) applies(req *http.Request) bool {
	if r.Method != "" && r.Method != req.Method || !r.path.MatchString(req.URL.RequestURI()) {
		return false
	}
	if r.Header != "" && req.Header.Get(r.Header) == "" {
		return false
	}
	r.seen++
	return r.seen > r.Skip && (r.Times < 0 || r.seen <= r.Skip+max(r.Times, 1))
}

// enter counts a handler, unless the proxy has ended.
func (p *Proxy) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return false
	}
	p.handlers.Add(1)
	return true
}

// handler notes the requests and wraps the faults around those that they happen to.
func (p *Proxy) handler(forward http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !p.enter() {
			panic(http.ErrAbortHandler)
		}
		defer p.handlers.Done()
		ctx, cancel := context.WithCancel(req.Context())
		defer context.AfterFunc(p.ctx, cancel)()
		defer cancel()
		req = req.WithContext(ctx)
		fault, faulty := p.fault(req)
		note := &Request{Method: req.Method, Path: req.URL.Path, Header: req.Header.Clone(), Fault: fault.Name}
		p.mu.Lock()
		p.requests = append(p.requests, note)
		p.mu.Unlock()
		up := &body{ReadCloser: req.Body}
		req.Body = up
		down := &writer{ResponseWriter: w}
		defer func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			note.Status, note.Up, note.Down = down.status, up.n.Load(), down.n
		}()
		next := forward
		if faulty {
			next = fault.Wrap(next)
		}
		next.ServeHTTP(down, req)
	})
}
