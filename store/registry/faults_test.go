package registry_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testfault"
	"imgcrypt/internal/testregistry"
	"imgcrypt/store/registry"
)

// behind starts a registry and a proxy in front of it, and returns a store through the
// proxy and one without.
func behind(t *testing.T, o registry.Options, rules ...testfault.Rule) (proxy *testfault.Proxy, faulty, direct *registry.Store) {
	t.Helper()
	r := testregistry.Start(t)
	proxy = testfault.Start(t, r.Host(), rules...)
	return proxy, open(t, proxy.Ref("app"), o), open(t, r.Ref("app"), quick())
}

// ranges lists the ranges that were asked for.
func ranges(p *testfault.Proxy) []string {
	var list []string
	for _, r := range p.Requests() {
		if r.Method == http.MethodGet && strings.Contains(r.Path, "/blobs/") {
			list = append(list, r.Header.Get("Range"))
		}
	}
	return list
}

// With each of these faults a blob is read all the same.
func TestDownloadRecovers(t *testing.T) {
	t.Parallel()
	data := noise(1, 3<<20)
	size := int64(len(data))
	rule := func(f testfault.Fault) testfault.Rule {
		return testfault.Rule{Method: http.MethodGet, Path: "/blobs/", Fault: f}
	}
	times := func(n int, f testfault.Fault) testfault.Rule {
		r := rule(f)
		r.Times = n
		return r
	}
	cases := []struct {
		name  string
		rules []testfault.Rule
		// again is how much may come twice.
		again int64
	}{
		{"no fault", nil, 0},
		{"dropped", []testfault.Rule{rule(testfault.Drop())}, 0},
		{"cut before the first byte", []testfault.Rule{rule(testfault.Cut(0))}, 0},
		{"cut after a byte", []testfault.Rule{rule(testfault.Cut(1))}, 0},
		{"cut in the middle", []testfault.Rule{rule(testfault.Cut(size / 2))}, 0},
		{"cut before the last byte", []testfault.Rule{rule(testfault.Cut(size - 1))}, 0},
		{"cut thrice", []testfault.Rule{times(3, testfault.Cut(1000))}, 0},
		// More often than there are attempts, but each gains something.
		{"cut after each half", []testfault.Rule{times(2, testfault.Cut(1<<20)), times(1, testfault.Cut(900_000))}, 0},
		{"orderly end in the middle", []testfault.Rule{rule(testfault.Truncate(12345))}, 0},
		{"stalled", []testfault.Rule{rule(testfault.Stall(12345))}, 0},
		{"stalled before the first byte", []testfault.Rule{rule(testfault.Stall(0))}, 0},
		{"slow", []testfault.Rule{rule(testfault.Slow(6 << 20))}, 0},
		{"503", []testfault.Rule{rule(testfault.Answer(503, "UNAVAILABLE", "not now"))}, 0},
		{"500, 502, 504", []testfault.Rule{rule(testfault.Answer(500, "", "")), rule(testfault.Answer(502, "", "")), rule(testfault.Answer(504, "", ""))}, 0},
		{"429", []testfault.Rule{rule(testfault.TooMany(1))}, 0},
		{"401 without a challenge", []testfault.Rule{rule(testfault.Unauthorized(""))}, 0},
		{"401 with a challenge", []testfault.Rule{rule(testfault.Unauthorized(`Basic realm="test"`))}, 0},
		{"cut, then 429, 503 and 401", []testfault.Rule{
			rule(testfault.Cut(1000)), rule(testfault.TooMany(0)), rule(testfault.Answer(503, "", "")), rule(testfault.Unauthorized("")),
		}, 0},
		{"cut, and ranges are ignored", []testfault.Rule{
			rule(testfault.Cut(1 << 20)), {Header: "Range", Times: -1, Fault: testfault.Without("Range")},
		}, 1 << 20},
		{"cut twice, and ranges are ignored", []testfault.Rule{
			rule(testfault.Cut(1 << 20)), {Header: "Range", Times: 1, Fault: withoutRange(1 << 19)}, {Header: "Range", Times: -1, Fault: testfault.Without("Range")},
		}, 2 << 20},
		{"cut, and ranges are refused", []testfault.Rule{
			rule(testfault.Cut(1 << 20)), {Header: "Range", Times: -1, Fault: testfault.Answer(416, "RANGE_INVALID", "no")},
		}, 1 << 20},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := quick()
			if strings.HasPrefix(c.name, "stalled") {
				o.Silence = time.Second
			}
			proxy, faulty, direct := behind(t, o, c.rules...)
			desc := put(t, direct, layerType, data)
			if has, err := faulty.Has(t.Context(), desc); !has || err != nil {
				t.Errorf("has %v, %v", has, err)
			}
			checkGet(t, faulty, desc, data)
			var down int64
			for _, r := range proxy.Requests() {
				if r.Status == http.StatusOK || r.Status == http.StatusPartialContent {
					down += r.Down
				}
			}
			// What the proxy did not send of a piece that it cut counts as well.
			if limit := size + c.again + 200_000; down > limit {
				t.Errorf("%d bytes went through for %d, ranges %q", down, size, ranges(proxy))
			}
			if len(c.rules) > 0 && proxy.Faults() == 0 {
				t.Error("there was no fault")
			}
		})
	}
}

