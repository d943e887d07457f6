package registry

import (
	"context"
	"errors"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

// Has says whether the repository has a blob or a manifest.
func (s *Store) Has(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	if err := s.valid("look for "+desc.Digest.String(), desc); err != nil {
		return false, err
	}
	has, err := s.has(ctx, pull, desc)
	if errors.Is(err, ErrUnauthorized) || errors.Is(err, ErrForbidden) {
		// Of a repository that does not exist yet, some registries say so only to who
		// may make it.
		if has, err := s.has(ctx, push, desc); err == nil {
			return has, nil
		}
	}
	return has, err
}

func (s *Store) has(ctx context.Context, needed access, desc ocispec.Descriptor) (bool, error) {
	rq := &request{
		op: "look for " + desc.Digest.String(), access: needed, method: http.MethodHead,
		path: blobPath(desc.Digest), expect: []int{http.StatusOK},
	}
	if isManifest(desc.MediaType) {
		rq.path = manifestPath(desc.Digest.String())
		rq.header = http.Header{"Accept": {desc.MediaType}}
	}
	a, err := s.send(ctx, rq, s.tries())
	switch {
	case errors.Is(err, imgcrypt.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	}
	defer a.Close()
	// What has another size is no good to anybody.
	return a.ContentLength < 0 || a.ContentLength == desc.Size, nil
}

// Mount makes the repository have a blob that another repository of the same registry
// has, without sending it; fromRepository is its [Store.Repository]. It returns false
// if the registry does not do it, does not have it there, or does not let the user
// read it there: then the blob has to be put.
func (s *Store) Mount(ctx context.Context, desc ocispec.Descriptor, fromRepository string) (bool, error) {
	op := "mount " + desc.Digest.String()
	if err := s.valid(op, desc); err != nil {
		return false, err
	}
	from, err := name.NewRepository(fromRepository)
	if err != nil || from.RegistryStr() != s.repo.RegistryStr() || isManifest(desc.MediaType) {
		return false, nil
	}
	location, done, err := s.begin(ctx, op, &mount{desc.Digest, from}, s.tries())
	switch {
	case answered(err):
		// If it is the login as a whole that is refused, whatever comes next meets it again.
		return false, nil
	case err != nil:
		return false, err
	case !done:
		// The registry has begun an upload instead.
		s.abandon(ctx, location, false)
	}
	return done, nil
}

// mount is what is to be mounted.
type mount struct {
	digest digest.Digest
	from   name.Repository
}

// MountFrom is Mount from another store, if that is a repository as well.
func (s *Store) MountFrom(ctx context.Context, desc ocispec.Descriptor, src imgcrypt.Store) (bool, error) {
	from, ok := src.(*Store)
	if !ok {
		return false, nil
	}
	return s.Mount(ctx, desc, from.Repository())
}

// Delete asks the registry to forget a manifest or an index, and with it all tags
// that name it. Its blobs go when the registry collects its garbage. A registry that
// does not delete is an error that wraps [ErrUnsupported].
func (s *Store) Delete(ctx context.Context, desc ocispec.Descriptor) error {
	op := "delete " + desc.Digest.String()
	if err := s.valid(op, desc); err != nil {
		return err
	}
	if !isManifest(desc.MediaType) {
		return &Error{Repository: s.Repository(), Op: op, Kind: ErrUnsupported, Reason: "only manifests are deleted"}
	}
	t := s.tries()
	a, err := s.send(ctx, &request{
		op: op, access: remove, method: http.MethodDelete, path: manifestPath(desc.Digest.String()),
		expect: []int{http.StatusAccepted, http.StatusOK, http.StatusNoContent},
	}, t)
	s.mu.Lock()
	if s.last.desc.Digest == desc.Digest {
		s.last.desc, s.last.text = ocispec.Descriptor{}, nil
	}
	s.mu.Unlock()
	switch {
	case t.failed > 0 && errors.Is(err, imgcrypt.ErrNotFound):
		// It was the answer to the first attempt that was lost.
		return nil
	case err != nil:
		return err
	}
	return a.Close()
}
