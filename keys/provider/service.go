package provider

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// service is a provider that is called by gRPC. It keeps one connection, for as long as
// it is used.
type service struct {
	target target
	tls    *tlsJSON // nil means without TLS
	idle   time.Duration

	dialing chan struct{} // holds a token while nobody dials

	mu   sync.Mutex
	link *link // nil if there is no connection
}

// link is a connection. Its fields are guarded by the mutex of its service.
type link struct {
	conn  *http.ClientConn
	users int
	// idle closes the connection when it has not been used for some time.
	idle *time.Timer
}

func newService(t target, files *tlsJSON, idle time.Duration) *service {
	s := &service{target: t, tls: files, idle: idle, dialing: make(chan struct{}, 1)}
	s.dialing <- struct{}{}
	return s
}

// maxTries bounds how often a question is asked, if the connections break that others
// made; the service may be in the middle of a restart.
const maxTries = 3

// ask implements asker.
func (s *service) ask(ctx context.Context, q question) ([]byte, error) {
	request, err := q.marshal()
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		l, fresh, err := s.acquire(ctx)
		if err != nil {
			return nil, s.failed(ctx, err)
		}
		reply, err := s.call(ctx, l.conn, q, request)
		s.release(l, err != nil)
		if err == nil {
			return reply.result(q)
		}
		if fresh || try == maxTries || ctx.Err() != nil {
			return nil, s.failed(ctx, err)
		}
	}
}

// failed is about a connection that could not be made or that broke.
func (s *service) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return away(fmt.Errorf("%s: %w", s.target.address, err))
}

// acquire returns the connection, and whether it was made for this caller. If there is
// none, one caller dials, and the others wait for the outcome.
func (s *service) acquire(ctx context.Context) (l *link, fresh bool, err error) {
	if l := s.current(); l != nil {
		return l, false, nil
	}
	select {
	case <-s.dialing:
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	defer func() { s.dialing <- struct{}{} }()
	if l := s.current(); l != nil {
		return l, false, nil
	}
	conn, err := s.dial(ctx)
	if err != nil {
		return nil, false, err
	}
	l = &link{conn: conn, users: 1}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link = l
	return l, true, nil
}

// current returns the connection for one more user, or nil if there is none that works.
func (s *service) current() *link {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.link
	if l == nil {
		return nil
	}
	if l.idle != nil {
		l.idle.Stop()
	}
	if l.conn.Err() != nil {
		s.link = nil
		if l.users == 0 {
			l.conn.Close()
		}
		return nil
	}
	l.users++
	return l
}

// release is called once by each user.
func (s *service) release(l *link, broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.users--
	if broken && s.link == l {
		s.link = nil
	}
	switch {
	case l.users > 0:
	case s.link != l:
		l.conn.Close()
	default:
		l.idle = time.AfterFunc(s.idle, func() { s.expire(l) })
	}
}

// expire closes a connection, unless somebody has begun to use it just now.
func (s *service) expire(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == l && l.users == 0 {
		s.link = nil
		l.conn.Close()
	}
}

// dial makes a connection.
func (s *service) dial(ctx context.Context) (*http.ClientConn, error) {
	protocols := new(http.Protocols)
	t := &http.Transport{
		Protocols:              protocols,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, s.target.network, s.target.address)
		},
	}
	scheme := "http"
	if s.tls == nil {
		protocols.SetUnencryptedHTTP2(true)
	} else {
		scheme = "https"
		protocols.SetHTTP2(true)
		var err error
		if t.TLSClientConfig, err = s.tls.load(s.target.host()); err != nil {
			return nil, fmt.Errorf("grpc-tls: %w", err)
		}
	}
	// The address is the one above; this one only has to look like one.
	return t.NewClientConn(ctx, scheme, "localhost:0")
}