// withoutRange ignores the range and cuts.
func withoutRange(after int64) testfault.Fault {
	return testfault.Fault{Name: "without range, cut", Wrap: func(next http.Handler) http.Handler {
		return testfault.Without("Range").Wrap(testfault.Cut(after).Wrap(next))
	}}
}

// With these a blob is not read, and the error says why.
func TestDownloadFails(t *testing.T) {
	t.Parallel()
	data := noise(2, 200_000)
	cases := []struct {
		name  string
		fault testfault.Fault
		want  error
		text  string
		// quick says that it is not tried again.
		quick bool
	}{
		{"other bytes", testfault.Flip(100_000), imgcrypt.ErrMismatch, "digest", true},
		{"another length", testfault.Headers(func(h http.Header) { h.Set("Content-Length", "200001") }), imgcrypt.ErrMismatch, "200001 bytes, not 200000", true},
		{"cut again and again", testfault.Cut(10), registry.ErrConnection, "connection broke", false},
		{"dropped again and again", testfault.Drop(), registry.ErrConnection, "connection broke", false},
		{"truncated again and again", testfault.Truncate(10), registry.ErrConnection, "connection broke", false},
		{"stalled again and again", testfault.Stall(10), registry.ErrConnection, "nothing was heard", false},
		{"503", testfault.Answer(503, "UNAVAILABLE", "in maintenance"), registry.ErrUnavailable, "503 Service Unavailable, UNAVAILABLE: in maintenance", false},
		{"500 without words", testfault.Answer(500, "", ""), registry.ErrUnavailable, "500 Internal Server Error", false},
		{"429", testfault.TooMany(0), registry.ErrRateLimited, "too many requests (429 Too Many Requests, TOOMANYREQUESTS: slow down)", false},
		{"429 for long", testfault.TooMany(3600), registry.ErrRateLimited, "try again in 1h0m0s", true},
		{"401", testfault.Unauthorized(""), registry.ErrUnauthorized, "wants a login, and there are no credentials", true},
		{"403", testfault.Answer(403, "DENIED", "not for you"), registry.ErrForbidden, "access denied, and there are no credentials for the registry (403 Forbidden, DENIED: not for you)", true},
		{"404", testfault.Answer(404, "BLOB_UNKNOWN", "blob unknown"), imgcrypt.ErrNotFound, "not found", true},
		{"400", testfault.Answer(400, "NAME_INVALID", "what?"), registry.ErrRejected, "rejected by the registry (400 Bad Request, NAME_INVALID: what?)", true},
		{"501", testfault.Answer(501, "", ""), registry.ErrUnavailable, "501", true},
		{"redirected for ever", testfault.Redirect(""), registry.ErrRejected, "redirects without an end", false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := quick()
			if strings.HasPrefix(c.name, "stalled") {
				o.Silence = time.Second
			}
			proxy, faulty, direct := behind(t, o, testfault.Rule{Method: http.MethodGet, Path: "/blobs/", Times: -1, Fault: c.fault})
			desc := put(t, direct, layerType, data)
			_, err := get(t.Context(), faulty, desc)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %q", err, c.text)
			}
			if errors.Is(err, io.EOF) {
				t.Errorf("%v is io.EOF", err)
			}
			requests := len(ranges(proxy))
			if c.quick && requests > 2 || !c.quick && requests < 4 {
				t.Errorf("%d requests", requests)
			}
		})
	}
}

// The wrong part of a blob is not taken for the right one.
func TestDownloadWrongRange(t *testing.T) {
	t.Parallel()
	data := noise(3, 200_000)
	_, faulty, direct := behind(t, quick(),
		testfault.Rule{Method: http.MethodGet, Path: "/blobs/", Fault: testfault.Cut(100_000)},
		testfault.Rule{Header: "Range", Times: -1, Fault: testfault.Headers(func(h http.Header) { h.Set("Content-Range", "bytes 0-99999/200000") })},
	)
	desc := put(t, direct, layerType, data)
	if _, err := get(t.Context(), faulty, desc); !errors.Is(err, imgcrypt.ErrMismatch) {
		t.Errorf("got %v", err)
	}
}

