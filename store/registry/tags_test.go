package registry_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testfault"
	"imgcrypt/internal/testregistry"
	"imgcrypt/store/registry"
)

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSigned   = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// manifest returns a manifest's text that is no other's.
func manifest(mediaType, salt string) []byte {
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"annotations":{"salt":%q},"config":{},"layers":[]}`, mediaType, salt)
}

// serve is a registry of one answer to everything but the first request.
func serve(t *testing.T, answer http.HandlerFunc) *testregistry.Registry {
	return testregistry.StartWith(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path != "/v2/" {
				answer(w, req)
			}
		})
	})
}

func TestResolve(t *testing.T) {
	t.Parallel()
	text := manifest(ocispec.MediaTypeImageManifest, "")
	want := descOf(ocispec.MediaTypeImageManifest, text)
	other := digest.FromString("other").String()
	good := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", want.Digest.String())
		w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		w.Write(text)
	}
	with := func(name, value string) http.HandlerFunc {
		return func(w http.ResponseWriter, req *http.Request) {
			good(&setter{w, name, value}, req)
		}
	}
	onHead := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodHead {
				w.WriteHeader(status)
				return
			}
			good(w, req)
		}
	}
	typed := func(mediaType, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", mediaType)
			w.Write([]byte(text))
		}
	}
	cases := []struct {
		name   string
		answer http.HandlerFunc
		ref    string
		want   error
		text   string
	}{
		{"by HEAD", good, "v1", nil, ""},
		{"by digest", good, want.Digest.String(), nil, ""},
		{"type with parameters", with("Content-Type", ocispec.MediaTypeImageManifest+"; charset=utf-8"), "v1", nil, ""},
		{"no digest", with("Docker-Content-Digest", ""), "v1", nil, ""},
		{"malformed digest", with("Docker-Content-Digest", "sha256:../.."), "v1", nil, ""},
		{"no length", with("Content-Length", ""), "v1", nil, ""},
		{"no type", with("Content-Type", ""), "v1", nil, ""},
		{"type of JSON", with("Content-Type", "application/json"), "v1", nil, ""},
		{"HEAD is 404", onHead(404), "v1", nil, ""},
		{"HEAD is 405", onHead(405), "v1", nil, ""},
		{"HEAD is 403", onHead(403), "v1", nil, ""},
		{"HEAD is 500", onHead(500), "v1", nil, ""},
		{"missing", typed404(`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`), "v1", imgcrypt.ErrNotFound, "not found (404 Not Found, MANIFEST_UNKNOWN: manifest unknown)"},
		{"missing, no JSON", typed404("<html>"), "v1", imgcrypt.ErrNotFound, "not found (404 Not Found)"},
		{"another digest, HEAD", good, other, imgcrypt.ErrMismatch, "another manifest under this digest"},
		{"another digest, GET", with("Content-Type", ""), other, imgcrypt.ErrMismatch, "another manifest under this digest"},
		{"schema 1", typed(dockerSchema1, `{"schemaVersion":1}`), "v1", registry.ErrSchema1, "schema 1"},
		{"signed schema 1", typed(dockerSigned, `{"schemaVersion":1}`), "v1", registry.ErrSchema1, "schema 1"},
		{"schema 1 as JSON", typed("application/json", `{"schemaVersion":1,"fsLayers":[]}`), "v1", registry.ErrSchema1, "schema 1"},
		{"unknown type", typed("application/vnd.example+json", `{"schemaVersion":2}`), "v1", registry.ErrManifestType, `not an image, but "application/vnd.example+json"`},
		{"artifact", typed("application/vnd.oci.artifact.manifest.v1+json", `{}`), "v1", registry.ErrManifestType, "artifact"},
		{"a web page", typed("text/html", "<html>"), "v1", registry.ErrManifestType, "not an image"},
		{"too large", typed(ocispec.MediaTypeImageManifest, `{"a":"`+strings.Repeat("a", imgcrypt.MaxManifestSize)+`"}`), "v1", imgcrypt.ErrManifest, "more than 4194304 bytes"},
		{"odd tag", good, "a/b", nil, "not a valid tag"},
		{"odd digest", good, "sha256:00", nil, "not a valid tag"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := open(t, serve(t, c.answer).Ref("app"), quick())
			got, err := s.Resolve(t.Context(), c.ref)
			if c.text == "" {
				if err != nil || got.Digest != want.Digest || got.Size != want.Size || got.MediaType != want.MediaType {
					t.Errorf("got %+v, %v", got, err)
				}
				return
			}
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %q", err, c.text)
			}
			if (c.want == registry.ErrSchema1 || c.want == registry.ErrManifestType) && !errors.Is(err, imgcrypt.ErrManifest) {
				t.Errorf("%v does not wrap ErrManifest", err)
			}
		})
	}
}

func typed404(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		w.Write([]byte(body))
	}
}

// setter changes a header before it is sent.
type setter struct {
	http.ResponseWriter
	name, value string
}

func (s *setter) Write(p []byte) (int, error) {
	s.Header().Del(s.name)
	if s.value != "" {
		s.Header().Set(s.name, s.value)
	} else if s.name == "Content-Type" {
		s.Header()["Content-Type"] = nil
	} else if s.name == "Content-Length" {
		s.ResponseWriter.(http.Flusher).Flush()
	}
	return s.ResponseWriter.Write(p)
}

// What ends a Tag, the tag is the old image or the new one.
func TestTagUnderFaults(t *testing.T) {
	t.Parallel()
	for _, f := range []struct {
		fault testfault.Fault
		// ok says that one such fault is overcome.
		ok bool
	}{
		{testfault.Drop(), true}, {testfault.Lose(), true}, {testfault.CutUp(10), true}, {testfault.Answer(503, "", ""), true},
		{testfault.AfterBody(testfault.Answer(500, "", "")), true}, {testfault.TooMany(0), true}, {testfault.Unauthorized(""), true},
		{testfault.StallUp(10), true}, {testfault.Answer(400, "MANIFEST_INVALID", "no"), false}, {testfault.Answer(403, "DENIED", "no"), false},
		{testfault.FlipUp(50), false},
	} {
		for _, times := range []int{1, -1} {
			if strings.HasPrefix(f.fault.Name, "stall") && times < 0 {
				continue // It would take as long as all the others.
			}
			t.Run(fmt.Sprintf("%s %d", f.fault.Name, times), func(t *testing.T) {
				t.Parallel()
				o := quick()
				if strings.HasPrefix(f.fault.Name, "stall") {
					o.Silence = 500 * time.Millisecond
				}
				proxy, s, direct := behind(t, o)
				before, after := manifest(dockerManifest, "before"), manifest(dockerManifest, "after")
				old := put(t, direct, dockerManifest, before)
				if err := direct.Tag(t.Context(), "v1", old); err != nil {
					t.Fatal(err)
				}
				root := put(t, s, dockerManifest, after)
				proxy.Add(testfault.Rule{Method: "PUT", Path: "/manifests/v1", Times: times, Fault: f.fault})
				err := s.Tag(t.Context(), "v1", root)
				if (err == nil) != (f.ok && times == 1) {
					t.Errorf("tag: %v", err)
				}
				got, rerr := direct.Resolve(t.Context(), "v1")
				if rerr != nil {
					t.Fatal(rerr)
				}
				switch {
				case err == nil && got.Digest != root.Digest:
					t.Errorf("tagged, but it is %s", got.Digest)
				case strings.HasPrefix(f.fault.Name, "flip"):
					// The registry has no means to notice, but the error tells.
					if !errors.Is(err, imgcrypt.ErrMismatch) {
						t.Errorf("got %v", err)
					}
				case got.Digest != old.Digest && got.Digest != root.Digest:
					t.Errorf("it is %s, neither the old nor the new one", got.Digest)
				case got.Digest == root.Digest && err != nil && f.fault.Name != "lose":
					t.Errorf("%v, but it is the new one", err)
				}
			})
		}
	}
}

func TestTag(t *testing.T) {
	t.Parallel()
	r := testregistry.Start(t)
	s := open(t, r.Ref("app"), quick())
	text := manifest(ocispec.MediaTypeImageManifest, "a")
	desc := put(t, s, ocispec.MediaTypeImageManifest, text)
	r.Forget()
	if err := s.Tag(t.Context(), "v1", desc); err != nil {
		t.Fatal(err)
	}
	// The text was remembered.
	if got, want := r.Requests(), []string{"PUT /v2/app/manifests/v1"}; !slices.Equal(got, want) {
		t.Errorf("requests %q, want %q", got, want)
	}
	// Another store has to fetch it.
	other := open(t, r.Ref("app"), quick())
	if err := other.Tag(t.Context(), "v2", desc); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Resolve(t.Context(), "v2"); err != nil || got.Digest != desc.Digest {
		t.Errorf("%+v, %v", got, err)
	}
	missing := descOf(ocispec.MediaTypeImageManifest, []byte("missing"))
	if err := s.Tag(t.Context(), "v1", missing); !errors.Is(err, imgcrypt.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	if err := s.Tag(t.Context(), "v1", descOf(layerType, text)); !errors.Is(err, registry.ErrManifestType) {
		t.Errorf("a layer: %v", err)
	}
	if err := s.Tag(t.Context(), desc.Digest.String(), desc); err == nil {
		t.Error("a digest was accepted for a tag")
	}
	if got, err := s.Resolve(t.Context(), "v1"); err != nil || got.Digest != desc.Digest {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestPutManifest(t *testing.T) {
	t.Parallel()
	r := testregistry.Start(t)
	s := open(t, r.Ref("app"), quick())
	for _, size := range []int{imgcrypt.MaxManifestSize, imgcrypt.MaxManifestSize + 1} {
		text := bytes.Repeat([]byte(" "), size)
		for _, want := range []ocispec.Descriptor{descOf(dockerManifest, text), {MediaType: dockerManifest}} {
			_, err := s.Put(t.Context(), want, bytes.NewReader(text))
			if fits := size == imgcrypt.MaxManifestSize; (err == nil) != fits || !fits && !errors.Is(err, imgcrypt.ErrManifest) {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
	}
	// A connection that breaks while the text is fetched.
	proxy := testfault.Start(t, r.Host(), testfault.Rule{Method: "GET", Path: "/manifests/", Times: 2, Fault: testfault.Cut(7)})
	faulty := open(t, proxy.Ref("app"), quick())
	text := manifest(dockerManifest, "b")
	desc := put(t, s, dockerManifest, text)
	checkGet(t, faulty, desc, text)
	proxy.Add(testfault.Rule{Method: "HEAD", Path: "/manifests/", Fault: testfault.Answer(405, "", "")},
		testfault.Rule{Method: "GET", Path: "/manifests/", Fault: testfault.Truncate(7)})
	if err := s.Tag(t.Context(), "v1", desc); err != nil {
		t.Fatal(err)
	}
	if got, err := faulty.Resolve(t.Context(), "v1"); err != nil || got.Digest != desc.Digest {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	yes := testregistry.StartDebian(t)
	no := testregistry.StartDebianWith(t, testregistry.DebianOptions{NoDelete: true})
	for _, r := range []*testregistry.Registry{yes, no} {
		s := open(t, r.Ref("app"), quick())
		config := put(t, s, ocispec.MediaTypeImageConfig, []byte("{}"))
		text := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[]}`,
			ocispec.MediaTypeImageManifest, config.MediaType, config.Digest, config.Size)
		desc := put(t, s, ocispec.MediaTypeImageManifest, text)
		if err := s.Tag(t.Context(), "v1", desc); err != nil {
			t.Fatal(err)
		}
		err := s.Delete(t.Context(), desc)
		_, gone := s.Resolve(t.Context(), "v1")
		if r == no {
			if !errors.Is(err, registry.ErrUnsupported) || gone != nil {
				t.Errorf("got %v; afterwards %v", err, gone)
			}
			continue
		}
		if err != nil || !errors.Is(gone, imgcrypt.ErrNotFound) {
			t.Errorf("got %v; afterwards %v", err, gone)
		}
		if err := s.Delete(t.Context(), desc); !errors.Is(err, imgcrypt.ErrNotFound) {
			t.Errorf("a second time: %v", err)
		}
		if err := s.Delete(t.Context(), config); !errors.Is(err, registry.ErrUnsupported) {
			t.Errorf("a blob: %v", err)
		}
	}
}

