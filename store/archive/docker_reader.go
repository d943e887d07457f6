package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/store/internal/blobio"
)

// DockerReader is a docker-archive that is read: what `docker save` writes, in the forms
// that it had over time, or skopeo, podman and others. It is an [imgcrypt.Store] that
// nothing can be put into, and its [imgcrypt.Tags]. It is safe for concurrent use.
//
// Such an archive has configs and layers, but no manifests. So an image is presented with
// an OCI manifest that is made for it, always the same for the same archive. What of an
// image can be opened is known once its name was resolved.
type DockerReader struct {
	path   string
	images []dockerImage

	mu     sync.Mutex
	tar    *tarball
	closed bool
	blobs  map[digest.Digest]dockerBlob
	sums   map[int64]digest.Digest // of files, by where they are
}

// dockerBlob is a file of the archive, or a manifest that was made.
type dockerBlob struct {
	entry entry
	data  []byte
}

func (b dockerBlob) size() int64 {
	if b.data != nil {
		return int64(len(b.data))
	}
	return b.entry.size
}

var (
	_ imgcrypt.Store = (*DockerReader)(nil)
	_ imgcrypt.Tags  = (*DockerReader)(nil)
)

// OpenDocker opens the docker-archive in a file. An error wraps [fs.ErrNotExist] where
// there is none, and [ErrNotArchive] where it is something else.
func OpenDocker(path string) (*DockerReader, error) {
	// To open anything else than a file may take forever.
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w: it is not a file", path, ErrNotArchive)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	t, err := openTarball(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	images, err := readDocker(ctx, t)
	if err != nil {
		t.release()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &DockerReader{path: path, images: images, tar: t, blobs: make(map[digest.Digest]dockerBlob), sums: make(map[int64]digest.Digest)}, nil
}

// readDocker reads the manifest.json of an archive.
func readDocker(ctx context.Context, t *tarball) ([]dockerImage, error) {
	text, err := t.read(ctx, dockerManifestFile, imgcrypt.MaxManifestSize)
	if !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return nil, err
		}
		return parseDocker(text)
	}
	if _, ok := t.find(ocispec.ImageLayoutFile); ok {
		return nil, fmt.Errorf("%w: it is an oci-archive, not a docker-archive", ErrNotArchive)
	}
	if _, ok := t.find(dockerRepositoriesFile); ok {
		return nil, fmt.Errorf("%w: it was written by a Docker before 1.10, which is not read here", ErrNotArchive)
	}
	return nil, fmt.Errorf("%w: it has no file %s", ErrNotArchive, dockerManifestFile)
}

// Resolve implements [imgcrypt.Tags]. An image is named by one of the names that Docker
// has for it, in any form that Docker understands; "@0" is the first one of the archive,
// "" the only one. A name that does not name one image is a [*NameError].
//
// For layers that are compressed, and not named by their digests, this reads the layers.
func (d *DockerReader) Resolve(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	if err := ctx.Err(); err != nil {
		return ocispec.Descriptor{}, err
	}
	t, release, err := d.use()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer release()
	i, err := findDocker(d.images, ref)
	if err != nil {
		return ocispec.Descriptor{}, d.error(err)
	}
	desc, err := d.present(ctx, t, d.images[i])
	if err != nil {
		return ocispec.Descriptor{}, d.error(err)
	}
	return desc, nil
}

