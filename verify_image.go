package imgcrypt

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

var (
	// ErrNotEncrypted means that a layer is readable for everybody.
	ErrNotEncrypted = errors.New("not encrypted")
	// ErrDiffID means that a layer's uncompressed content is not what the image's
	// config says.
	ErrDiffID = errors.New("wrong diff id")
)

// NoticeHint: the digest in a layer's secret is not that of the plain blob. Other tools
// write another one where they compress while encrypting; nothing is wrong with it.
const NoticeHint NoticeKind = "hint"

// VerifyOptions are the options of [Verify].
type VerifyOptions struct {
	// Identities open the layers.
	Identities []keys.Identity
	// Platform chooses manifests; nil chooses all.
	Platform func(*ocispec.Platform) bool
	// RequireEncrypted makes a layer that is not encrypted an error.
	RequireEncrypted bool
	// Jobs is how many layers are read at the same time. Zero: one.
	Jobs int
	// Notify is told what is no error. nil: nobody is.
	Notify func(Notice)
}

// Verified is what [Verify] has read.
type Verified struct {
	Manifests int
	// Layers counts distinct layers; Encrypted those of them that are encrypted.
	Layers, Encrypted int
}

// Verify reads all of the image root in s: indexes, manifests, configs and layers. It
// checks every digest and size, the MAC of each encrypted layer, and the diff id of each
// layer against the config. Layers with urls are not read, and are reported as readable.
//
// The error is nil only if all of it holds. Otherwise it joins, as [errors.Join] does, what
// was found about each layer: [*LayerError]s that wrap layer.ErrTampered,
// keys.ErrNoKey, [ErrMismatch], [ErrDiffID] or [ErrNotEncrypted].
func Verify(ctx context.Context, s Store, root ocispec.Descriptor, o VerifyOptions) (Verified, error) {
	if o.Notify == nil {
		o.Notify = func(Notice) {}
	}
	v := &verification{store: s, o: o, seen: make(map[string]bool), layers: make(map[digest.Digest]bool)}
	if err := v.plan(ctx, root); err != nil {
		return v.done, err
	}
	found := make([]error, len(v.tasks))
	var group errgroup.Group
	group.SetLimit(max(1, o.Jobs))
	for i, task := range v.tasks {
		group.Go(func() error {
			found[i] = task(ctx)
			return nil
		})
	}
	_ = group.Wait()
	if err := ctx.Err(); err != nil {
		return v.done, err
	}
	return v.done, errors.Join(found...)
}

// verification is one run of Verify.
type verification struct {
	store  Store
	o      VerifyOptions
	done   Verified
	seen   map[string]bool // layers with their diff ids
	layers map[digest.Digest]bool
	tasks  []func(context.Context) error
	mu     sync.Mutex // for Notify
}

// plan reads manifests and configs, and collects the work on layers.
func (v *verification) plan(ctx context.Context, root ocispec.Descriptor) error {
	r := &imageReader{store: v.store}
	err := visit(ctx, r, root, 0, func(entry ocispec.Descriptor) bool {
		return entry.Platform == nil || v.o.Platform == nil || v.o.Platform(entry.Platform)
	}, func(d *document) error {
		platform, err := r.platformOf(ctx, d)
		if err != nil && !errors.Is(err, ErrManifest) {
			return err
		}
		if v.o.Platform != nil && !v.o.Platform(platform) {
			return nil
		}
		v.done.Manifests++
		ids, err := v.diffIDs(ctx, r, d)
		if err != nil {
			return fmt.Errorf("manifest %s: %w", d.desc.Digest, err)
		}
		for i, desc := range d.children {
			l := Layer{Desc: desc, Index: i, Count: len(d.children), Manifest: d.desc, Platform: platform}
			v.add(l, ids)
		}
		return nil
	})
	if err == nil && v.done.Manifests == 0 {
		return fmt.Errorf("%w: the image has no manifest for this platform", ErrNothingSelected)
	}
	return err
}

// diffIDs returns those that the config of a manifest lists, or nil if it is none of an
// image's.
func (v *verification) diffIDs(ctx context.Context, r *imageReader, d *document) ([]digest.Digest, error) {
	if d.config.Digest == "" {
		return nil, nil
	}
	text, err := r.read(ctx, d.config)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if oci(d.config.MediaType) != ocispec.MediaTypeImageConfig {
		return nil, nil
	}
	var config struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, fmt.Errorf("%w: config %s: %w", ErrManifest, d.config.Digest, err)
	}
	ids := config.RootFS.DiffIDs
	if isAttestation(d.desc) || len(ids) == 0 {
		return nil, nil
	}
	if len(ids) != len(d.children) {
		return nil, fmt.Errorf("%w: its config has %d diff ids for %d layers", ErrDiffID, len(ids), len(d.children))
	}
	return ids, nil
}

