package registry_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testfault"
	"imgcrypt/internal/testimage"
	"imgcrypt/internal/testregistry"
	"imgcrypt/store/registry"
)

// pattern yields so many bytes that cost nothing to make.
type pattern struct{ at, size int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at == p.size {
		return 0, io.EOF
	}
	n := min(int64(len(b)), p.size-p.at)
	chunk := patternChunk[p.at%(1<<16):]
	n = min(n, int64(len(chunk)))
	copy(b[:n], chunk)
	p.at += n
	return int(n), nil
}

var patternChunk = noise(80, 1<<16)

// sink is a registry of one blob, of which it keeps the digest only.
type sink struct {
	size int64
	// cut is after how many bytes a download breaks, each time; 0: never.
	cut int64

	mu     sync.Mutex
	hash   hash.Hash
	header http.Header
	length int64
}

func (s *sink) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	switch {
	case req.URL.Path == "/v2/" || req.Method == http.MethodDelete:
	case req.Method == http.MethodHead:
		w.WriteHeader(http.StatusNotFound)
	case req.Method == http.MethodPost:
		w.Header().Set("Location", "/v2/app/blobs/uploads/1?state=a%2Fb")
		w.WriteHeader(http.StatusAccepted)
	case req.Method == http.MethodPatch:
		s.mu.Lock()
		s.hash, s.header = sha256.New(), req.Header.Clone()
		s.length = req.ContentLength
		if _, err := io.Copy(s.hash, req.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		s.mu.Unlock()
		w.Header().Set("Location", "/v2/app/blobs/uploads/1?state=c%2Fd")
		w.WriteHeader(http.StatusAccepted)
	case req.Method == http.MethodPut:
		s.mu.Lock()
		got := digest.NewDigest(digest.SHA256, s.hash)
		s.mu.Unlock()
		if query := req.URL.Query(); query.Get("digest") != got.String() || query.Get("state") != "c/d" {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusCreated)
	default:
		s.download(w, req)
	}
}

func (s *sink) download(w http.ResponseWriter, req *http.Request) {
	from, to := int64(0), s.size-1
	status := http.StatusOK
	if text := req.Header.Get("Range"); text != "" {
		if _, err := fmt.Sscanf(text, "bytes=%d-%d", &from, &to); err != nil {
			panic(err)
		}
		status = http.StatusPartialContent
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, s.size))
	}
	w.Header().Set("Content-Length", fmt.Sprint(to-from+1))
	w.WriteHeader(status)
	var r io.Reader = &pattern{from, to + 1}
	if s.cut > 0 {
		r = io.LimitReader(r, s.cut)
	}
	if n, err := io.Copy(w, struct{ io.Reader }{r}); err != nil || n < to-from+1 {
		panic(http.ErrAbortHandler)
	}
}

// peak measures how much the heap grows while f runs, at its highest.
func peak(f func()) uint64 {
	// So that the heap is what is in use, nearly.
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	stop, done := make(chan struct{}), make(chan struct{})
	highest := before.HeapAlloc
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				runtime.ReadMemStats(&now)
				highest = max(highest, now.HeapAlloc)
			}
		}
	}()
	f()
	close(stop)
	<-done
	return highest - before.HeapAlloc
}

// A gibibyte goes up and comes down, with a connection that breaks eight times, through
// some megabytes. Not parallel: it measures the process.
func TestStreams(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	server := &sink{size: size, cut: size / 8}
	web := httptest.NewServer(server)
	defer web.Close()
	s := open(t, strings.TrimPrefix(web.URL, "http://")+"/app", quick())
	var desc ocispec.Descriptor
	if grown := peak(func() {
		var err error
		if desc, err = s.Put(t.Context(), ocispec.Descriptor{MediaType: layerType}, &pattern{size: size}); err != nil {
			t.Fatal(err)
		}
	}); grown > 8<<20 {
		t.Errorf("the upload took %d bytes of memory", grown)
	}
	if desc.Size != size {
		t.Errorf("%+v", desc)
	}
	if server.length != -1 || server.header.Get("Content-Range") != "" || server.header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("the PATCH has length %d, header %v", server.length, server.header)
	}
	if grown := peak(func() {
		r, err := s.Open(t.Context(), desc)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if n, err := io.Copy(io.Discard, r); n != size || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	}); grown > 8<<20 {
		t.Errorf("the download took %d bytes of memory", grown)
	}
}

// Cancelling an upload ends it soon, whatever the registry does, and takes it back.
func TestCancelUpload(t *testing.T) {
	t.Parallel()
	r := testregistry.StartDebian(t)
	for name, rules := range map[string][]testfault.Rule{
		"quick": nil,
		"slow":  {{Method: "PATCH", Fault: testfault.Slow(16 << 20)}},
		"stuck": {{Method: "PATCH", Fault: testfault.StallUp(1000)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := testfault.Start(t, r.Host(), rules...)
			s := open(t, proxy.Ref("cancel/"+name), quick())
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			time.AfterFunc(200*time.Millisecond, cancel)
			began := time.Now()
			_, err := s.Put(ctx, ocispec.Descriptor{MediaType: layerType}, &pattern{size: 1 << 50})
			if !errors.Is(err, context.Canceled) || errors.Is(err, imgcrypt.ErrInterrupted) || err.Error() != s.Repository()+": put a blob: context canceled" {
				t.Errorf("got %v", err)
			}
			if took := time.Since(began); took > 8*time.Second {
				t.Errorf("it took %s", took)
			}
			for end := time.Now().Add(3 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				var left []string
				for _, upload := range r.Uploads(t) {
					if strings.Contains(upload, "/cancel/"+name+"/") {
						left = append(left, upload)
					}
				}
				if len(left) == 0 {
					break
				} else if time.Now().After(end) {
					t.Fatalf("left %q", left)
				}
			}
		})
	}
}

