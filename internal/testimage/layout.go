package testimage

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// containerdName is the annotation by which containerd's import and export know an image's full name.
const containerdName = "io.containerd.image.name"

// Write builds the image in the OCI layout at dir, which it creates if need be, and names it there.
//
// A full reference, "example.test/app:v1", becomes the name for containerd, and its tag the layout's own
// (org.opencontainers.image.ref.name); a name without a slash becomes the latter only. An image that has
// the same name there gives way to the new one. The returned descriptor has media type, digest and size only.
func (s Spec) Write(dir, name string) (ocispec.Descriptor, error) {
	l := layout(dir)
	if err := l.init(); err != nil {
		return ocispec.Descriptor{}, err
	}
	b := builder{Spec: s.withDefaults(), layout: l}
	desc, err := b.image()
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("build image %s: %w", name, err)
	}
	return desc, Tag(dir, name, desc)
}

// Tag names a manifest of the layout as Write does.
func Tag(dir, name string, desc ocispec.Descriptor) error {
	index, err := Index(dir)
	if err != nil {
		return err
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool { return nameOf(d) == name })
	desc.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	if strings.Contains(name, "/") {
		desc.Annotations[containerdName] = name
		if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
			desc.Annotations[ocispec.AnnotationRefName] = name[i+1:]
		}
	}
	index.Manifests = append(index.Manifests, desc)
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, ocispec.ImageIndexFile), data, 0o644)
}

// nameOf returns the name that Write was given.
func nameOf(d ocispec.Descriptor) string {
	if name := d.Annotations[containerdName]; name != "" {
		return name
	}
	return d.Annotations[ocispec.AnnotationRefName]
}

// Index reads a layout's index.json.
func Index(dir string) (ocispec.Index, error) {
	var index ocispec.Index
	data, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		return index, err
	}
	return index, json.Unmarshal(data, &index)
}

// Blob reads a blob of a layout.
func Blob(dir string, desc ocispec.Descriptor) ([]byte, error) {
	return os.ReadFile(layout(dir).blobPath(desc))
}

// PutBlob stores bytes in a layout and returns their descriptor: for images that Spec cannot make.
func PutBlob(dir, mediaType string, body []byte) (ocispec.Descriptor, error) {
	l := layout(dir)
	if err := l.init(); err != nil {
		return ocispec.Descriptor{}, err
	}
	e, err := builder{layout: l}.put(mediaType, body)
	return e.Descriptor, err
}

// Archive writes the layout as a tar, the same bytes for the same layout: what skopeo calls an oci-archive
// and `ctr images import` reads.
func Archive(w io.Writer, dir string) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		header := &tar.Header{Name: filepath.ToSlash(name), Mode: 0o644, Size: info.Size(), ModTime: created, Typeflag: tar.TypeReg}
		if err := tw.WriteHeader(header); err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(tw, f)
		return err
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

// ArchiveFile is Archive into a file.
func ArchiveFile(file, dir string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(Archive(f, dir), f.Close())
}

// layout is the directory of an OCI image layout.
type layout string

func (l layout) init() error {
	if err := os.MkdirAll(filepath.Join(string(l), "blobs", "sha256"), 0o755); err != nil {
		return err
	}
	files := map[string]string{
		ocispec.ImageLayoutFile: `{"imageLayoutVersion":"1.0.0"}`,
		ocispec.ImageIndexFile:  `{"schemaVersion":2,"manifests":[]}`,
	}
	for name, body := range files {
		path := filepath.Join(string(l), name)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if err := replaceFile(path, []byte(body)); err != nil {
			return err
		}
	}
	return nil
}

func (l layout) blobPath(desc ocispec.Descriptor) string {
	return filepath.Join(string(l), "blobs", desc.Digest.Algorithm().String(), desc.Digest.Encoded())
}

func (l layout) put(desc ocispec.Descriptor, body []byte) error {
	// In one step, so that tests in parallel can put the same blob.
	return replaceFile(l.blobPath(desc), body)
}

// replaceFile makes path a file with that content; at no moment is it there in part.
func replaceFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
