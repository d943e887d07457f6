package storetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
)

// image is an image in the store.
type image struct {
	layer, config, manifest ocispec.Descriptor
	blobs                   map[digest.Digest]blob
}

type blob struct {
	desc ocispec.Descriptor
	data []byte
}

func (i *image) add(desc ocispec.Descriptor, data []byte) ocispec.Descriptor {
	if i.blobs == nil {
		i.blobs = make(map[digest.Digest]blob)
	}
	i.blobs[desc.Digest] = blob{desc, data}
	return desc
}

func marshal(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

// image puts a small image; images of different salts have no blob in common.
func (s *subject) image(salt string) *image {
	s.t.Helper()
	return s.imageOf(salt, append(content(100), salt...))
}

// imageOf puts an image with one layer.
func (s *subject) imageOf(salt string, layer []byte) *image {
	s.t.Helper()
	return s.platformImage(salt, layer, ocispec.Platform{OS: "linux", Architecture: "amd64"}, false)
}

func (s *subject) platformImage(salt string, layer []byte, p ocispec.Platform, docker bool) *image {
	s.t.Helper()
	types := []string{layerType, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageManifest}
	if docker {
		types = []string{dockerLayer, dockerConfig, dockerManifest}
	}
	i := new(image)
	i.layer = i.add(s.put(types[0], layer), layer)
	config := marshal(ocispec.Image{
		Author: salt, Platform: p, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	})
	i.config = i.add(s.put(types[1], config), config)
	manifest := marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: types[2], Config: i.config, Layers: []ocispec.Descriptor{i.layer},
	})
	i.manifest = i.add(s.put(types[2], manifest, i.config, i.layer), manifest)
	return i
}

// index puts an index of two images.
func (s *subject) index(salt string, docker bool) *image {
	s.t.Helper()
	mediaType := ocispec.MediaTypeImageIndex
	if docker {
		mediaType = dockerList
	}
	all := new(image)
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType}
	for _, arch := range []string{"amd64", "arm64"} {
		p := ocispec.Platform{OS: "linux", Architecture: arch}
		one := s.platformImage(salt+arch, append(content(50), salt+arch...), p, docker)
		for _, b := range one.blobs {
			all.add(b.desc, b.data)
		}
		entry := one.manifest
		entry.Platform = &p
		index.Manifests = append(index.Manifests, entry)
	}
	data := marshal(index)
	all.manifest = all.add(s.put(mediaType, data, index.Manifests...), data)
	return all
}

// checkImage checks that all of an image is there.
func (s *subject) checkImage(i *image) {
	s.t.Helper()
	for _, b := range i.blobs {
		s.checkPresent(b.desc, b.data)
	}
}

func (s *subject) tag(name string, desc ocispec.Descriptor) {
	s.t.Helper()
	if err := s.Tags.Tag(s.ctx, name, desc); err != nil {
		s.t.Fatalf("tag %s: %v", name, err)
	}
}

// checkName checks what a name stands for.
func (s *subject) checkName(name string, want ocispec.Descriptor) {
	s.t.Helper()
	got, err := s.Tags.Resolve(s.ctx, name)
	if err != nil {
		s.t.Errorf("resolve %s: %v", name, err)
	} else if !same(got, want) {
		s.t.Errorf("%s is %s %s of %d bytes, want %s %s of %d bytes", name, got.MediaType, got.Digest, got.Size, want.MediaType, want.Digest, want.Size)
	}
}

func same(a, b ocispec.Descriptor) bool {
	return a.MediaType == b.MediaType && a.Digest == b.Digest && a.Size == b.Size
}

func (s *subject) checkNoName(name string) {
	s.t.Helper()
	if got, err := s.Tags.Resolve(s.ctx, name); !errors.Is(err, imgcrypt.ErrNotFound) {
		s.t.Errorf("resolve %s: %s, %v, want an error that wraps ErrNotFound", name, got.Digest, err)
	}
}

// The media type is the caller's, and comes back.
func testMediaTypes(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	for _, docker := range []bool{false, true} {
		s.checkImage(s.index(fmt.Sprint("media types, docker ", docker), docker))
	}
	types := []string{ocispec.MediaTypeImageLayer, dockerLayer}
	if !s.NoLayers {
		// Whoever converts layers looks at what they are.
		types = append(types, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd, dockerLayer+".gzip",
			ocispec.MediaTypeImageLayer+"+encrypted", ocispec.MediaTypeImageLayerGzip+"+encrypted", ocispec.MediaTypeImageLayerZstd+"+encrypted",
			"application/vnd.in-toto+json", "application/vnd.example.thing")
	}
	for _, mediaType := range types {
		data := append(content(100), mediaType...)
		s.checkPresent(s.put(mediaType, data), data)
	}
	s.checkClean()
}

