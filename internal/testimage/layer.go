package testimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"imgcrypt/internal/testenv"
)

// applets are the commands that a runnable image has: links to busybox.
var applets = []string{"cat", "echo", "env", "false", "id", "ls", "md5sum", "mount", "sh", "sha256sum", "sleep", "true", "uname"}

// Runnable returns an image that runs: statically linked busybox with links for the usual commands,
// which prints "Hello World!" unless told otherwise. It fails where the machine has no static busybox.
func Runnable() (Spec, error) {
	layer, err := Busybox()
	if err != nil {
		return Spec{}, err
	}
	return Spec{
		Layers: []Layer{layer},
		Cmd:    []string{"/bin/echo", "Hello World!"},
		Env:    []string{"PATH=/bin"},
	}, nil
}

// Busybox returns the layer with busybox.
func Busybox() (Layer, error) {
	file, err := testenv.BusyboxPath()
	if err != nil {
		return Layer{}, err
	}
	body, err := os.ReadFile(file)
	if err != nil {
		return Layer{}, err
	}
	files := []File{{Name: "bin/busybox", Body: body, Mode: 0o755}}
	for _, name := range applets {
		files = append(files, File{Name: "bin/" + name, Link: "busybox"})
	}
	return Layer{Files: files}, nil
}

// blob builds the layer's tar and compresses it. extra files come last.
func (l Layer) blob(seed string, extra ...File) (data []byte, diffID digest.Digest, err error) {
	files := slices.Concat(l.Files, extra)
	if l.RandomSize > 0 {
		files = append(files, File{Name: "random", Body: random(seed, l.RandomSize)})
	}
	// The seed is what makes layers of equal content different.
	files = append(files, File{Name: "etc/seed/" + digest.FromString(seed).Encoded()[:12], Body: []byte(seed + "\n")})

	var archive bytes.Buffer
	if err := writeTar(&archive, files); err != nil {
		return nil, "", err
	}
	// Trying to compress what is random is slow, most of all with the race detector.
	level := gzip.DefaultCompression
	if l.RandomSize > 0 {
		level = gzip.NoCompression
	}
	data, err = compress(archive.Bytes(), l.Compression, level)
	return data, digest.FromBytes(archive.Bytes()), err
}

func random(seed string, size int64) []byte {
	b := make([]byte, size)
	// Reading from ChaCha8 never fails.
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(b)
	return b
}

func writeTar(w io.Writer, files []File) error {
	tw := tar.NewWriter(w)
	dirs := make(map[string]bool)
	for _, f := range files {
		if err := writeParents(tw, dirs, f.Name); err != nil {
			return err
		}
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Size: int64(len(f.Body)), ModTime: created, Typeflag: tar.TypeReg}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if f.Link != "" {
			h.Typeflag, h.Linkname, h.Size, h.Mode = tar.TypeSymlink, f.Link, 0, 0o777
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		if f.Link != "" {
			continue
		}
		if _, err := tw.Write(f.Body); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return tw.Close()
}

func writeParents(tw *tar.Writer, dirs map[string]bool, name string) error {
	at := ""
	for dir := range strings.SplitSeq(path.Dir(name), "/") {
		at = path.Join(at, dir)
		if at == "." || dirs[at] {
			continue
		}
		dirs[at] = true
		err := tw.WriteHeader(&tar.Header{Name: at + "/", Mode: 0o755, ModTime: created, Typeflag: tar.TypeDir})
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
	}
	return nil
}

// compress applies a compression; gzipLevel is for gzip.
func compress(data []byte, c Compression, gzipLevel int) ([]byte, error) {
	var out bytes.Buffer
	var w io.WriteCloser
	switch c {
	case None:
		return data, nil
	case Gzip:
		zw, err := gzip.NewWriterLevel(&out, gzipLevel)
		if err != nil {
			return nil, err
		}
		w = zw
	case Zstd:
		zw, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		w = zw
	default:
		return nil, fmt.Errorf("unknown compression %d", c)
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// mediaType returns the type of the layer in an OCI or a Docker manifest.
func (l Layer) mediaType(docker bool) string {
	if l.MediaType != "" {
		return l.MediaType
	}
	base, suffix := "application/vnd.oci.image.layer.v1.tar", map[Compression]string{Gzip: "+gzip", Zstd: "+zstd"}
	if l.NonDistributable {
		base = "application/vnd.oci.image.layer.nondistributable.v1.tar"
	}
	if docker {
		base, suffix = "application/vnd.docker.image.rootfs.diff.tar", map[Compression]string{Gzip: ".gzip", Zstd: ".zstd"}
		if l.NonDistributable {
			base = "application/vnd.docker.image.rootfs.foreign.diff.tar"
		}
	}
	return base + suffix[l.Compression]
}
