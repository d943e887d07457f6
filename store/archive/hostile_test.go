package archive_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
	"imgcrypt/store/archive"
)

// tarFile is an entry of a tar that a test makes.
type tarFile struct {
	name, body string
	link       string
	kind       byte // tar.TypeReg if zero, or tar.TypeSymlink with a link
}

// tarOf makes a tar.
func tarOf(t testing.TB, list ...tarFile) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range list {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.body)), Linkname: f.link, Typeflag: f.kind}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if f.link != "" {
				h.Typeflag = tar.TypeSymlink
			}
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(f.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func writeFile(t testing.TB, data []byte) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

const layoutFile = `{"imageLayoutVersion":"1.0.0"}`

// What is no archive of the right kind says so, and is left alone.
func TestNotAnArchive(t *testing.T) {
	t.Parallel()
	good := tarOf(t, tarFile{name: "oci-layout", body: layoutFile}, tarFile{name: "index.json", body: `{"manifests":[]}`})
	docker := tarOf(t, tarFile{name: "manifest.json", body: `[]`})
	for name, tt := range map[string]struct {
		data        []byte
		oci, docker error // nil: it is one
		says        string
	}{
		"nothing":        {nil, archive.ErrNotArchive, archive.ErrNotArchive, "empty"},
		"text":           {[]byte(strings.Repeat("no tar ", 1000)), archive.ErrNotArchive, archive.ErrNotArchive, "tar"},
		"zeros":          {make([]byte, 10240), archive.ErrNotArchive, archive.ErrNotArchive, "empty"},
		"cut short":      {good[:520], archive.ErrNotArchive, archive.ErrNotArchive, "cut short"},
		"other tar":      {tarOf(t, tarFile{name: "a"}), archive.ErrNotArchive, archive.ErrNotArchive, ""},
		"oci":            {good, nil, archive.ErrNotArchive, ""},
		"docker":         {docker, archive.ErrNotArchive, nil, ""},
		"old docker":     {tarOf(t, tarFile{name: "repositories", body: "{}"}), archive.ErrNotArchive, archive.ErrNotArchive, ""},
		"both":           {append(bytes.Clone(good[:len(good)-1024]), docker...), nil, nil, ""},
		"version":        {tarOf(t, tarFile{name: "oci-layout", body: `{"imageLayoutVersion":"2"}`}), imgcrypt.ErrManifest, archive.ErrNotArchive, ""},
		"two layouts":    {tarOf(t, tarFile{name: "oci-layout", body: layoutFile}, tarFile{name: "./oci-layout", body: layoutFile}), imgcrypt.ErrManifest, archive.ErrNotArchive, ""},
		"two manifests":  {tarOf(t, tarFile{name: "manifest.json", body: `[]`}, tarFile{name: "manifest.json", body: `[]`}), archive.ErrNotArchive, imgcrypt.ErrManifest, ""},
		"huge layout":    {tarOf(t, tarFile{name: "oci-layout", body: layoutFile + strings.Repeat(" ", 5000)}), imgcrypt.ErrManifest, archive.ErrNotArchive, ""},
		"huge manifest":  {tarOf(t, tarFile{name: "manifest.json", body: "[]" + strings.Repeat(" ", 4<<20)}), archive.ErrNotArchive, imgcrypt.ErrManifest, ""},
		"manifest":       {tarOf(t, tarFile{name: "manifest.json", body: `{}`}), archive.ErrNotArchive, imgcrypt.ErrManifest, ""},
		"xz":             {[]byte("\xfd7zXZ\x00..."), archive.ErrNotArchive, archive.ErrNotArchive, "xz"},
		"damaged gzip":   {[]byte("\x1f\x8b..."), archive.ErrNotArchive, archive.ErrNotArchive, ""},
		"damaged zstd":   {[]byte("\x28\xb5\x2f\xfd..."), archive.ErrNotArchive, archive.ErrNotArchive, ""},
		"link to itself": {tarOf(t, tarFile{name: "oci-layout", link: "oci-layout"}), archive.ErrNotArchive, archive.ErrNotArchive, ""},
	} {
		path := writeFile(t, tt.data)
		a, err := archive.Open(path)
		checkKind(t, name+", oci", err, tt.oci, tt.says, a)
		d, err := archive.OpenDocker(path)
		checkKind(t, name+", docker", err, tt.docker, tt.says, d)
		if len(tt.data) > 0 {
			a, err = archive.Create(path)
			checkKind(t, name+", create oci", err, tt.oci, "", a)
			w, err := archive.CreateDocker(path)
			checkKind(t, name+", create docker", err, tt.docker, "", w)
		}
		if got := must(os.ReadFile(path)); !bytes.Equal(got, tt.data) {
			t.Errorf("%s: it was changed", name)
		}
	}
	dir := t.TempDir()
	for _, path := range []string{dir, "/dev/null"} {
		if _, err := archive.Open(path); !errors.Is(err, archive.ErrNotArchive) {
			t.Error(err)
		}
		if _, err := archive.Create(path); !errors.Is(err, archive.ErrNotArchive) {
			t.Error(err)
		}
		if _, err := archive.OpenDocker(path); !errors.Is(err, archive.ErrNotArchive) {
			t.Error(err)
		}
	}
	missing := filepath.Join(dir, "missing.tar")
	_, err := archive.Open(missing)
	_, dockerErr := archive.OpenDocker(missing)
	_, createErr := archive.Create(filepath.Join(dir, "no", "directory", "a.tar"))
	for _, err := range []error{err, dockerErr, createErr} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}

func checkKind(t *testing.T, name string, err, want error, says string, opened io.Closer) {
	t.Helper()
	if err == nil {
		opened.Close()
	}
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", name, err, want)
	}
	if err != nil && !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %q does not say %q", name, err, says)
	}
}

