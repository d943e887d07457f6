package testfault

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Drop breaks the connection before the request reaches the target.
func Drop() Fault {
	return Fault{"drop", func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { abort(w) })
	}}
}

// Lose lets the request through and breaks the connection instead of answering.
func Lose() Fault {
	return Fault{"lose", func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			next.ServeHTTP(&nowhere{header: http.Header{}}, req)
			abort(w)
		})
	}}
}

// abort breaks the connection and does not return. A handler that only panics makes the server of net/http wait for what is
// left of the request, which a client that expects to be told to go on does not send.
func abort(w http.ResponseWriter) {
	if edited, ok := w.(*writer); ok {
		edited.end()
	}
	// HTTP/2 has no connection of its own for a request, and the panic ends the stream.
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = conn.Close()
	}
	panic(http.ErrAbortHandler)
}

// Cut breaks the connection after so many bytes of the answer's body. A shorter answer stays whole.
func Cut(after int64) Fault {
	return Fault{"cut", onResponse(func(w *writer, _ *http.Request) {
		w.edit = func(p []byte, at int64) []byte {
			if at+int64(len(p)) <= after {
				return p
			}
			w.pass(p[:after-at])
			abort(w)
			return nil
		}
	})}
}

// CutUp breaks the connection after so many bytes of the request's body.
func CutUp(after int64) Fault {
	return Fault{"cut up", onRequest(func(b *body, _ *http.Request) {
		b.edit = func(p []byte, at int64) error {
			if at+int64(len(p)) <= after {
				return nil
			}
			return errCut
		}
	})}
}

var errCut = errors.New("the connection is cut here")

// Truncate ends the answer orderly after so many bytes of its body, as if that was all.
func Truncate(after int64) Fault {
	return Fault{"truncate", onResponse(func(w *writer, _ *http.Request) {
		w.head = func(h http.Header) { h.Del("Content-Length") }
		w.edit = func(p []byte, at int64) []byte { return p[:min(max(after-at, 0), int64(len(p)))] }
	})}
}

// Flip changes a bit of the byte at this offset of the answer's body.
func Flip(offset int64) Fault {
	return Fault{"flip", onResponse(func(w *writer, _ *http.Request) {
		w.edit = func(p []byte, at int64) []byte { return flip(append([]byte(nil), p...), offset-at) }
	})}
}

// FlipUp changes a bit of the byte at this offset of the request's body.
func FlipUp(offset int64) Fault {
	return Fault{"flip up", onRequest(func(b *body, _ *http.Request) {
		b.edit = func(p []byte, at int64) error {
			flip(p, offset-at)
			return nil
		}
	})}
}

func flip(p []byte, i int64) []byte {
	if i >= 0 && i < int64(len(p)) {
		p[i] ^= 0x10
	}
	return p
}

// Slow lets bodies through, both ways, at so many bytes a second.
func Slow(rate int) Fault {
	pause := func(n int) { time.Sleep(time.Duration(n) * time.Second / time.Duration(rate)) }
	return Fault{"slow", func(next http.Handler) http.Handler {
		down := onResponse(func(w *writer, _ *http.Request) {
			w.edit = func(p []byte, _ int64) []byte { pause(len(p)); return p }
		})
		up := onRequest(func(b *body, _ *http.Request) {
			b.edit = func(p []byte, _ int64) error { pause(len(p)); return nil }
		})
		return up(down(next))
	}}
}

// Stall sends so many bytes of the answer's body, and then nothing until the client goes.
func Stall(after int64) Fault {
	return Fault{"stall", onResponse(func(w *writer, req *http.Request) {
		w.edit = func(p []byte, at int64) []byte {
			if at+int64(len(p)) <= after {
				return p
			}
			w.pass(p[:after-at])
			<-req.Context().Done()
			abort(w)
			return nil
		}
	})}
}

// StallUp takes so many bytes of the request's body, and then nothing until the proxy ends: that the client goes is not
// noticed while nothing is read from it. For the target the connection breaks at once.
func StallUp(after int64) Fault {
	return Fault{"stall up", func(next http.Handler) http.Handler {
		cut := CutUp(after).Wrap(next)
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			// Nothing of the answer to half a request reaches the client.
			func() {
				defer func() {
					if v := recover(); v != nil && v != http.ErrAbortHandler {
						panic(v)
					}
				}()
				cut.ServeHTTP(&nowhere{header: http.Header{}}, req)
			}()
			<-req.Context().Done()
			abort(w)
		})
	}}
}

