package provider

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// tlsJSON is ocicrypt's GrpcTLS.
type tlsJSON struct {
	// RootCAFile has the certificates of the authorities that the service's must be
	// of; empty means the system's.
	RootCAFile string `json:"root-ca-file"`
	// CertFile and KeyFile are the client's, used if both are set.
	CertFile string `json:"cert-file"`
	KeyFile  string `json:"key-file"`
	// ServerName is who the service's certificate must be for; empty means the host
	// that was dialled.
	ServerName         string `json:"server-name"`
	InsecureSkipVerify bool   `json:"insecure-skip-verify"`
}

// load returns the configuration for a service at host. Files are read each time, so
// that new certificates are used by the next connection.
func (t *tlsJSON) load(host string) (*tls.Config, error) {
	c := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         host,
		InsecureSkipVerify: t.InsecureSkipVerify,
		NextProtos:         []string{"h2"},
		VerifyConnection: func(state tls.ConnectionState) error {
			if state.NegotiatedProtocol != "h2" {
				return errors.New("the service does not offer HTTP/2, so it is no gRPC service")
			}
			return nil
		},
	}
	if t.ServerName != "" {
		c.ServerName = t.ServerName
	}
	if t.RootCAFile != "" {
		data, err := os.ReadFile(t.RootCAFile)
		if err != nil {
			return nil, fmt.Errorf("root-ca-file %s: %w", t.RootCAFile, bare(err))
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("root-ca-file %s: no certificate in it", t.RootCAFile)
		}
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		return nil, errors.New("cert-file and key-file belong together, and only one is set")
	}
	if t.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("cert-file %s, key-file %s: %w", t.CertFile, t.KeyFile, bare(err))
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

// tlsConn is a connection that knows why it broke. In TLS 1.3 a client has ended its
// handshake before the service refuses its certificate, and may be writing when it does.
type tlsConn struct {
	*tls.Conn
	alert atomic.Pointer[net.OpError]
}

// alertWait bounds the wait for the reason. It was sent before the connection broke.
const alertWait = 100 * time.Millisecond

// Read reads, and keeps the alert that the service has sent.
func (c *tlsConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		c.alert.Store(op)
	}
	return n, err
}

// Write writes. If that fails, it looks for the alert; who else is reading does not matter.
func (c *tlsConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil && c.SetReadDeadline(time.Now().Add(alertWait)) == nil {
		_, _ = c.Read(make([]byte, 1))
	}
	return n, err
}

// reason returns the alert, or else err.
func (c *tlsConn) reason(err error) error {
	if c != nil {
		if alert := c.alert.Load(); alert != nil {
			return alert
		}
	}
	return err
}