// That the answer is lost does not make a deletion fail.
func TestDeleteLost(t *testing.T) {
	t.Parallel()
	_, s, direct := behind(t, quick(), testfault.Rule{Method: "DELETE", Path: "/manifests/", Fault: testfault.Lose()})
	desc := put(t, direct, dockerManifest, manifest(dockerManifest, "c"))
	if err := s.Delete(t.Context(), desc); err != nil {
		t.Error(err)
	}
}

func TestMount(t *testing.T) {
	t.Parallel()
	server := &tokens{user: "user", password: password}
	tokens := startTokens(t, server)
	for name, r := range map[string]*testregistry.Registry{"Debian": testregistry.StartDebian(t), "without mounts, with tokens": tokens} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src, dst := open(t, r.Ref("src/app"), login(quick())), open(t, r.Ref("dst/app"), login(quick()))
			data := noise(60, 10_000)
			desc := put(t, src, layerType, data)
			mounted, err := dst.MountFrom(t.Context(), desc, src)
			if err != nil || mounted != (name == "Debian") {
				t.Errorf("%v, %v", mounted, err)
			}
			if mounted {
				checkGet(t, dst, desc, data)
				if left := r.Uploads(t); len(left) > 0 {
					t.Errorf("uploads %q", left)
				}
			}
			if name != "Debian" && !server.wasAsked("repository:src/app:pull") {
				t.Error("no token was asked for that reads the other repository")
			}
			missing := descOf(layerType, []byte("missing"))
			if mounted, err := dst.Mount(t.Context(), missing, src.Repository()); mounted || err != nil {
				t.Errorf("missing: %v, %v", mounted, err)
			}
			if name == "Debian" {
				if left := r.Uploads(t); len(left) > 0 {
					t.Errorf("uploads %q", left)
				}
			}
			for _, from := range []string{"127.0.0.1:1/src/app", "", "src/app", "a b"} {
				if mounted, err := dst.Mount(t.Context(), desc, from); mounted || err != nil {
					t.Errorf("from %q: %v, %v", from, mounted, err)
				}
			}
			if mounted, err := dst.MountFrom(t.Context(), desc, nil); mounted || err != nil {
				t.Errorf("from no registry: %v, %v", mounted, err)
			}
		})
	}
}

