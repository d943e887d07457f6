package registry

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPrintable(t *testing.T) {
	t.Parallel()
	s, err := Open("example.com/app", Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.secrets["hunter2"] = struct{}{}
	request := &http.Request{Header: http.Header{"Authorization": {"Bearer abcdef"}}}
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"manifest unknown", "manifest unknown"},
		{" two\nlines ", "two"},
		{"who? me?", "who? me?"},
		{"\x1b[31mred\u202e", "?[31mred?"},
		{"the password is hunter2", ""},
		{"you sent Bearer abcdef", ""},
		{`Get "https://user:pw@example.com/a/b?X-Amz-Signature=1&b=2": EOF`, `Get "https://example.com/a/b": EOF`},
		{"see https://example.com/a?b", "see https://example.com/a"},
		{"no token in bearer response:\n{\"refresh_token\":\"x\"}", "no token in bearer response:"},
		{strings.Repeat("ä", 60), strings.Repeat("ä", 50) + "…"},
	} {
		if got := s.printable(c.in, 50, request); got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "-7": 0, "1.5": 0, "soon": 0, "99999999999999999999": 0,
		now.Add(time.Minute).Format(http.TimeFormat): time.Minute, now.Add(-time.Minute).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {text}}, now); got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
}

func TestPause(t *testing.T) {
	t.Parallel()
	o := RetryOptions{}.withDefaults()
	for failed, want := range map[int]time.Duration{1: 500 * time.Millisecond, 2: time.Second, 5: 8 * time.Second, 1000: time.Minute} {
		for range 100 {
			if got := o.pause(failed); got < want*3/4 || got > min(want*5/4, o.MaxWait) {
				t.Errorf("after %d: %s", failed, got)
			}
		}
	}
}

func TestTemporaryStatus(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]bool{
		200: false, 400: false, 401: false, 403: false, 404: false, 408: true, 409: false, 413: false, 429: true, 499: true,
		500: true, 501: false, 502: true, 503: true, 504: true, 505: false, 507: false, 522: true,
	} {
		if got := temporaryStatus(status); got != want {
			t.Errorf("%d: %v", status, got)
		}
	}
}

func TestPatience(t *testing.T) {
	t.Parallel()
	p := newPatience(t.Context(), 400*time.Millisecond)
	defer p.end()
	for range 6 {
		time.Sleep(50 * time.Millisecond)
		p.start()
		time.Sleep(50 * time.Millisecond)
		p.stop()
	}
	if p.ctx.Err() != nil {
		t.Error("it ran out while nobody waited")
	}
	p.start()
	select {
	case <-p.ctx.Done():
	case <-time.After(5 * time.Second):
		t.Error("it did not run out")
	}
}

// A reader's panic is the caller's, and its errors are not changed.
func TestSourceTake(t *testing.T) {
	t.Parallel()
	s, err := Open("example.com/app", Options{})
	if err != nil {
		t.Fatal(err)
	}
	src := s.source("put", ocispec.Descriptor{}, readerFunc(func([]byte) (int, error) { panic("oh") }))
	if n, err := src.take(make([]byte, 1)); n != 0 || !errors.Is(err, errPanicked) {
		t.Errorf("%d, %v", n, err)
	}
	defer func() {
		if v := recover(); v != "oh" {
			t.Errorf("recovered %v", v)
		}
	}()
	src.repanic()
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A blob of which nothing was read is sent anew, in a body of its own; afterwards it is
// not.
func TestSourceAttempts(t *testing.T) {
	t.Parallel()
	s, err := Open("example.com/app", Options{})
	if err != nil {
		t.Fatal(err)
	}
	src := s.source("put", ocispec.Descriptor{}, io.MultiReader(strings.NewReader("data")))
	silence := newPatience(t.Context(), time.Minute)
	defer silence.end()
	src.body(t.Context(), silence)
	first, err := src.attempt()
	if err != nil {
		t.Fatal(err)
	}
	second, err := src.attempt()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := first.Read(make([]byte, 1)); n != 0 || !errors.Is(err, errEnded) {
		t.Errorf("an earlier attempt read %d, %v", n, err)
	}
	if got, err := io.ReadAll(second); string(got) != "data" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := src.attempt(); !errors.Is(err, errConsumed) {
		t.Errorf("got %v", err)
	}
	if src.rewind() {
		t.Error("it was rewound")
	}
	src.end()
	if n, err := second.Read(make([]byte, 1)); n != 0 || !errors.Is(err, errEnded) {
		t.Errorf("after the end: %d, %v", n, err)
	}
}

func TestCheckRedirect(t *testing.T) {
	t.Parallel()
	request := func(url string) *http.Request {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		return req
	}
	for _, c := range []struct {
		from, to string
		want     error
	}{
		{"https://a.test/", "https://b.test/", nil}, {"http://a.test/", "http://b.test/", nil}, {"http://a.test/", "https://b.test/", nil},
		{"https://a.test/", "http://a.test/x", nil}, {"https://a.test/", "http://b.test/", errDowngrade},
	} {
		if got := checkRedirect(request(c.to), []*http.Request{request(c.from)}); got != c.want {
			t.Errorf("%s to %s: %v", c.from, c.to, got)
		}
	}
	if got := checkRedirect(request("https://a.test/"), make([]*http.Request, 10)); got != errRedirects {
		t.Errorf("got %v", got)
	}
}