func testImage(t *testing.T, open func(*testing.T) Subject) {
	for _, index := range []bool{false, true} {
		for _, docker := range []bool{false, true} {
			s := start(t, open)
			if s.NoIndexes && index {
				continue
			}
			var i *image
			if index {
				i = s.index("image", docker)
			} else {
				i = s.platformImage("image", content(1000), ocispec.Platform{OS: "linux", Architecture: "amd64"}, docker)
			}
			s.checkImage(i)
			if s.Tags != nil {
				s.tag(s.Names[0], i.manifest)
				s.checkName(s.Names[0], i.manifest)
				s.checkImage(i)
			}
			s.checkClean()
		}
	}
}

func testNames(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	if s.Tags == nil {
		return
	}
	s.checkNoName(s.Names[0])
	first, second := s.image("first"), s.image("second")
	s.checkNoName(s.Names[0])
	s.tag(s.Names[0], first.manifest)
	s.checkName(s.Names[0], first.manifest)
	s.checkNoName(s.Names[1])
	// Another name for the same image, and another image.
	s.tag(s.Names[1], first.manifest)
	s.tag(s.Names[2], second.manifest)
	// The name that it has already, and a new image for a name.
	s.tag(s.Names[0], first.manifest)
	s.tag(s.Names[1], second.manifest)
	for i, want := range []*image{first, second, second} {
		s.checkName(s.Names[i], want.manifest)
		s.checkImage(want)
	}
	s.checkNoName(s.Names[3])
	s.checkClean()
}

func testOddNames(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	if s.Tags == nil {
		return
	}
	i := s.image("odd")
	s.tag(s.Names[0], i.manifest)
	for _, name := range s.OddNames {
		if err := s.Tags.Tag(s.ctx, name, i.manifest); err == nil {
			t.Errorf("the name %q was accepted", name)
		}
		if got, err := s.Tags.Resolve(s.ctx, name); err == nil && got.Digest != i.manifest.Digest {
			t.Errorf("the name %q is %s", name, got.Digest)
		}
	}
	s.checkName(s.Names[0], i.manifest)
	s.checkClean()
}

// While a name moves from one image to the other it is always one of them.
func testRenaming(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	if s.Tags == nil {
		return
	}
	salts := []string{"even", "odd"}
	images := []*image{s.image(salts[0]), s.image(salts[1])}
	even, odd := images[0].manifest, images[1].manifest
	s.tag(s.Names[1], even)
	s.tag(s.Names[0], even)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	halt := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer halt()
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got, err := s.Tags.Resolve(s.ctx, s.Names[0])
				if err != nil {
					t.Error(err)
					return
				}
				if !same(got, even) && !same(got, odd) {
					t.Errorf("it is %+v", got)
					return
				}
			}
		})
	}
	for i := range 20 {
		if s.Prunes {
			images[i%2] = s.image(salts[i%2])
		}
		s.tag(s.Names[0], images[i%2].manifest)
	}
	halt()
	s.checkName(s.Names[0], odd)
	s.checkName(s.Names[1], even)
	s.checkClean()
}

// Names that are given at the same time are all there afterwards.
func testNamesInParallel(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	if s.Tags == nil {
		return
	}
	images := make([]*image, len(s.Names))
	var wg sync.WaitGroup
	for i := range s.Names {
		images[i] = s.image(s.Names[i])
	}
	for i, name := range s.Names {
		for range 3 {
			wg.Go(func() {
				if err := s.Tags.Tag(s.ctx, name, images[i].manifest); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
	}
	wg.Wait()
	for i, name := range s.Names {
		s.checkName(name, images[i].manifest)
	}
	s.checkClean()
}

func testReopen(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	if s.Reopen == nil || s.Tags == nil {
		return
	}
	first, second := s.image("first"), s.image("second")
	s.tag(s.Names[0], first.manifest)
	s.tag(s.Names[1], second.manifest)
	again := newSubject(t, s.Reopen(t))
	if !again.NoLayers {
		again.checkImage(first)
		again.checkImage(second)
	}
	again.checkName(again.Names[0], first.manifest)
	again.checkName(again.Names[1], second.manifest)
	again.checkNoName(again.Names[2])
	again.checkClean()
}

// What a name leads to is not garbage, however deep it is.
func testCollect(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	if s.Collect == nil || s.Tags == nil {
		return
	}
	kept := []*image{s.image("single"), s.image("other")}
	if !s.NoIndexes {
		kept = append(kept, s.index("index", false), s.index("list", true))
	}
	for i, one := range kept {
		s.tag(s.Names[i], one.manifest)
	}
	s.Collect(t)
	for i, one := range kept {
		s.checkName(s.Names[i], one.manifest)
		s.checkImage(one)
	}
}