// add collects the work on a layer, unless the same is there already.
func (v *verification) add(l Layer, ids []digest.Digest) {
	var id digest.Digest
	if ids != nil {
		id = ids[l.Index]
	}
	key := fmt.Sprintf("%s %s %v", l.Desc.Digest, id, l.Desc.Annotations)
	if v.seen[key] {
		return
	}
	v.seen[key] = true
	encrypted := layer.IsEncrypted(l.Desc.MediaType)
	if !v.layers[l.Desc.Digest] {
		v.layers[l.Desc.Digest] = true
		v.done.Layers++
		if encrypted {
			v.done.Encrypted++
		}
	}
	v.tasks = append(v.tasks, func(ctx context.Context) error {
		err := v.layer(ctx, l, id)
		if !encrypted {
			v.notify(Notice{Kind: NoticeReadable, Desc: l.Desc, Text: fmt.Sprintf("layer %d (%s) of manifest %s is not encrypted", l.Index, l.Desc.Digest, l.Manifest.Digest)})
			if v.o.RequireEncrypted {
				err = errors.Join(err, ErrNotEncrypted)
			}
		}
		if err == nil || ctx.Err() != nil {
			return nil
		}
		return &LayerError{Index: l.Index, Digest: l.Desc.Digest, Platform: l.Platform, Err: err}
	})
}

func (v *verification) notify(n Notice) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.o.Notify(n)
}

// layer reads one layer to its end.
func (v *verification) layer(ctx context.Context, l Layer, id digest.Digest) error {
	if !layer.IsEncrypted(l.Desc.MediaType) {
		if len(l.Desc.URLs) > 0 {
			return nil
		}
		r, err := openBlob(ctx, v.store, l.Desc, l.Platform)
		if err != nil {
			return err
		}
		defer r.Close()
		return checkContent(newVerifier(r, l.Desc), l.Desc.MediaType, id)
	}
	secret, err := keys.Open(ctx, v.o.Identities, l.Desc.Annotations)
	if err != nil {
		return err
	}
	r, plain, err := openSealed(ctx, v.store, l.Desc, l.Platform, secret)
	if err != nil {
		return err
	}
	defer r.Close()
	algorithm := digest.SHA256
	if secret.Digest.Validate() == nil {
		algorithm = secret.Digest.Algorithm()
	}
	sum := algorithm.Digester()
	if err := checkContent(io.TeeReader(plain, sum.Hash()), layer.PlainMediaType(l.Desc.MediaType), id); err != nil {
		return err
	}
	if sum.Digest() != secret.Digest {
		v.notify(Notice{Kind: NoticeHint, Desc: l.Desc, Text: fmt.Sprintf("layer %d (%s) of manifest %s: the digest in its secret is not that of the plain blob, as with tools that compress while encrypting", l.Index, l.Desc.Digest, l.Manifest.Digest)})
	}
	return nil
}

// checkContent reads a plain blob, uncompresses it if it has a diff id, and compares that.
func checkContent(blob io.Reader, mediaType string, id digest.Digest) error {
	if id == "" {
		_, err := io.Copy(io.Discard, blob)
		return err
	}
	if err := id.Validate(); err != nil {
		return fmt.Errorf("%w: %.100q: %w", ErrDiffID, id, err)
	}
	sum := id.Algorithm().Digester()
	err := uncompress(sum.Hash(), blob, mediaType)
	// What is wrong with the blob as a whole says more than where its content broke.
	if _, whole := io.Copy(io.Discard, blob); whole != nil {
		return whole
	}
	if err != nil {
		return fmt.Errorf("%w: its content cannot be uncompressed: %w", ErrDiffID, err)
	}
	if got := sum.Digest(); got != id {
		return fmt.Errorf("%w: the content is %s, and the config says %s", ErrDiffID, got, id)
	}
	return nil
}

// uncompress writes what a blob of a layer's media type holds.
func uncompress(w io.Writer, blob io.Reader, mediaType string) error {
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		r, err := gzip.NewReader(blob)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, r)
		return err
	case strings.HasSuffix(mediaType, "zstd"):
		r, err := zstd.NewReader(blob, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = r.WriteTo(w)
		return err
	}
	_, err := io.Copy(w, blob)
	return err
}
