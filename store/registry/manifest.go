package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

// The media types of Docker's manifests.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSigned   = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// imageTypes are the media types of what a name may be that of. Registries are asked
// for these.
func imageTypes() []string {
	return []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerList, dockerManifest}
}

// isManifest says whether a blob of this media type is a manifest to a registry.
func isManifest(mediaType string) bool {
	switch mediaType {
	case dockerSchema1, dockerSigned, "application/vnd.oci.artifact.manifest.v1+json":
		return true
	}
	return slices.Contains(imageTypes(), mediaType)
}

// Resolve implements [imgcrypt.Tags]. ref is a tag or a digest. Besides what any
// request may end in, it returns errors that wrap [ErrSchema1] and [ErrManifestType].
func (s *Store) Resolve(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	op := "resolve " + ref
	if err := s.validRef(ref); err != nil {
		return ocispec.Descriptor{}, err
	}
	rq := &request{
		op: op, method: http.MethodHead, path: manifestPath(ref),
		header: http.Header{"Accept": imageTypes()}, expect: []int{http.StatusOK},
	}
	a, err := s.send(ctx, rq, s.tries())
	if err == nil {
		desc := ocispec.Descriptor{
			MediaType: contentType(a), Digest: digest.Digest(a.Header.Get("Docker-Content-Digest")), Size: a.ContentLength,
		}
		a.Close()
		if isManifest(desc.MediaType) && desc.Digest.Validate() == nil && desc.Size > 0 {
			return desc, s.checkResolved(op, ref, desc)
		}
	} else if e := (*Error)(nil); !errors.As(err, &e) || e.Status == 0 || errors.Is(err, ErrUnauthorized) {
		return ocispec.Descriptor{}, err
	}
	// The registry does not know HEAD, or does not answer it well; or it says no, and
	// only to a GET it says why.
	return s.resolveByGet(ctx, op, ref)
}

func contentType(a *answer) string {
	mediaType, _, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return mediaType
}

func (s *Store) resolveByGet(ctx context.Context, op, ref string) (ocispec.Descriptor, error) {
	rq := &request{
		op: op, method: http.MethodGet, path: manifestPath(ref),
		header: http.Header{"Accept": imageTypes()}, expect: []int{http.StatusOK},
	}
	text, mediaType, err := s.fetchManifest(ctx, rq)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
	if want := digest.Digest(ref); want.Validate() == nil {
		desc.Digest = want.Algorithm().FromBytes(text)
	}
	if !isManifest(desc.MediaType) {
		// Only the text itself is left to say what it is.
		var says struct {
			SchemaVersion int    `json:"schemaVersion"`
			MediaType     string `json:"mediaType"`
		}
		if json.Unmarshal(text, &says) == nil && isManifest(says.MediaType) {
			desc.MediaType = says.MediaType
		} else if says.SchemaVersion == 1 {
			desc.MediaType = dockerSchema1
		}
	}
	return desc, s.checkResolved(op, ref, desc)
}

// fetchManifest reads a whole manifest. A connection that breaks is tried again.
func (s *Store) fetchManifest(ctx context.Context, rq *request) (text []byte, mediaType string, err error) {
	for t := s.tries(); ; {
		a, err := s.send(ctx, rq, t)
		if err != nil {
			return nil, "", err
		}
		if text, err = s.readManifest(ctx, rq.op, a); err == nil {
			return text, contentType(a), nil
		}
		if err := t.again(ctx, err); err != nil {
			return nil, "", err
		}
	}
}

// readManifest reads a manifest out of an answer and closes that.
func (s *Store) readManifest(ctx context.Context, op string, a *answer) ([]byte, error) {
	defer a.giveUp()
	text, err := io.ReadAll(io.LimitReader(a, imgcrypt.MaxManifestSize+1))
	switch {
	case err != nil:
		return nil, s.bodyError(a.silence.ctx, ctx, op, err)
	case len(text) > imgcrypt.MaxManifestSize:
		return nil, s.manifestError(op, imgcrypt.ErrManifest, fmt.Sprintf("the manifest has more than %d bytes", imgcrypt.MaxManifestSize))
	}
	says := digest.Digest(a.Header.Get("Docker-Content-Digest"))
	if says.Validate() == nil && says != says.Algorithm().FromBytes(text) {
		// An answer without a length may have ended early.
		err := s.mismatch(op, "the registry says that the digest is %s", says)
		err.temporary = true
		return nil, err
	}
	return text, nil
}

