package archive_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"path/filepath"
	"runtime"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/store/layout"
)

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// allocated returns how many bytes f allocates in all, which is more than it ever has.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// Layers stream: the memory that writing and reading takes does not depend on how large
// they are. Not in parallel, since it measures the process.
func TestMemory(t *testing.T) {
	const size, limit = 256 << 20, 24 << 20
	dir := t.TempDir()
	l, err := layout.Create(filepath.Join(dir, "layout"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, d := create(t, filepath.Join(dir, "a.tar")), createDocker(t, filepath.Join(dir, "d.tar"))
	for name, s := range map[string]taggable{"layout": l, "oci-archive": a, "docker-archive": d} {
		var desc ocispec.Descriptor
		n := allocated(func() {
			desc = must(s.Put(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer}, io.LimitReader(zeros{}, size)))
			r := must(s.Open(t.Context(), desc))
			defer r.Close()
			if n := must(io.Copy(io.Discard, r)); n != size {
				t.Errorf("%s: %d bytes", name, n)
			}
		})
		if n > limit {
			t.Errorf("%s: %d MiB for a layer of %d MiB", name, n>>20, size>>20)
		}
	}
	// Compressed, it is small; decompressed, it takes no memory either.
	var packed bytes.Buffer
	w := must(gzip.NewWriterLevel(&packed, gzip.BestSpeed))
	must(io.Copy(w, io.LimitReader(zeros{}, size)))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	n := allocated(func() {
		must(d.Put(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip}, &packed))
	})
	if n > limit {
		t.Errorf("docker-archive, gzip: %d MiB for a layer of %d MiB", n>>20, size>>20)
	}
}