// A reader that is closed or cancelled in the middle does not go on.
func TestDownloadEnds(t *testing.T) {
	t.Parallel()
	data := noise(4, 1<<20)
	_, s, direct := behind(t, quick(), testfault.Rule{Method: http.MethodGet, Path: "/blobs/", Times: -1, Fault: testfault.Slow(1 << 20)})
	desc := put(t, direct, layerType, data)
	r, err := s.Open(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 10)); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if n, err := r.Read(make([]byte, 10)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("after the end: %d, %v", n, err)
	}
}

// source is a blob to be put, and whether its reader can go back.
type putCase struct {
	name   string
	known  bool
	seeker bool
}

func putCases() []putCase {
	return []putCase{{"unknown, once", false, false}, {"known, once", true, false}, {"unknown, seeker", false, true}, {"known, seeker", true, true}}
}

func (c putCase) want(data []byte) ocispec.Descriptor {
	if c.known {
		return descOf(layerType, data)
	}
	return ocispec.Descriptor{MediaType: layerType}
}

func (c putCase) reader(data []byte) io.Reader {
	if c.seeker {
		return bytes.NewReader(data)
	}
	return once(data)
}

func TestUploadRecovers(t *testing.T) {
	t.Parallel()
	rule := func(method, path string, f testfault.Fault) testfault.Rule {
		return testfault.Rule{Method: method, Path: path, Fault: f}
	}
	const uploads = "/blobs/uploads/"
	cases := []struct {
		name string
		rule testfault.Rule
		// consumed says that a reader that cannot go back cannot be helped.
		consumed bool
		// patches is how often the blob may be sent.
		patches int
	}{
		{"POST dropped", rule("POST", uploads, testfault.Drop()), false, 1},
		{"POST lost", rule("POST", uploads, testfault.Lose()), false, 1},
		{"POST 503", rule("POST", uploads, testfault.Answer(503, "", "")), false, 1},
		{"POST 429", rule("POST", uploads, testfault.TooMany(0)), false, 1},
		{"POST 401", rule("POST", uploads, testfault.Unauthorized("")), false, 1},
		{"PATCH dropped", rule("PATCH", uploads, testfault.Drop()), false, 2},
		{"PATCH 503", rule("PATCH", uploads, testfault.Answer(503, "", "")), false, 2},
		{"PATCH 429", rule("PATCH", uploads, testfault.TooMany(1)), false, 2},
		{"PATCH 401", rule("PATCH", uploads, testfault.Unauthorized("")), false, 2},
		{"PATCH 404", rule("PATCH", uploads, testfault.Answer(404, "BLOB_UPLOAD_UNKNOWN", "")), false, 2},
		{"PATCH 416", rule("PATCH", uploads, testfault.Answer(416, "", "")), false, 2},
		{"PATCH 417", rule("PATCH", uploads, testfault.Answer(417, "", "")), false, 2},
		{"PATCH cut after a byte", rule("PATCH", uploads, testfault.CutUp(1)), true, 2},
		{"PATCH cut in the middle", rule("PATCH", uploads, testfault.CutUp(1<<20)), true, 2},
		{"PATCH cut before the last byte", rule("PATCH", uploads, testfault.CutUp(2<<20-1)), true, 2},
		{"PATCH stalled", rule("PATCH", uploads, testfault.StallUp(1000)), true, 2},
		{"PATCH slow", rule("PATCH", uploads, testfault.Slow(16<<20)), false, 1},
		{"PATCH lost", rule("PATCH", uploads, testfault.Lose()), true, 2},
		{"PATCH 503 after the body", rule("PATCH", uploads, testfault.AfterBody(testfault.Answer(503, "", ""))), true, 2},
		{"PATCH 401 after the body", rule("PATCH", uploads, testfault.AfterBody(testfault.Unauthorized(""))), true, 2},
		{"PATCH with other bytes", rule("PATCH", uploads, testfault.FlipUp(12345)), true, 2},
		{"PUT dropped", rule("PUT", uploads, testfault.Drop()), false, 1},
		{"PUT lost", rule("PUT", uploads, testfault.Lose()), false, 1},
		{"PUT 503", rule("PUT", uploads, testfault.Answer(503, "", "")), false, 1},
		{"PUT 429", rule("PUT", uploads, testfault.TooMany(0)), false, 1},
		{"PUT 401", rule("PUT", uploads, testfault.Unauthorized("")), false, 1},
		{"PUT 404", rule("PUT", uploads, testfault.Answer(404, "BLOB_UPLOAD_UNKNOWN", "")), true, 2},
	}
	data, large := noise(5, 2<<20), noise(5, 24<<20)
	for _, c := range cases {
		for _, p := range putCases() {
			t.Run(c.name+", "+p.name, func(t *testing.T) {
				t.Parallel()
				o := quick()
				data := data
				if strings.HasSuffix(c.name, "stalled") {
					o.Silence = time.Second
					// More than the sockets on the way take in.
					data = large
				}
				proxy, faulty, direct := behind(t, o, c.rule)
				want := descOf(layerType, data)
				got, err := faulty.Put(t.Context(), p.want(data), p.reader(data))
				if c.consumed && !p.seeker {
					if !errors.Is(err, imgcrypt.ErrInterrupted) {
						t.Fatalf("got %v", err)
					}
					if has, err := direct.Has(t.Context(), want); has || err != nil {
						t.Errorf("after the interruption: %v, %v", has, err)
					}
					// As whoever gets this error does.
					got, err = faulty.Put(t.Context(), p.want(data), p.reader(data))
				}
				if err != nil {
					t.Fatal(err)
				}
				if got.Digest != want.Digest || got.Size != want.Size {
					t.Errorf("got %+v", got)
				}
				checkGet(t, direct, want, data)
				patches := 0
				for _, r := range proxy.Requests() {
					if r.Method == http.MethodPatch {
						patches++
					}
				}
				if patches > c.patches && !strings.HasSuffix(c.name, "stalled") || proxy.Faults() != 1 {
					t.Errorf("%d times the blob, %d faults", patches, proxy.Faults())
				}
			})
		}
	}
}

