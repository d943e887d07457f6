package provider

import (
	"errors"
	"net"
	"net/url"
	"strings"
)

// target is where a service listens.
type target struct {
	network, address string
	// authority is what the service is told that it was called by.
	authority string
}

// parseTarget reads the forms of grpc-go's Dial: HOST:PORT, dns:HOST[:PORT],
// passthrough:///HOST:PORT, unix:PATH, unix:///PATH and unix-abstract:NAME.
func parseTarget(s string) (target, error) {
	u, err := url.Parse(s)
	scheme := ""
	if err == nil {
		scheme = u.Scheme
	}
	switch scheme {
	case "unix", "unix-abstract":
		path := u.Path
		if path == "" {
			path = u.Opaque
		}
		if u.Host != "" || path == "" {
			return target{}, errors.New("a path is missing, as in unix:///run/provider.sock")
		}
		if scheme == "unix-abstract" {
			path = "@" + path
		}
		return target{network: "unix", address: path, authority: "localhost"}, nil
	case "dns":
		if u.Host != "" {
			return target{}, errors.New("a DNS server of its own is not supported (dns:///HOST:PORT has three slashes)")
		}
		s = endpoint(u)
		if _, _, err := net.SplitHostPort(s); err != nil && s != "" {
			s = net.JoinHostPort(strings.Trim(s, "[]"), "443")
		}
	case "passthrough":
		s = endpoint(u)
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || port == "" {
		return target{}, errors.New("it is no HOST:PORT")
	}
	t := target{network: "tcp", address: s, authority: s}
	if host == "" {
		t.authority = net.JoinHostPort("localhost", port)
	}
	return t, nil
}

func endpoint(u *url.URL) string {
	if u.Path == "" {
		return u.Opaque
	}
	return strings.TrimPrefix(u.Path, "/")
}

// host is the name that a certificate of the service has to be for.
func (t target) host() string {
	if host, _, err := net.SplitHostPort(t.authority); err == nil {
		return host
	}
	return t.authority
}
