package provider

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
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