// Answer answers instead of the target, with a status, a text in the form that registries have, and headers, a name and
// a value each. The request's body is not read.
func Answer(status int, code, message string, headers ...string) Fault {
	return Fault{strconv.Itoa(status), func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i+1 < len(headers); i += 2 {
				w.Header().Set(headers[i], headers[i+1])
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
		})
	}}
}

// Unauthorized is a 401 with this challenge, or none if it is empty.
func Unauthorized(challenge string) Fault {
	if challenge == "" {
		return Answer(http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	}
	return Answer(http.StatusUnauthorized, "UNAUTHORIZED", "authentication required", "WWW-Authenticate", challenge)
}

// TooMany is a 429 that asks for a pause of so many seconds.
func TooMany(seconds int) Fault {
	return Answer(http.StatusTooManyRequests, "TOOMANYREQUESTS", "slow down", "Retry-After", strconv.Itoa(seconds))
}

// AfterBody answers like fault, but after it has read the request's body.
func AfterBody(fault Fault) Fault {
	return Fault{fault.Name + " after the body", func(next http.Handler) http.Handler {
		inner := fault.Wrap(next)
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			// What comes of it is the fault's to say.
			_, _ = io.Copy(io.Discard, req.Body)
			inner.ServeHTTP(w, req)
		})
	}}
}

// Redirect sends the client to the same path of another server, HOST:PORT or a URL with its scheme.
func Redirect(server string) Fault {
	return Fault{"redirect", func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, server+req.URL.RequestURI(), http.StatusTemporaryRedirect)
		})
	}}
}

// Without lets the request through without a header: one without Range is answered with everything.
func Without(header string) Fault {
	return Fault{"without " + header, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			req.Header.Del(header)
			next.ServeHTTP(w, req)
		})
	}}
}

// Headers changes the answer's headers before they go out.
func Headers(change func(http.Header)) Fault {
	return Fault{"headers", onResponse(func(w *writer, _ *http.Request) { w.head = change })}
}

// onResponse returns a wrapper that changes what is written.
func onResponse(set func(*writer, *http.Request)) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			edited := &writer{ResponseWriter: w}
			defer edited.end()
			set(edited, req)
			next.ServeHTTP(edited, req)
		})
	}
}

// onRequest returns a wrapper that changes what is read.
func onRequest(set func(*body, *http.Request)) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			edited := &body{ReadCloser: req.Body}
			set(edited, req)
			req.Body = edited
			next.ServeHTTP(w, req)
		})
	}
}

// writer counts what is written, and may change it.
type writer struct {
	http.ResponseWriter
	status int
	n      int64
	// head may change the headers before they are sent, and edit each piece of the body; at is its offset.
	head func(http.Header)
	edit func(p []byte, at int64) []byte

	// over is set once the request is over, or its connection taken away: the reverse
	// proxy may flush later, by a timer.
	mu   sync.Mutex
	over bool
}

func (w *writer) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
}

func (w *writer) WriteHeader(status int) {
	if status >= 200 {
		w.status = status
		if w.head != nil {
			w.head(w.Header())
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	out := p
	if w.edit != nil {
		out = w.edit(p, w.n)
	}
	w.n += int64(len(p))
	if _, err := w.ResponseWriter.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// pass writes a last piece before the connection breaks.
func (w *writer) pass(p []byte) {
	// A client that has gone already does not mind.
	_, _ = w.ResponseWriter.Write(p)
	w.Flush()
}

// Flush implements http.Flusher.
func (w *writer) Flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		_ = http.NewResponseController(w.ResponseWriter).Flush()
	}
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// body counts what is read of a request's body, and may change it.
type body struct {
	io.ReadCloser
	n    atomic.Int64
	edit func(p []byte, at int64) error
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.edit != nil && n > 0 {
		if err := b.edit(p[:n], b.n.Load()); err != nil {
			return 0, err
		}
	}
	b.n.Add(int64(n))
	return n, err
}

// nowhere is where an answer is lost.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header       { return n.header }
func (*nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (*nowhere) WriteHeader(int)             {}