func TestUploadFails(t *testing.T) {
	t.Parallel()
	cases := []struct {
		method string
		fault  testfault.Fault
		want   error
		text   string
	}{
		{"POST", testfault.Answer(403, "DENIED", "read only"), registry.ErrForbidden, "DENIED: read only"},
		{"POST", testfault.Answer(405, "UNSUPPORTED", "a mirror"), registry.ErrUnsupported, "UNSUPPORTED: a mirror"},
		{"POST", testfault.Unauthorized(""), registry.ErrUnauthorized, "there are no credentials"},
		{"POST", testfault.Answer(503, "", ""), registry.ErrUnavailable, "503"},
		{"POST", testfault.Answer(404, "NAME_UNKNOWN", "no such repository"), imgcrypt.ErrNotFound, "NAME_UNKNOWN"},
		{"POST", testfault.Headers(func(h http.Header) { h.Del("Location") }), registry.ErrRejected, "does not say where the upload goes on"},
		{"PATCH", testfault.Answer(403, "DENIED", "quota"), registry.ErrForbidden, "DENIED: quota"},
		{"PATCH", testfault.Answer(413, "", ""), registry.ErrRejected, "413"},
		{"PATCH", testfault.CutUp(1), registry.ErrConnection, "connection broke"},
		{"PATCH", testfault.FlipUp(1), registry.ErrRejected, "other bytes reached the registry"},
		{"PATCH", testfault.Answer(429, "", "", "Retry-After", "7200"), registry.ErrRateLimited, "try again in 2h0m0s"},
		{"PUT", testfault.Answer(403, "DENIED", "signed images only"), registry.ErrForbidden, "signed images only"},
		{"PUT", testfault.Drop(), registry.ErrConnection, "connection broke"},
		{"PUT", testfault.Headers(func(h http.Header) { h.Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64)) }), imgcrypt.ErrMismatch, "the registry stored sha256:0000"},
	}
	data := noise(6, 50_000)
	for _, c := range cases {
		t.Run(c.method+" "+c.fault.Name, func(t *testing.T) {
			t.Parallel()
			_, faulty, direct := behind(t, quick(), testfault.Rule{Method: c.method, Path: "/blobs/uploads/", Times: -1, Fault: c.fault})
			_, err := faulty.Put(t.Context(), ocispec.Descriptor{MediaType: layerType}, bytes.NewReader(data))
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %q", err, c.text)
			}
			if has, err := direct.Has(t.Context(), descOf(layerType, data)); err != nil || has && c.method != "PUT" {
				t.Errorf("afterwards: %v, %v", has, err)
			}
		})
	}
}

// A registry that is told to be left alone for long is not called interrupted: nobody
// would wait.
func TestUploadLongPause(t *testing.T) {
	t.Parallel()
	_, faulty, _ := behind(t, quick(), testfault.Rule{Method: "PATCH", Fault: testfault.AfterBody(testfault.TooMany(100))})
	_, err := faulty.Put(t.Context(), ocispec.Descriptor{MediaType: layerType}, once(noise(7, 1000)))
	var e *registry.Error
	if errors.Is(err, imgcrypt.ErrInterrupted) || !errors.As(err, &e) || e.After != 100*time.Second || e.Status != 429 {
		t.Errorf("got %v", err)
	}
}
