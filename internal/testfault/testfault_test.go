package testfault_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"imgcrypt/internal/testfault"
	"imgcrypt/internal/testregistry"
)

const size = 100_000

func content() []byte { return bytes.Repeat([]byte("0123456789"), size/10) }

// target answers a GET with content and anything else with what it got.
func target(t *testing.T) *httptest.Server {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet {
			http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(content()))
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Write(body)
	}))
	t.Cleanup(server.Close)
	return server
}

// result is what a client sees of a request.
type result struct {
	status int
	body   []byte
	err    error
}

func do(ctx context.Context, method, url string, body []byte, header ...string) result {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return result{err: err}
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return result{err: err}
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return result{resp.StatusCode, got, err}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	server := target(t)
	flipped := func(i int) []byte {
		data := content()
		data[i] ^= 0x10
		return data
	}
	cases := []struct {
		fault  testfault.Fault
		method string
		// What the client gets: this status and body, or an error after these bytes.
		status int
		want   []byte
		broken bool
	}{
		{testfault.Drop(), "GET", 0, nil, true},
		{testfault.Lose(), "PUT", 0, nil, true},
		{testfault.Cut(0), "GET", 200, nil, true},
		{testfault.Cut(12345), "GET", 200, content()[:12345], true},
		{testfault.Cut(size), "GET", 200, content(), false},
		{testfault.CutUp(12345), "PUT", 0, nil, true},
		{testfault.CutUp(size), "PUT", 200, content(), false},
		{testfault.Truncate(12345), "GET", 200, content()[:12345], false},
		{testfault.Flip(54321), "GET", 200, flipped(54321), false},
		{testfault.FlipUp(54321), "PUT", 200, flipped(54321), false},
		{testfault.Slow(10 * size), "GET", 200, content(), false},
		{testfault.Slow(10 * size), "PUT", 200, content(), false},
		{testfault.TooMany(3), "GET", 429, []byte(`{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}`), false},
		{testfault.Unauthorized(""), "GET", 401, []byte(`{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`), false},
		{testfault.AfterBody(testfault.Answer(503, "A", "b")), "PUT", 503, []byte(`{"errors":[{"code":"A","message":"b"}]}`), false},
	}
	for _, c := range cases {
		t.Run(c.method+" "+c.fault.Name, func(t *testing.T) {
			t.Parallel()
			proxy := testfault.Start(t, server.URL, testfault.Rule{Fault: c.fault})
			var up []byte
			if c.method == http.MethodPut {
				up = content()
			}
			got := do(t.Context(), c.method, "http://"+proxy.Host()+"/a", up)
			if (got.err != nil) != c.broken || got.status != c.status || !bytes.Equal(got.body, c.want) {
				t.Errorf("status %d, %d bytes, %v; want %d, %d bytes, broken %v", got.status, len(got.body), got.err, c.status, len(c.want), c.broken)
			}
			// The next one fares well.
			if got := do(t.Context(), http.MethodGet, "http://"+proxy.Host()+"/b", nil); !bytes.Equal(got.body, content()) {
				t.Errorf("second request: %d, %d bytes, %v", got.status, len(got.body), got.err)
			}
			requests := proxy.Requests()
			if len(requests) != 2 || requests[0].String() != c.method+" /a" || requests[0].Fault != c.fault.Name || requests[1].Fault != "" {
				t.Errorf("requests %+v", requests)
			}
			if n := proxy.Faults(); n != 1 {
				t.Errorf("%d faults", n)
			}
		})
	}
}

func TestStall(t *testing.T) {
	t.Parallel()
	server := target(t)
	for _, fault := range []testfault.Fault{testfault.Stall(1000), testfault.StallUp(1000)} {
		proxy := testfault.Start(t, server.URL, testfault.Rule{Fault: fault})
		method, body := http.MethodGet, []byte(nil)
		if strings.Contains(fault.Name, "up") {
			method, body = http.MethodPut, content()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		got := do(ctx, method, "http://"+proxy.Host(), body)
		cancel()
		if !errors.Is(got.err, context.DeadlineExceeded) {
			t.Errorf("%s: %d, %d bytes, %v", fault.Name, got.status, len(got.body), got.err)
		}
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	server := target(t)
	answer := func(status int) testfault.Fault { return testfault.Answer(status, "", "") }
	proxy := testfault.Start(t, server.URL,
		testfault.Rule{Method: "GET", Path: `^/a\?`, Skip: 1, Times: 2, Fault: answer(500)},
		testfault.Rule{Path: "/b", Times: -1, Fault: answer(501)},
		testfault.Rule{Header: "X-Test", Fault: answer(502)},
		testfault.Rule{Path: "/c", Fault: testfault.Redirect("http://" + strings.TrimPrefix(server.URL, "http://"))},
		testfault.Rule{Path: "/d", Fault: testfault.Without("Range")},
		testfault.Rule{Path: "/e", Fault: testfault.Headers(func(h http.Header) { h.Set("Content-Length", fmt.Sprint(size+1)) })},
	)
	base := "http://" + proxy.Host()
	for _, c := range []struct {
		method, path string
		header       []string
		want         int
	}{
		{"GET", "/a?x", nil, 200}, {"PUT", "/a?x", nil, 200}, {"GET", "/a?x", nil, 500}, {"GET", "/a?y", nil, 500}, {"GET", "/a?x", nil, 200},
		{"GET", "/b", nil, 501}, {"PUT", "/b", nil, 501}, {"GET", "/", []string{"X-Test", "1"}, 502}, {"GET", "/", []string{"X-Test", "1"}, 200},
		{"GET", "/c", nil, 200}, {"GET", "/d", []string{"Range", "bytes=0-9"}, 200}, {"GET", "/d", []string{"Range", "bytes=0-9"}, 206},
	} {
		if got := do(t.Context(), c.method, base+c.path, nil, c.header...); got.status != c.want || got.err != nil {
			t.Errorf("%s %s: %d, %v, want %d", c.method, c.path, got.status, got.err, c.want)
		}
	}
	if got := do(t.Context(), "GET", base+"/e", nil); !errors.Is(got.err, io.ErrUnexpectedEOF) {
		t.Errorf("with another length: %v", got.err)
	}
	proxy.Reset()
	if got := do(t.Context(), "GET", base+"/b", nil); got.status != 200 || len(proxy.Requests()) != 1 {
		t.Errorf("after a reset: %+v, %+v", got, proxy.Requests())
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	ca := testregistry.NewAuthority(t)
	cert := ca.Certificate(t, "127.0.0.1")
	for _, http2 := range []bool{false, true} {
		proxy := testfault.StartWith(t, testfault.Options{Target: target(t).URL, Certificate: &cert, HTTP2: http2},
			testfault.Rule{Skip: 1, Fault: testfault.Cut(1000)})
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}, ForceAttemptHTTP2: true}
		defer transport.CloseIdleConnections()
		client := http.Client{Transport: transport}
		for i := range 2 {
			resp, err := client.Get("https://" + proxy.Host())
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if broken := i == 1; (err != nil) != broken || (len(got) != size) != broken || (resp.ProtoMajor == 2) != http2 {
				t.Errorf("HTTP/2 %v: %s, %d bytes, %v", http2, resp.Proto, len(got), err)
			}
		}
	}
}
