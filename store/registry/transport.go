package registry

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// newTransport returns a transport by the options' TLS settings.
func newTransport(o Options) (*http.Transport, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.Insecure}
	if o.CAFile != "" {
		pool, err := authorities(o.CAFile)
		if err != nil {
			return nil, err
		}
		config.RootCAs = pool
	}
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: 15 * time.Second,
		ForceAttemptHTTP2:   true,
		// All requests go to the registry, its token server and perhaps its storage.
		MaxIdleConns:        64,
		MaxIdleConnsPerHost: 32,
		IdleConnTimeout:     90 * time.Second,
		// So that a registry can ask for a login, or for a pause, before a blob is sent. One
		// that does not know of this costs the time once.
		ExpectContinueTimeout: 3 * time.Second,
		// A blob has a digest: it has to come as it is.
		DisableCompression:     true,
		WriteBufferSize:        64 << 10,
		ReadBufferSize:         64 << 10,
		MaxResponseHeaderBytes: 256 << 10,
	}, nil
}

// authorities returns the system's authorities and those in a file.
func authorities(file string) (*x509.CertPool, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("authorities: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		// Some systems have none.
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("authorities: no certificate in %s", file)
	}
	return pool, nil
}

// guard sees to what must not depend on the layers above it: that the registry, and
// with it the credentials, is spoken to in no other scheme than was agreed, and
// that a blob that is read from a reader is not sent twice.
type guard struct {
	inner http.RoundTripper
	host  string
	// plain says that http is allowed, and secure that https is.
	plain, secure bool
}

func newGuard(inner http.RoundTripper, host string, plain bool) *guard {
	return &guard{inner: inner, host: host, plain: plain || loopback(host), secure: !plain}
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host == g.host && g.plain != g.secure {
		// go-containerregistry tries http where a registry's name looks private.
		scheme := "https"
		if g.plain {
			scheme = "http"
		}
		req = req.Clone(req.Context())
		req.URL.Scheme = scheme
	}
	if src, ok := req.Body.(*source); ok {
		// After a 401 the layer above sends the same request again.
		body, err := src.attempt()
		if err != nil {
			return nil, err
		}
		req = req.Clone(req.Context())
		req.Body = body
	}
	return g.inner.RoundTrip(req)
}