// Names are what they are where the tar is unpacked, and nothing outside of it is read.
func TestOddTars(t *testing.T) {
	t.Parallel()
	body := "content"
	desc := ocispec.Descriptor{MediaType: "a/b", Digest: digest.FromString(body), Size: int64(len(body))}
	blob := "blobs/sha256/" + desc.Digest.Encoded()
	index := `{"manifests":[{"mediaType":"a/b","digest":"` + desc.Digest.String() + `","size":7}]}`
	for name, tt := range map[string]struct {
		list []tarFile
		want string // "" if it is not there
		err  error
	}{
		"dots":           {[]tarFile{{name: "./" + blob, body: body}}, body, nil},
		"from the root":  {[]tarFile{{name: "/" + blob, body: body}}, body, nil},
		"detour":         {[]tarFile{{name: "x/../" + blob, body: body}}, body, nil},
		"upwards":        {[]tarFile{{name: "../../" + blob, body: body}}, body, nil},
		"hard link":      {[]tarFile{{name: "x", body: body}, {name: blob, link: "x", kind: tar.TypeLink}}, body, nil},
		"link":           {[]tarFile{{name: blob, link: "../../x"}, {name: "x", body: body}}, body, nil},
		"absolute link":  {[]tarFile{{name: blob, link: "/etc/hostname"}}, "", imgcrypt.ErrNotFound},
		"link outside":   {[]tarFile{{name: blob, link: "../../../../../../etc/hostname"}}, "", imgcrypt.ErrNotFound},
		"links in a row": {[]tarFile{{name: blob, link: "a"}, {name: "blobs/sha256/a", link: "b"}, {name: "blobs/sha256/b", link: "a"}}, "", imgcrypt.ErrNotFound},
		"directory":      {[]tarFile{{name: blob + "/", kind: tar.TypeDir}}, "", imgcrypt.ErrNotFound},
		"device":         {[]tarFile{{name: blob, kind: tar.TypeChar}}, "", imgcrypt.ErrNotFound},
		"the last":       {[]tarFile{{name: blob, body: "another"}, {name: blob, body: body}}, body, nil},
		"not the first":  {[]tarFile{{name: blob, body: body}, {name: blob, body: "another"}}, "another", imgcrypt.ErrMismatch},
		"shorter":        {[]tarFile{{name: blob, body: "conten"}}, "conten", imgcrypt.ErrMismatch},
		"longer":         {[]tarFile{{name: blob, body: "content!"}}, "content", imgcrypt.ErrMismatch},
		"long name":      {[]tarFile{{name: strings.Repeat("x", 5000), body: "x"}, {name: blob, body: body}}, body, nil},
	} {
		list := append([]tarFile{{name: "oci-layout", body: layoutFile}, {name: "index.json", body: index}}, tt.list...)
		a := open(t, writeFile(t, tarOf(t, list...)))
		var got []byte
		r, err := a.Open(t.Context(), must(a.Resolve(t.Context(), "")))
		if err == nil {
			got, err = io.ReadAll(r)
			r.Close()
		}
		if !errors.Is(err, tt.err) || string(got) != tt.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// What GNU tar stores without holes is not read as if it had none.
func TestSparse(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "tar")
	for _, format := range []string{"gnu", "posix"} {
		dir := t.TempDir()
		data := make([]byte, 4<<20)
		copy(data, "begin")
		desc := must(testimage.PutBlob(dir, "a/b", data))
		if err := testimage.Tag(dir, "v1", desc); err != nil {
			t.Fatal(err)
		}
		blob := filepath.Join(dir, "blobs/sha256", desc.Digest.Encoded())
		if err := errors.Join(os.Truncate(blob, 5), os.Truncate(blob, int64(len(data)))); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "a.tar")
		run(t, "tar", "--format="+format, "-S", "-C", dir, "-cf", path, ".")
		if info := must(os.Stat(path)); info.Size() > 1<<20 {
			t.Errorf("%s: it has %d bytes", format, info.Size())
		}
		a := open(t, path)
		if r, err := a.Open(t.Context(), must(a.Resolve(t.Context(), "v1"))); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", format, err)
			r.Close()
		}
	}
}

