package provider

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"imgcrypt/keys"
)

// Serve answers requests that come to a listener by gRPC, until ctx ends: then it
// finishes what it has begun, within ten seconds, closes the listener and returns nil. config is for
// TLS; nil means none. To know its clients, set config.ClientAuth and config.ClientCAs.
func (s Server) Serve(ctx context.Context, listener net.Listener, config *tls.Config) error {
	protocols := new(http.Protocols)
	server := &http.Server{
		Handler:           s,
		Protocols:         protocols,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		ErrorLog:          s.ErrorLog,
	}
	if server.ErrorLog == nil {
		server.ErrorLog = log.New(io.Discard, "", 0)
	}
	serve := func() error { return server.Serve(listener) }
	if config == nil {
		protocols.SetUnencryptedHTTP2(true)
	} else {
		protocols.SetHTTP2(true)
		server.TLSConfig = config
		serve = func() error { return server.ServeTLS(listener, "", "") }
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err := server.Shutdown(grace)
		if err != nil {
			err = errors.Join(err, server.Close())
		}
		stopped <- err
	})
	err := serve()
	if stop() {
		return err
	}
	return <-stopped
}

// ServeHTTP implements [http.Handler] for servers that do more than this: it answers
// requests by gRPC, over HTTP/2 only.
func (s Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor < 2 || r.Method != http.MethodPost || !isGRPC(r.Header.Get("Content-Type")) {
		http.Error(w, "this is a gRPC service", http.StatusUnsupportedMediaType)
		return
	}
	w.Header().Set("Content-Type", contentType)
	message, code, err := s.handle(r)
	if err == nil {
		w.Header().Set("Trailer", headerStatus)
		if _, err := w.Write(message); err != nil {
			return // the client has gone
		}
		w.Header().Set(headerStatus, strconv.Itoa(statusOK))
		return
	}
	w.Header().Set(headerStatus, strconv.Itoa(code))
	w.Header().Set(headerMessage, escape(err.Error()))
}

func isGRPC(kind string) bool {
	return kind == contentType || strings.HasPrefix(kind, contentType+"+") || strings.HasPrefix(kind, contentType+";")
}

// handle answers a call with a message, or with a status and an error.
func (s Server) handle(r *http.Request) (message []byte, code int, err error) {
	ops := map[string]string{servicePath + methodWrap: opWrap, servicePath + methodUnwrap: opUnwrap}
	op, ok := ops[r.URL.Path]
	if !ok {
		return nil, statusUnimplemented, errors.New("unknown method")
	}
	ctx := r.Context()
	if d, ok := parseTimeout(r.Header.Get(headerTimeout)); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, prefixSize+maxRequest+1))
	if err != nil {
		return nil, statusCancelled, errors.New("the request ended early")
	}
	request, err := unframe(body)
	switch {
	case errors.Is(err, errCompressed):
		return nil, statusUnimplemented, errors.New("compressed requests are not supported")
	case err != nil:
		return nil, statusInvalidArgument, errRequest
	}
	data, err := s.answer(ctx, op, request)
	switch {
	case err == nil:
		return frame(data), statusOK, nil
	case errors.Is(err, errRequest):
		return nil, statusInvalidArgument, err
	case errors.Is(err, keys.ErrUnreachable):
		return nil, statusUnavailable, err
	case ctx.Err() != nil && errors.Is(err, context.DeadlineExceeded):
		return nil, statusDeadlineExceeded, err
	case ctx.Err() != nil:
		return nil, statusCancelled, err
	}
	return nil, statusUnknown, err
}
