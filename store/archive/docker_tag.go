package archive

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

// PlatformsError says that an image is for several platforms, where there can be one.
type PlatformsError struct {
	// Platforms are those of the image, as OS/ARCH[/VARIANT]; the digest of a manifest
	// whose platform is unknown.
	Platforms []string
}

func (e *PlatformsError) Error() string {
	return "a docker-archive holds an image for one platform, and this one is for " + strings.Join(e.Platforms, ", ")
}

// OthersError says that an archive has images that would be lost if it were replaced.
type OthersError struct {
	// Names are those of the images; "" is one without.
	Names []string
}

func (e *OthersError) Error() string {
	return fmt.Sprintf("it has other images, which would be lost: %.300q", e.Names)
}

// dockerTag is an image under one of its names; "" is that of one without.
type dockerTag struct {
	// name is in its full form, and shown as it is written.
	name, shown string
	// image is what was tagged.
	image ocispec.Descriptor
	item  dockerImage
	// config is the content of the file of that name.
	config []byte
}

// Resolve implements [imgcrypt.Tags], for the names that were given; "" is the only image.
func (d *DockerWriter) Resolve(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	if err := ctx.Err(); err != nil {
		return ocispec.Descriptor{}, err
	}
	if _, _, err := d.file.find(""); err != nil {
		return ocispec.Descriptor{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	items := dockerItems(d.tags)
	i, err := findDocker(items, ref)
	if err != nil {
		return ocispec.Descriptor{}, d.file.error(err)
	}
	full := fullDockerName(ref)
	at := slices.IndexFunc(d.tags, func(t dockerTag) bool {
		return t.item.Config == items[i].Config && (ref == "" || ref[0] == '@' || t.name == full)
	})
	return d.tags[at].image, nil
}

// dockerItems returns the images of which these are the names.
func dockerItems(tags []dockerTag) []dockerImage {
	items := []dockerImage{}
	for _, tag := range tags {
		at := slices.IndexFunc(items, func(i dockerImage) bool { return i.Config == tag.item.Config })
		if at < 0 {
			at = len(items)
			items = append(items, dockerImage{Config: tag.item.Config, Layers: tag.item.Layers})
		}
		if tag.shown != "" {
			items[at].RepoTags = append(items[at].RepoTags, tag.shown)
		}
	}
	return items
}

// Tag implements [imgcrypt.Tags], and makes what was put the archive. ref is a name as
// Docker has them, example.test/app:v1; without a tag it gets the tag latest; "" leaves
// the image without a name. desc is that of a manifest, or of an index with one image in
// it; of an index for several platforms it is a [*PlatformsError]. All that it needs has
// been put.
//
// Where the archive has images of names that were not given here, it is an [*OthersError].
func (d *DockerWriter) Tag(ctx context.Context, ref string, desc ocispec.Descriptor) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	tag := dockerTag{image: desc}
	if ref != "" {
		repository, version, err := parseDockerName(ref)
		if err != nil {
			return d.file.error(err)
		}
		tag.shown, tag.name = repository+":"+version, fullDockerName(ref)
	}
	if err := d.describe(&tag, desc, 0); err != nil {
		return d.file.error(err)
	}
	var tags []dockerTag
	return d.file.replace(ctx, func(now *tarball, w *writer) error {
		d.mu.Lock()
		tags = slices.Clone(d.tags)
		d.mu.Unlock()
		if at := slices.IndexFunc(tags, func(t dockerTag) bool { return t.name == tag.name }); at >= 0 {
			tags[at] = tag
		} else {
			tags = append(tags, tag)
		}
		if err := checkOthers(ctx, now, tags); err != nil {
			return err
		}
		return d.complete(ctx, w, tags)
	}, func() { d.completed(tags) })
}

// completed notes what became of a new archive: layers that only had been in the one
// before are gone.
func (d *DockerWriter) completed(tags []dockerTag) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tags = tags
	for _, tag := range tags {
		for _, name := range tag.item.Layers {
			delete(d.pending, name)
		}
	}
	maps.DeleteFunc(d.layers, func(_, diffID digest.Digest) bool {
		_, ok := d.file.old.find(layerFile(diffID))
		return !ok
	})
}

// checkOthers refuses to replace an archive with images that the new one does not have.
func checkOthers(ctx context.Context, now *tarball, tags []dockerTag) error {
	if now == nil {
		return nil
	}
	images, err := readDocker(ctx, now)
	if err != nil {
		return err
	}
	var lost []string
	for _, image := range images {
		names := image.RepoTags
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			full := name
			if name != "" {
				full = fullDockerName(name)
			}
			if !slices.ContainsFunc(tags, func(t dockerTag) bool { return t.name == full }) {
				lost = append(lost, name)
			}
		}
	}
	if len(lost) > 0 {
		return &OthersError{Names: lost}
	}
	return nil
}