// An archive that lost its end, at whatever place, is no archive, or one whose blobs are
// not what they were.
func TestCutShort(t *testing.T) {
	t.Parallel()
	path := writeArchive(t, map[string]testimage.Spec{"v1": {}})
	desc := must(open(t, path).Resolve(t.Context(), "v1"))
	whole := must(os.ReadFile(path))
	for n := 0; n < len(whole)-1024; n += 100 {
		a, err := archive.Open(writeFile(t, whole[:n]))
		if err != nil {
			continue
		}
		if got, err := a.Resolve(t.Context(), "v1"); err == nil && got.Digest != desc.Digest {
			t.Errorf("after %d bytes: %v", n, got)
		}
		a.Close()
	}
}

// A compressed archive is read, in any order, but not written.
func TestCompressed(t *testing.T) {
	t.Parallel()
	path := writeArchive(t, map[string]testimage.Spec{"v1": {Layers: append(testimage.Layers(5, testimage.Gzip), testimage.Layer{RandomSize: 3 << 20})}})
	whole := must(os.ReadFile(path))
	for name, compress := range map[string]func(io.Writer) io.WriteCloser{
		"gzip": func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		"zstd": func(w io.Writer) io.WriteCloser { return must(zstd.NewWriter(w)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var buf bytes.Buffer
			w := compress(&buf)
			must(w.Write(whole))
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			path := writeFile(t, buf.Bytes())
			a := open(t, path)
			desc := must(a.Resolve(t.Context(), "v1"))
			all := checkAll(t, a, desc)
			var wg sync.WaitGroup
			for i := range 3 * len(all) {
				wg.Go(func() { checkAll(t, a, all[len(all)-1-i%len(all)]) })
			}
			wg.Wait()
			if _, err := a.Put(t.Context(), ocispec.Descriptor{}, strings.NewReader("")); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("put: %v", err)
			}
			if err := a.Tag(t.Context(), "v2", desc); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("tag: %v", err)
			}
			if !bytes.Equal(buf.Bytes(), must(os.ReadFile(path))) {
				t.Error("it was changed")
			}
			// One that was damaged is not read to its end.
			for i := 1; i < 8; i++ {
				damaged := bytes.Clone(buf.Bytes())
				damaged[i*len(damaged)/8] ^= 1
				if a, err := archive.Open(writeFile(t, damaged)); err == nil {
					if desc, err := a.Resolve(t.Context(), "v1"); err == nil && readsAll(t, a, desc) {
						t.Errorf("byte %d of %d", i, len(damaged))
					}
					a.Close()
				}
			}
		})
	}
}

// readsAll says whether all of an image can be read.
func readsAll(t testing.TB, s imgcrypt.Store, desc ocispec.Descriptor) bool {
	t.Helper()
	r, err := s.Open(t.Context(), desc)
	if err != nil {
		return false
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		return false
	}
	if !imgcrypt.IsManifest(desc) {
		return true
	}
	for _, ref := range must(imgcrypt.References(desc, text)) {
		if !readsAll(t, s, ref) {
			return false
		}
	}
	return true
}

// Endlessly many files cost no endless memory.
func TestManyFiles(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	tw := tar.NewWriter(w)
	for i := range 100_001 {
		if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Open(writeFile(t, buf.Bytes())); !errors.Is(err, imgcrypt.ErrManifest) {
		t.Error(err)
	}
}
