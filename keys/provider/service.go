package provider

import (
	"context"
	"crypto/tls"
	"errors"
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
	tls   *tlsConn // nil without TLS
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
		if err != nil {
			err = l.tls.reason(err)
		}
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
	// Package net keeps deadlines, too, and may be a moment earlier than ctx.
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return away(fmt.Errorf("%s: %w", s.target.address, inner(err)))
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
	if l, err = s.dial(ctx); err != nil {
		return nil, false, err
	}
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

// dial makes a connection with one user.
func (s *service) dial(ctx context.Context) (*link, error) {
	l := &link{users: 1}
	protocols := new(http.Protocols)
	// With TLS, too: all of that is below.
	protocols.SetUnencryptedHTTP2(true)
	t := &http.Transport{
		Protocols:              protocols,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, s.target.network, s.target.address)
			if err != nil || s.tls == nil {
				return conn, err
			}
			if l.tls, err = s.secure(ctx, conn); err != nil {
				return nil, err
			}
			return l.tls, nil
		},
	}
	// The address is the target's; this one only has to look like one.
	var err error
	l.conn, err = t.NewClientConn(ctx, "http", "localhost:0")
	return l, err
}

// secure begins TLS on a connection, which it closes if that fails.
func (s *service) secure(ctx context.Context, conn net.Conn) (*tlsConn, error) {
	config, err := s.tls.load(s.target.host())
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("grpc-tls: %w", err)
	}
	c := &tlsConn{Conn: tls.Client(conn, config)}
	if err := c.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("TLS handshake: %w", inner(err))
	}
	return c, nil
}

// inner strips what package net adds to an error: the addresses, which the caller names.
func inner(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