// Nobody reads from the reader any more when Put has returned.
func TestPutIsDoneWithTheReader(t *testing.T) {
	t.Parallel()
	for _, fault := range []testfault.Fault{
		testfault.CutUp(1000), testfault.Answer(500, "", ""), testfault.Answer(403, "", ""), testfault.Answer(201, "", ""),
		testfault.Answer(202, "", ""), testfault.Lose(),
	} {
		_, s, _ := behind(t, quick(), testfault.Rule{Method: "PATCH", Times: -1, Fault: fault})
		r := &watched{r: rand.New(rand.NewPCG(1, 2)), left: 1 << 20}
		_, err := s.Put(t.Context(), ocispec.Descriptor{MediaType: layerType}, r)
		r.mu.Lock()
		r.over = true
		r.mu.Unlock()
		if err == nil {
			t.Errorf("%s: no error", fault.Name)
		}
		time.Sleep(10 * time.Millisecond)
		r.mu.Lock()
		if r.late {
			t.Errorf("%s: the reader was read after Put had returned", fault.Name)
		}
		r.mu.Unlock()
	}
}

type watched struct {
	mu         sync.Mutex
	r          *rand.Rand
	left       int
	over, late bool
}

func (w *watched) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.late = w.late || w.over
	if w.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), w.left)
	fill(w.r, p[:n])
	w.left -= n
	return n, nil
}

// Skopeo reads what is put here, and the other way round.
func TestSkopeo(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "skopeo")
	ca := testregistry.NewAuthority(t)
	r := testregistry.StartDebianWith(t, testregistry.DebianOptions{TLS: ca, User: "user", Password: password})
	o := login(quick())
	o.CAFile = ca.File
	for i, spec := range []testimage.Spec{{}, {Docker: true}, {Index: true, Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true}} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			desc, err := spec.Write(dir, "v1")
			if err != nil {
				t.Fatal(err)
			}
			s := open(t, r.Ref(fmt.Sprintf("skopeo/%d", i)), o)
			push(t, s, dir, desc)
			if err := s.Tag(t.Context(), "v1", desc); err != nil {
				t.Fatal(err)
			}
			certs := filepath.Dir(ca.File)
			from := "docker://" + s.Repository()
			skopeo(t, "copy", "--all", "--preserve-digests", "--src-cert-dir="+certs, "--src-creds=user:"+password, from+":v1",
				"dir:"+filepath.Join(dir, "out"))
			skopeo(t, "copy", "--all", "--preserve-digests", "--dest-cert-dir="+certs, "--dest-creds=user:"+password,
				"dir:"+filepath.Join(dir, "out"), from+":v2")
			got, err := s.Resolve(t.Context(), "v2")
			if err != nil || got.Digest != desc.Digest || got.MediaType != desc.MediaType || got.Size != desc.Size {
				t.Errorf("got %+v, %v, want %+v", got, err, desc)
			}
		})
	}
}

func skopeo(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("skopeo", append([]string{"--insecure-policy"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// push puts an image of a layout, what it refers to first: known digests and unknown ones
// by turns.
func push(t *testing.T, s *registry.Store, dir string, desc ocispec.Descriptor) {
	t.Helper()
	body, err := testimage.Blob(dir, desc)
	if err != nil {
		t.Fatal(err)
	}
	var refers struct {
		Config            *ocispec.Descriptor
		Layers, Manifests []ocispec.Descriptor
	}
	if imgcrypt.IsManifest(desc) {
		if err := json.Unmarshal(body, &refers); err != nil {
			t.Fatal(err)
		}
	}
	if refers.Config != nil {
		refers.Layers = append(refers.Layers, *refers.Config)
	}
	for _, child := range append(refers.Layers, refers.Manifests...) {
		push(t, s, dir, child)
	}
	want := ocispec.Descriptor{MediaType: desc.MediaType}
	if desc.Size%2 == 0 {
		want = desc
	}
	got, err := s.Put(t.Context(), want, once(body))
	if err != nil || got.Digest != desc.Digest {
		t.Errorf("put %s: %+v, %v", desc.Digest, got, err)
	}
}

// Nothing is spooled to disk, whatever directory for that the environment names.
func TestNothingOnDisk(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	_, s, _ := behind(t, quick(), testfault.Rule{Method: "PATCH", Fault: testfault.CutUp(1 << 20)})
	data := noise(81, 4<<20)
	if _, err := s.Put(t.Context(), ocispec.Descriptor{MediaType: layerType}, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// asking is a transport that notes whether the registry is asked before a blob is sent.
type asking struct {
	http.Transport
	// deaf says that it does not pass that on.
	deaf  bool
	asked []bool
}

func (a *asking) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodPatch {
		a.asked = append(a.asked, req.Header.Get("Expect") != "")
		if a.deaf {
			req.Header.Del("Expect")
		}
	}
	return a.Transport.RoundTrip(req)
}

// A registry that does not say whether it wants a blob is not asked again and again.
func TestUnanswered(t *testing.T) {
	t.Parallel()
	r := testregistry.Start(t)
	for _, deaf := range []bool{false, true} {
		transport := &asking{deaf: deaf}
		transport.ExpectContinueTimeout = 5 * time.Second
		o := quick()
		o.Transport = transport
		s := open(t, r.Ref("app"), o)
		for i := range 3 {
			put(t, s, layerType, fmt.Append(nil, deaf, i))
		}
		if want := []bool{true, !deaf, !deaf}; !slices.Equal(transport.asked, want) {
			t.Errorf("deaf %v: asked %v, want %v", deaf, transport.asked, want)
		}
	}
}
