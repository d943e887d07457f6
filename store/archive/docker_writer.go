package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/layer"
	"imgcrypt/store/internal/blobio"
)

// dockerConfigType is Docker's media type of image configs.
const dockerConfigType = "application/vnd.docker.container.image.v1+json"

// DockerWriter is a docker-archive that is written, for `docker load`, `podman load`,
// skopeo and others. It is an [imgcrypt.Store] for images with plain layers, and its
// [imgcrypt.Tags]; and safe for concurrent use. Layers are written one at a time.
//
// Layers are kept decompressed, and without manifests nothing in the archive says what
// they were before. So what was put can be opened as long as the writer is open only:
// manifests, indexes, configs, and layers that were not compressed.
type DockerWriter struct {
	file *file

	mu     sync.Mutex
	docs   map[digest.Digest][]byte
	bytes  int
	layers map[digest.Digest]digest.Digest // their diff ids
	// pending are the files of layers that no image with a name has had yet.
	pending map[string]bool
	tags    []dockerTag // in the order in which they were given
}

var (
	_ imgcrypt.Store = (*DockerWriter)(nil)
	_ imgcrypt.Tags  = (*DockerWriter)(nil)
)

// CreateDocker begins a docker-archive in a file. If there is one, it gives way to the
// new one with the first name, and until then stays as it is; but an archive with
// images of other names is left alone, which is an error of [DockerWriter.Tag]. A file
// that is something else is an error that wraps [ErrNotArchive].
func CreateDocker(path string) (*DockerWriter, error) {
	f, err := openFile(path, true, func(ctx context.Context, t *tarball) error {
		_, err := readDocker(ctx, t)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &DockerWriter{
		file: f, docs: make(map[digest.Digest][]byte), layers: make(map[digest.Digest]digest.Digest), pending: make(map[string]bool),
	}, nil
}

// maxDocs bounds how many bytes of manifests, indexes and configs are kept in memory.
const maxDocs = 32 << 20

// Put implements [imgcrypt.Store] for manifests, indexes, image configs and plain layers,
// compressed by gzip or zstd or not at all. Everything else is an error that wraps
// [errors.ErrUnsupported].
func (d *DockerWriter) Put(ctx context.Context, want ocispec.Descriptor, r io.Reader, _ ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	if want.Digest != "" {
		if err := blobio.CheckDigest(want.Digest); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	put := d.putLayer
	switch {
	case imgcrypt.IsManifest(want) || isConfig(want.MediaType):
		put = d.putDoc
	case layer.IsEncrypted(want.MediaType):
		return ocispec.Descriptor{}, d.file.error(fmt.Errorf("a docker-archive holds no encrypted layers: %w", errors.ErrUnsupported))
	case !isLayer(want.MediaType):
		return ocispec.Descriptor{}, d.file.error(fmt.Errorf("a docker-archive holds images only, nothing of type %.100q: %w", want.MediaType, errors.ErrUnsupported))
	}
	got, err := put(ctx, want, r)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write blob: %w", err)
	}
	return got, nil
}

func isConfig(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageConfig || mediaType == dockerConfigType
}

func isLayer(mediaType string) bool {
	return strings.HasPrefix(layer.OCIMediaType(mediaType), "application/vnd.oci.image.layer.")
}

// putDoc keeps a small blob in memory.
func (d *DockerWriter) putDoc(ctx context.Context, want ocispec.Descriptor, r io.Reader) (ocispec.Descriptor, error) {
	var text bytes.Buffer
	got, err := blobio.Copy(ctx, &limitedWriter{&text, imgcrypt.MaxManifestSize}, r, want)
	if err != nil {
		return got, err
	}
	// Nothing is put into an archive that is closed.
	if _, _, err := d.file.find(""); err != nil {
		return got, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.docs[got.Digest]; ok {
		return got, nil
	}
	if d.bytes += text.Len(); d.bytes > maxDocs {
		return got, fmt.Errorf("%w: manifests and configs have more than %d bytes", imgcrypt.ErrManifest, maxDocs)
	}
	d.docs[got.Digest] = text.Bytes()
	return got, nil
}

// limitedWriter takes so many bytes.
type limitedWriter struct {
	w    io.Writer
	left int
}

func (l *limitedWriter) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, fmt.Errorf("%w: more than %d bytes", imgcrypt.ErrManifest, imgcrypt.MaxManifestSize)
	}
	return l.w.Write(p)
}

// layerFile is the name of a layer's file, as skopeo has it.
func layerFile(diffID digest.Digest) string { return diffID.Encoded() + ".tar" }

// putLayer writes a layer, decompressed.
func (d *DockerWriter) putLayer(ctx context.Context, want ocispec.Descriptor, r io.Reader) (got ocispec.Descriptor, err error) {
	err = d.file.stream(ctx, want, r, func(w *writer, r io.Reader) error {
		var diffID digest.Digest
		err := w.add(len(layerFile(digest.FromBytes(nil))), func(out io.Writer) (name string, err error) {
			if got, diffID, err = unpackLayer(ctx, out, r, want); err != nil {
				return "", err
			}
			return layerFile(diffID), nil
		})
		if err == nil {
			d.mu.Lock()
			d.layers[got.Digest] = diffID
			d.pending[layerFile(diffID)] = true
			d.mu.Unlock()
		}
		return err
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return got, nil
}

// unpackLayer writes what is compressed in a blob to w and returns the blob's descriptor
// and the digest of what was written.
func unpackLayer(ctx context.Context, w io.Writer, r io.Reader, want ocispec.Descriptor) (got ocispec.Descriptor, diffID digest.Digest, err error) {
	blob := blobio.NewReader(ctx, r, want)
	head := make([]byte, magicSize)
	n, err := blobio.ReadPiece(blob, head)
	if err == nil || err == io.EOF {
		diffID, err = unpack(w, io.MultiReader(bytes.NewReader(head[:n]), blob), compressionOf(head[:n]))
	}
	// What is behind the compressed stream belongs to the blob. And if it is not the
	// blob that it should be, that is the reason, not what became of it.
	if blob.Err() == nil {
		_, drainErr := blobio.Pump(io.Discard, blob, make([]byte, 32<<10))
		if err == nil {
			err = drainErr
		}
	}
	if blobErr := blob.Err(); blobErr != nil && blobErr != io.EOF {
		err = blobErr
	}
	return blob.Desc(), diffID, err
}

// unpack writes what is compressed in r to w and returns its digest.
func unpack(w io.Writer, r io.Reader, c compression) (digest.Digest, error) {
	tar, err := decompress(r, c)
	if err != nil {
		return "", fmt.Errorf("decompress: %w", err)
	}
	defer tar.Close()
	digester := digest.Canonical.Digester()
	source := &namedReader{tar, c}
	if _, err := blobio.Pump(io.MultiWriter(w, digester.Hash()), source, make([]byte, blobio.Piece)); err != nil {
		return "", err
	}
	return digester.Digest(), nil
}

// namedReader says of errors where they are from.
type namedReader struct {
	r io.Reader
	c compression
}

func (n *namedReader) Read(p []byte) (int, error) {
	m, err := n.r.Read(p)
	if err != nil && err != io.EOF && n.c != plain {
		err = fmt.Errorf("decompress %s: %w", n.c, err)
	}
	return m, err
}

// Open implements [imgcrypt.Store] for what was put and is kept as it was put.
func (d *DockerWriter) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := errors.Join(ctx.Err(), blobio.CheckDigest(desc.Digest)); err != nil {
		return nil, err
	}
	d.mu.Lock()
	text, isDoc := d.docs[desc.Digest]
	diffID, isLayer := d.layers[desc.Digest]
	d.mu.Unlock()
	var r io.ReadCloser
	var err error
	switch {
	case isDoc:
		r = io.NopCloser(bytes.NewReader(text))
		_, _, err = d.file.find("") // It may be closed.
	case isLayer && diffID == desc.Digest:
		r, err = d.file.open(ctx, layerFile(diffID))
	}
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, imgcrypt.ErrNotFound)
	}
	return blobio.Verify(ctx, r, desc), nil
}

// Has says whether a blob of that digest was put. A layer that was may be kept in another
// form, and not be there to open.
func (d *DockerWriter) Has(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	if err := errors.Join(ctx.Err(), blobio.CheckDigest(desc.Digest)); err != nil {
		return false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, isDoc := d.docs[desc.Digest]
	_, isLayer := d.layers[desc.Digest]
	return isDoc || isLayer, nil
}

// Close ends the use of the archive. What was put without a name is discarded.
func (d *DockerWriter) Close() error { return d.file.close() }