// checkResolved refuses what is no image, and another digest than was asked for.
func (s *Store) checkResolved(op, ref string, desc ocispec.Descriptor) error {
	switch {
	case desc.MediaType == dockerSchema1 || desc.MediaType == dockerSigned:
		return s.manifestError(op, ErrSchema1, "")
	case !slices.Contains(imageTypes(), desc.MediaType):
		return s.manifestError(op, ErrManifestType, fmt.Sprintf("not an image, but %s", s.printable(fmt.Sprintf("%q", desc.MediaType), 150, nil)))
	case desc.Size > imgcrypt.MaxManifestSize:
		return s.manifestError(op, imgcrypt.ErrManifest, fmt.Sprintf("the manifest has %d bytes, more than %d", desc.Size, imgcrypt.MaxManifestSize))
	}
	if want := digest.Digest(ref); want.Validate() == nil && want != desc.Digest {
		return s.mismatch(op, "the registry has another manifest under this digest, %s", desc.Digest)
	}
	return nil
}

// validRef refuses what is neither a tag nor a digest.
func (s *Store) validRef(ref string) error {
	if digest.Digest(ref).Validate() == nil {
		return nil
	}
	return s.validTag(ref)
}

func (s *Store) validTag(tag string) error {
	parsed, err := name.NewTag(s.Repository() + ":" + tag)
	if err != nil || parsed.TagStr() != tag {
		return fmt.Errorf("%s: %.150q is not a valid tag", s.Repository(), tag)
	}
	return nil
}

// Tag implements [imgcrypt.Tags]. ref is a tag, and desc a manifest or an index that
// is in the repository: its text is put under the tag, which is one step. The
// result is that ref is as before or names desc, also where there is an error.
func (s *Store) Tag(ctx context.Context, ref string, desc ocispec.Descriptor) error {
	op := "tag " + ref
	if err := s.validTag(ref); err != nil {
		return err
	}
	if !isManifest(desc.MediaType) {
		return s.manifestError(op, ErrManifestType, fmt.Sprintf("not an image, but %.150q", desc.MediaType))
	}
	text, err := s.manifestText(ctx, desc)
	if err != nil {
		return err
	}
	return s.sendManifest(ctx, op, ref, desc, text)
}

// manifestText returns a manifest that is in the repository.
func (s *Store) manifestText(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	if last.desc.Digest == desc.Digest && last.desc.MediaType == desc.MediaType && last.desc.Size == desc.Size {
		return last.text, nil
	}
	if desc.Size > imgcrypt.MaxManifestSize {
		return nil, s.manifestError("get "+desc.Digest.String(), imgcrypt.ErrManifest, fmt.Sprintf("the manifest has %d bytes, more than %d", desc.Size, imgcrypt.MaxManifestSize))
	}
	r, err := s.Open(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// putManifest stores a manifest under its digest.
func (s *Store) putManifest(ctx context.Context, src *source) (ocispec.Descriptor, error) {
	op := src.op
	if src.want.Size > imgcrypt.MaxManifestSize {
		return src.want, s.tooLarge(op)
	}
	var text bytes.Buffer
	for buf := make([]byte, 32<<10); ; {
		n, err := src.take(buf)
		text.Write(buf[:n])
		switch {
		case text.Len() > imgcrypt.MaxManifestSize:
			return src.want, s.tooLarge(op)
		case err == io.EOF:
			desc, _ := src.complete()
			if err := s.sendManifest(ctx, op, desc.Digest.String(), desc, text.Bytes()); err != nil {
				return desc, err
			}
			s.mu.Lock()
			s.last.desc, s.last.text = desc, text.Bytes()
			s.mu.Unlock()
			return desc, nil
		case err != nil:
			return src.want, s.sourceError(ctx, op, err)
		}
	}
}

func (s *Store) tooLarge(op string) error {
	return s.manifestError(op, imgcrypt.ErrManifest, fmt.Sprintf("the manifest has more than %d bytes, which registries do not take", imgcrypt.MaxManifestSize))
}

// sendManifest puts a manifest under a tag or its digest.
func (s *Store) sendManifest(ctx context.Context, op, ref string, desc ocispec.Descriptor, text []byte) error {
	rq := &request{
		op: op, access: push, method: http.MethodPut, path: manifestPath(ref), body: text, slow: true,
		header: http.Header{"Content-Type": {desc.MediaType}}, expect: []int{http.StatusCreated},
	}
	a, err := s.send(ctx, rq, s.tries())
	if err != nil {
		return err
	}
	defer a.Close()
	return s.checkDigest(op, a, desc.Digest)
}