// describe finds out what an image is in a docker-archive.
func (d *DockerWriter) describe(tag *dockerTag, desc ocispec.Descriptor, depth int) error {
	text, err := d.doc(desc)
	if err != nil {
		return err
	}
	if depth > maxDepth || !imgcrypt.IsManifest(desc) {
		return fmt.Errorf("%w: %s is no image manifest", imgcrypt.ErrManifest, desc.Digest)
	}
	refs, err := imgcrypt.References(desc, text)
	if err != nil {
		return fmt.Errorf("%s: %w", desc.Digest, err)
	}
	if isIndex(desc) {
		one, err := onlyImage(refs)
		if err != nil {
			return err
		}
		return d.describe(tag, one, depth+1)
	}
	if len(refs) == 0 || !isConfig(refs[0].MediaType) {
		return fmt.Errorf("%w: %s is no image that Docker could load: it has no image config", imgcrypt.ErrManifest, desc.Digest)
	}
	if tag.config, err = d.doc(refs[0]); err != nil {
		return err
	}
	ids, err := diffIDs(tag.config)
	if err != nil {
		return err
	}
	if len(ids) != len(refs)-1 {
		return fmt.Errorf("%w: %s has %d layers, and %d in its config", imgcrypt.ErrManifest, desc.Digest, len(refs)-1, len(ids))
	}
	tag.item = dockerImage{Config: refs[0].Digest.Encoded() + ".json", Layers: []string{}}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, layer := range refs[1:] {
		diffID, ok := d.layers[layer.Digest]
		if !ok {
			return fmt.Errorf("layer %d: %w", i, &imgcrypt.MissingError{Desc: layer})
		}
		if diffID != ids[i] {
			return fmt.Errorf("layer %d (%s): %w: decompressed, its digest is %s, and the config says %.100q", i, layer.Digest, imgcrypt.ErrMismatch, diffID, ids[i])
		}
		tag.item.Layers = append(tag.item.Layers, layerFile(diffID))
	}
	return nil
}

func isIndex(desc ocispec.Descriptor) bool {
	return desc.MediaType == ocispec.MediaTypeImageIndex || desc.MediaType == "application/vnd.docker.distribution.manifest.list.v2+json"
}

// onlyImage returns the one entry of an index that is an image.
func onlyImage(entries []ocispec.Descriptor) (ocispec.Descriptor, error) {
	var images []ocispec.Descriptor
	var names []string
	for _, entry := range entries {
		p := entry.Platform
		attestation := entry.Annotations["vnd.docker.reference.type"] != "" || p != nil && p.OS == "unknown" && p.Architecture == "unknown"
		if attestation || !imgcrypt.IsManifest(entry) {
			continue
		}
		name := entry.Digest.String()
		if p != nil && p.OS != "" {
			name = strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
		}
		if len(name) > 100 {
			name = name[:100]
		}
		images, names = append(images, entry), append(names, strings.Trim(fmt.Sprintf("%q", name), `"`))
	}
	switch len(images) {
	case 0:
		return ocispec.Descriptor{}, fmt.Errorf("%w: the index has no image", imgcrypt.ErrManifest)
	case 1:
		return images[0], nil
	}
	return ocispec.Descriptor{}, &PlatformsError{Platforms: names}
}

// doc returns a manifest, index or config that was put.
func (d *DockerWriter) doc(desc ocispec.Descriptor) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	text, ok := d.docs[desc.Digest]
	if !ok {
		return nil, &imgcrypt.MissingError{Desc: desc, Platform: desc.Platform}
	}
	return text, nil
}

// complete writes what the archive needs besides the layers that were put since it was
// written last, if it was.
func (d *DockerWriter) complete(ctx context.Context, w *writer, tags []dockerTag) error {
	d.mu.Lock()
	layers := maps.Clone(d.pending)
	d.mu.Unlock()
	for _, tag := range tags {
		for _, name := range tag.item.Layers {
			layers[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(layers)) {
		if err := d.keep(ctx, w, name); err != nil {
			return err
		}
	}
	repositories := make(map[string]map[string]string)
	for _, tag := range tags {
		if err := w.addBytes(tag.item.Config, tag.config); err != nil {
			return err
		}
		n := len(tag.item.Layers)
		if n == 0 || tag.shown == "" {
			continue
		}
		at := strings.LastIndexByte(tag.shown, ':')
		repository := tag.shown[:at]
		if repositories[repository] == nil {
			repositories[repository] = make(map[string]string)
		}
		repositories[repository][tag.shown[at+1:]] = strings.TrimSuffix(tag.item.Layers[n-1], ".tar")
	}
	if err := addJSON(w, dockerManifestFile, dockerItems(tags)); err != nil {
		return err
	}
	return addJSON(w, dockerRepositoriesFile, repositories)
}

// keep makes a layer's file a part of the new archive.
func (d *DockerWriter) keep(ctx context.Context, w *writer, name string) error {
	if _, ok := w.tar.find(name); ok {
		return nil
	}
	if d.file.old != nil {
		if e, ok := d.file.old.find(name); ok {
			return copyFile(ctx, w, d.file.old, name, e)
		}
	}
	return fmt.Errorf("the layer %s is no longer in the archive: put it again", name)
}

func addJSON(w *writer, name string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return w.addBytes(name, text)
}
