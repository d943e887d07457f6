package testregistry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/internal/testimage"
)

// Push uploads the last image of the layout at dir as name, "app:v1", and returns its full reference.
func (r *Registry) Push(t testing.TB, dir, name string) string {
	t.Helper()
	index, err := testimage.Index(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) == 0 {
		t.Fatalf("no image in the layout %s", dir)
	}
	return r.PushDescriptor(t, dir, index.Manifests[len(index.Manifests)-1], name)
}

// PushDescriptor uploads one image of the layout at dir.
func (r *Registry) PushDescriptor(t testing.TB, dir string, desc ocispec.Descriptor, name string) string {
	t.Helper()
	if err := r.Upload(t.Context(), dir, desc, name); err != nil {
		t.Fatal(err)
	}
	return r.Ref(name)
}

// Upload sends an image and everything that it refers to, the referred first and byte for byte, whatever the blobs
// contain: an index's manifests by their digests, the image itself by its tag. It does not verify what it sends,
// so that damaged images can be pushed; the registry still refuses a blob that does not have its digest. What is there already
// is not sent again.
func (r *Registry) Upload(ctx context.Context, dir string, desc ocispec.Descriptor, name string) error {
	repo, tag, ok := strings.Cut(name, ":")
	if !ok {
		tag = "latest"
	}
	u := uploader{registry: r, ctx: ctx, base: r.url("/v2/" + repo), dir: dir}
	if err := u.manifest(desc, tag); err != nil {
		return fmt.Errorf("push %s: %w", r.Ref(name), err)
	}
	return nil
}

type uploader struct {
	registry *Registry
	ctx      context.Context
	base     string
	dir      string
}

// manifest sends a manifest or an index after what it refers to.
func (u uploader) manifest(desc ocispec.Descriptor, tag string) error {
	body, err := testimage.Blob(u.dir, desc)
	if err != nil {
		return err
	}
	var refers struct {
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	// What is no JSON is sent all the same, as the tests of bad manifests want it.
	_ = json.Unmarshal(body, &refers)
	for _, child := range refers.Manifests {
		if err := u.manifest(child, child.Digest.String()); err != nil {
			return err
		}
	}
	if refers.Config != nil {
		refers.Layers = append(refers.Layers, *refers.Config)
	}
	for _, child := range refers.Layers {
		if err := u.blob(child); err != nil {
			return err
		}
	}
	return u.do(http.MethodPut, u.base+"/manifests/"+tag, desc.MediaType, body, http.StatusCreated, nil)
}

func (u uploader) blob(desc ocispec.Descriptor) error {
	if u.do(http.MethodHead, u.base+"/blobs/"+desc.Digest.String(), "", nil, http.StatusOK, nil) == nil {
		return nil
	}
	body, err := testimage.Blob(u.dir, desc)
	if err != nil {
		return err
	}
	var header http.Header
	if err := u.do(http.MethodPost, u.base+"/blobs/uploads/", "", nil, http.StatusAccepted, &header); err != nil {
		return err
	}
	base, err := url.Parse(u.base)
	if err != nil {
		return err
	}
	// The location may be relative, and may have a query of its own.
	location, err := base.Parse(header.Get("Location"))
	if err != nil {
		return err
	}
	query := location.Query()
	query.Set("digest", desc.Digest.String())
	location.RawQuery = query.Encode()
	return u.do(http.MethodPut, location.String(), "application/octet-stream", body, http.StatusCreated, nil)
}

// do sends a request and expects a status. The answer's header goes to header unless that is nil.
func (u uploader) do(method, target, contentType string, body []byte, want int, header *http.Header) error {
	req, err := http.NewRequestWithContext(u.ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := u.registry.do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != want {
		return fmt.Errorf("%s %s: %s: %s", method, target, resp.Status, bytes.TrimSpace(answer))
	}
	if header != nil {
		*header = resp.Header
	}
	return nil
}

// Manifest fetches a manifest or index as it is in the registry, with its media type: name is "app:v1" or
// "app@sha256:…".
func (r *Registry) Manifest(t testing.TB, name string) (body []byte, mediaType string) {
	t.Helper()
	repo, ref, ok := strings.Cut(name, "@")
	if !ok {
		repo, ref, _ = strings.Cut(name, ":")
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url("/v2/"+repo+"/manifests/"+ref), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header["Accept"] = []string{
		ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest,
		"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json",
	}
	resp, err := r.do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("get %s: %s: %s", r.Ref(name), resp.Status, bytes.TrimSpace(body))
	}
	return body, resp.Header.Get("Content-Type")
}