// Another error than a refusal of the mount is told.
func TestMountFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		fault testfault.Fault
		want  error
	}{
		{testfault.Answer(403, "DENIED", ""), nil}, {testfault.Answer(401, "", ""), nil}, {testfault.Answer(405, "", ""), nil},
		{testfault.Answer(503, "", ""), registry.ErrUnavailable}, {testfault.Drop(), registry.ErrConnection},
	} {
		_, s, direct := behind(t, quick(), testfault.Rule{Method: "POST", Path: "from=src&mount=sha256", Times: -1, Fault: c.fault})
		desc := put(t, direct, layerType, []byte("data"))
		src := strings.TrimSuffix(s.Repository(), "app") + "src"
		if mounted, err := s.Mount(t.Context(), desc, src); mounted || !errors.Is(err, c.want) {
			t.Errorf("%s: %v, %v", c.fault.Name, mounted, err)
		}
	}
}

func TestHas(t *testing.T) {
	t.Parallel()
	_, s, _ := behind(t, quick())
	desc := put(t, s, layerType, []byte("data"))
	root := put(t, s, dockerManifest, manifest(dockerManifest, "has"))
	larger := desc
	larger.Size++
	for _, c := range []struct {
		desc ocispec.Descriptor
		want bool
	}{{desc, true}, {root, true}, {larger, false}, {descOf(layerType, nil), false}, {descOf(dockerManifest, nil), false}} {
		if has, err := s.Has(t.Context(), c.desc); has != c.want || err != nil {
			t.Errorf("%+v: %v, %v", c.desc, has, err)
		}
	}
}