// findDocker returns the index of the image that ref names.
func findDocker(images []dockerImage, ref string) (int, error) {
	var found []int
	if text, ok := strings.CutPrefix(ref, "@"); ok {
		if i, err := strconv.Atoi(text); err == nil && i >= 0 && i < len(images) && strconv.Itoa(i) == text {
			return i, nil
		}
	} else {
		full := fullDockerName(ref)
		for i, image := range images {
			if ref == "" || slices.ContainsFunc(image.RepoTags, func(tag string) bool { return fullDockerName(tag) == full }) {
				found = append(found, i)
			}
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	e := &NameError{Ref: ref, Err: imgcrypt.ErrNotFound}
	if len(found) > 1 {
		e.Err = ErrAmbiguous
	}
	for i, image := range images {
		e.Names = append(e.Names, image.RepoTags...)
		if len(image.RepoTags) == 0 {
			e.Names = append(e.Names, "@"+strconv.Itoa(i))
		}
	}
	return 0, e
}

// present makes a manifest for an image and notes where its blobs are.
func (d *DockerReader) present(ctx context.Context, t *tarball, image dockerImage) (ocispec.Descriptor, error) {
	config, err := t.read(ctx, image.Config, imgcrypt.MaxManifestSize)
	if errors.Is(err, fs.ErrNotExist) {
		return ocispec.Descriptor{}, fmt.Errorf("%w: the config %.100q is not in the archive", imgcrypt.ErrManifest, image.Config)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if claimed := claimedDigest(image.Config); claimed != "" && claimed != digest.FromBytes(config) {
		return ocispec.Descriptor{}, fmt.Errorf("config %s: %w: its digest is %s", claimed, imgcrypt.ErrMismatch, digest.FromBytes(config))
	}
	ids, err := diffIDs(config)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if len(ids) != len(image.Layers) {
		return ocispec.Descriptor{}, fmt.Errorf("%w: %d layers, and %d in the config", imgcrypt.ErrManifest, len(image.Layers), len(ids))
	}
	blobs := make(map[digest.Digest]dockerBlob)
	add := func(mediaType string, d digest.Digest, b dockerBlob) ocispec.Descriptor {
		blobs[d] = b
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: b.size()}
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: add(ocispec.MediaTypeImageConfig, digest.FromBytes(config), dockerBlob{data: config}), Layers: []ocispec.Descriptor{},
	}
	for i, name := range image.Layers {
		mediaType, digest, e, err := d.layer(ctx, t, name, ids[i])
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("layer %d (%.100q): %w", i, name, err)
		}
		manifest.Layers = append(manifest.Layers, add(mediaType, digest, dockerBlob{entry: e}))
	}
	text, err := json.Marshal(manifest)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := add(manifest.MediaType, digest.FromBytes(text), dockerBlob{data: text})
	d.mu.Lock()
	defer d.mu.Unlock()
	for digest, b := range blobs {
		d.blobs[digest] = b
	}
	return desc, nil
}

// layer finds out what a layer is. Digests that the archive claims are taken: whoever
// reads the layer will know.
func (d *DockerReader) layer(ctx context.Context, t *tarball, name string, diffID digest.Digest) (mediaType string, sum digest.Digest, e entry, err error) {
	e, ok := t.find(name)
	if !ok {
		return "", "", e, fmt.Errorf("%w: it is not in the archive", imgcrypt.ErrManifest)
	}
	r, err := t.open(ctx, e)
	if err != nil {
		return "", "", e, err
	}
	packed, err := detect(r)
	r.Close()
	switch {
	case err != nil:
		return "", "", e, err
	case packed == plain:
		return ocispec.MediaTypeImageLayer, diffID, e, blobio.CheckDigest(diffID)
	case packed == gzipped:
		mediaType = ocispec.MediaTypeImageLayerGzip
	case packed == zstded:
		mediaType = ocispec.MediaTypeImageLayerZstd
	default:
		return "", "", e, fmt.Errorf("%w: it is compressed with %s, which an image manifest has no type for", imgcrypt.ErrManifest, packed)
	}
	if sum = claimedDigest(name); sum == "" {
		sum, err = d.sum(ctx, t, e)
	}
	return mediaType, sum, e, err
}

// claimedDigest returns the digest of a file whose name is one: of a config, which is
// called by its digest with .json behind it, or of anything in the blobs of a layout.
func claimedDigest(name string) digest.Digest {
	dir, base := path.Split(cleanName(name))
	algorithm := digest.Canonical
	if dir != "" {
		algorithm = digest.Algorithm(path.Base(dir))
		if path.Dir(path.Clean(dir)) != ocispec.ImageBlobsDir {
			return ""
		}
	} else if base, _ = strings.CutSuffix(base, ".json"); base == cleanName(name) {
		return ""
	}
	claimed := digest.NewDigestFromEncoded(algorithm, base)
	if blobio.CheckDigest(claimed) != nil {
		return ""
	}
	return claimed
}

// sum returns the digest of a file.
func (d *DockerReader) sum(ctx context.Context, t *tarball, e entry) (digest.Digest, error) {
	d.mu.Lock()
	sum, ok := d.sums[e.offset]
	d.mu.Unlock()
	if ok {
		return sum, nil
	}
	r, err := t.open(ctx, e)
	if err != nil {
		return "", err
	}
	defer r.Close()
	got, err := blobio.Copy(ctx, io.Discard, r, ocispec.Descriptor{})
	if err != nil {
		return "", err
	}
	if got.Size != e.size {
		return "", io.ErrUnexpectedEOF
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sums[e.offset] = got.Digest
	return got.Digest, nil
}

// Open implements [imgcrypt.Store], for the blobs of images that were resolved. The
// reader reports an error that wraps [imgcrypt.ErrMismatch] instead of the end if the
// file does not have the digest or the size that desc says.
func (d *DockerReader) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := errors.Join(ctx.Err(), blobio.CheckDigest(desc.Digest)); err != nil {
		return nil, err
	}
	t, release, err := d.use()
	if err != nil {
		return nil, err
	}
	defer release()
	d.mu.Lock()
	b, ok := d.blobs[desc.Digest]
	d.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, imgcrypt.ErrNotFound)
	}
	if b.data != nil {
		return blobio.Verify(ctx, io.NopCloser(bytes.NewReader(b.data)), desc), nil
	}
	r, err := t.open(ctx, b.entry)
	if err != nil {
		return nil, d.error(err)
	}
	return blobio.Verify(ctx, r, desc), nil
}

// Has says whether one of the images that were resolved has a blob of that digest and
// size.
func (d *DockerReader) Has(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	if err := errors.Join(ctx.Err(), blobio.CheckDigest(desc.Digest)); err != nil {
		return false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	b, ok := d.blobs[desc.Digest]
	return ok && b.size() == desc.Size, nil
}

// errNotChanged is why a DockerReader stays as it is.
var errNotChanged = fmt.Errorf("a docker-archive is written as a whole, not changed: %w", errors.ErrUnsupported)

// Put is an error that wraps [errors.ErrUnsupported].
func (d *DockerReader) Put(context.Context, ocispec.Descriptor, io.Reader, ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, d.error(errNotChanged)
}

// Tag is an error that wraps [errors.ErrUnsupported].
func (d *DockerReader) Tag(context.Context, string, ocispec.Descriptor) error {
	return d.error(errNotChanged)
}

// Close ends the use of the archive. Readers that are open can be read to their end.
func (d *DockerReader) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.closed = true
		d.tar.release()
	}
	return nil
}

func (d *DockerReader) use() (t *tarball, release func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, nil, d.error(fs.ErrClosed)
	}
	return d.tar, d.tar.use(), nil
}

func (d *DockerReader) error(err error) error { return fmt.Errorf("%s: %w", d.path, err) }
