package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/typeurl/v2"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"imgcrypt/layer"
)

// released is what leaves of a layer of forgedSize bytes before its MAC is checked.
const (
	released   = 3 * layer.Holdback
	forgedSize = released + layer.Holdback + 1
)

// forgedTar is what the forger wants containerd to take for the layer.
func forgedTar(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	text := []byte("forged")
	if err := w.WriteHeader(&tar.Header{Name: "etc/passwd", Mode: 0o644, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// forgery is a stream whose first released bytes are a whole layer with the diff id
// that the forger foresees.
type forgery struct {
	name   string
	stream []byte
	diffID digest.Digest
}

func forgeries(t *testing.T) []forgery {
	t.Helper()
	text := forgedTar(t)
	plain := append(bytes.Clone(text), make([]byte, released-len(text))...)

	// The members and frames that fill up the rest have no content.
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, _ = w.Write(text)
	w.Close()
	empty := func(extra int) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		w.Extra = make([]byte, extra)
		w.Close()
		return b.Bytes()
	}
	const most = 60000 // per member
	for overhead := len(empty(1)) - 1; gz.Len() < released; {
		fill := released - gz.Len()
		if fill > 2*most {
			fill = most
		}
		if fill > most {
			fill /= 2
		}
		gz.Write(empty(fill - overhead))
	}

	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	zst := enc.EncodeAll(text, nil)
	skip := released - len(zst) - 8
	zst = append(zst, 0x50, 0x2a, 0x4d, 0x18)
	zst = binary.LittleEndian.AppendUint32(zst, uint32(skip))
	zst = append(zst, make([]byte, skip)...)

	all := []forgery{
		{"plain", plain, digest.FromBytes(plain)},
		{"gzip", gz.Bytes(), digest.FromBytes(text)},
		{"zstd", zst, digest.FromBytes(text)},
	}
	for i, f := range all {
		if len(f.stream) != released {
			t.Fatalf("%s: %d bytes, want %d", f.name, len(f.stream), released)
		}
		all[i].stream = append(bytes.Clone(f.stream), make([]byte, forgedSize-released)...)
	}
	return all
}

// forge makes of the ciphertext of e one of stream, by someone who knows the
// plaintext, but no key.
func forge(e encrypted, stream []byte) []byte {
	forged := bytes.Clone(e.sealed)
	for i := range forged {
		forged[i] ^= e.plain[i] ^ stream[i]
	}
	return forged
}

// apply does what containerd's applier does, but extracts to nowhere: the archive to
// its end, what follows it, then the question for the processor's failure.
func apply(ctx context.Context, p diff.StreamProcessor) (digest.Digest, error) {
	next, err := diff.GetProcessor(ctx, p, nil)
	if err != nil {
		return "", err
	}
	digester := digest.Canonical.Digester()
	r := io.TeeReader(next, digester.Hash())
	archive := tar.NewReader(r)
	for {
		if _, err := archive.Next(); err == io.EOF {
			break
		} else if err != nil {
			return "", err
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return "", err
	}
	return digester.Digest(), p.(interface{ Err() error }).Err()
}

// processor starts a decoder of e's forged ciphertext by containerd's own code.
func processor(t *testing.T, program, mode string, e encrypted, sealed []byte) diff.StreamProcessor {
	t.Helper()
	sent, err := typeurl.MarshalAny(e.payload(e.private))
	if err != nil {
		t.Fatal(err)
	}
	const mediaType = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
	p, err := diff.NewBinaryProcessor(t.Context(), mediaType, strings.TrimSuffix(mediaType, "+encrypted"),
		diff.NewProcessorChain(mediaType, bytes.NewReader(sealed)), program, nil, []string{modeEnv + "=" + mode}, sent)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A layer whose beginning was forged to be a whole one is refused: its digest is
// never the one that the forger could foresee, even where containerd does not know
// of the failure; and where it does, it shows it.
func TestForgedPrefix(t *testing.T) {
	t.Parallel()
	program, self := decoder(t), executable(t)
	e := seal(t, forgedSize)
	for _, f := range forgeries(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			sealed := forge(e, f.stream)
			missed := 0
			for range runs() / 4 {
				p := processor(t, program, "", e, sealed)
				got, err := apply(t.Context(), p)
				p.Close()
				switch {
				case got == f.diffID:
					t.Errorf("has the forger's diff id; error %v", err)
				case err == nil:
					missed++
				case !strings.Contains(err.Error(), "tampered"):
					t.Errorf("containerd shows %v", err)
				}
			}
			if missed > tolerable(runs()/4) {
				t.Errorf("missed in %d of %d runs", missed, runs()/4)
			}
			// That this is a forgery worth the name shows without the keeper.
			p := processor(t, self, "no keeper", e, sealed)
			defer p.Close()
			if got, _ := apply(t.Context(), p); got != f.diffID {
				t.Errorf("got diff id %s, want the forger's %s", got, f.diffID)
			}
		})
	}
}

// The tail of each format lets containerd read to the end, and changes the digest.
func TestTail(t *testing.T) {
	t.Parallel()
	text := forgedTar(t)
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, _ = w.Write(text)
	w.Close()
	for _, tt := range []struct {
		name   string
		before []byte
		want   format
	}{
		{"nothing", nil, formatNone},
		{"plain", text, formatPlain},
		{"gzip", gz.Bytes(), formatGzip},
		{"zstd", enc.EncodeAll(text, nil), formatZstd},
		{"zstd, skippable frame first", append([]byte{0x5f, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9}, enc.EncodeAll(text, nil)...), formatZstd},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := formatNone
			if len(tt.before) > 0 {
				f = formatOf(tt.before)
			}
			if f != tt.want {
				t.Fatalf("format %d, want %d", f, tt.want)
			}
			digests := map[digest.Digest]bool{}
			for range 100 {
				r, err := compression.DecompressStream(io.MultiReader(bytes.NewReader(tt.before), bytes.NewReader(tail(f))))
				if err != nil {
					t.Fatal(err)
				}
				digester := digest.Canonical.Digester()
				tee := io.TeeReader(r, digester.Hash())
				for archive := tar.NewReader(tee); err == nil; {
					_, err = archive.Next()
				}
				if !errors.Is(err, io.EOF) {
					t.Fatalf("the archive ends with %v", err)
				}
				n, err := io.Copy(io.Discard, tee)
				if err != nil || n < 1024 {
					t.Fatalf("after the archive: %d bytes, %v", n, err)
				}
				digests[digester.Digest()] = true
				r.Close()
			}
			if len(digests) != 100 {
				t.Errorf("%d digests in 100 runs", len(digests))
			}
		})
	}
}

func TestFormatOf(t *testing.T) {
	t.Parallel()
	random := make([]byte, 32)
	_, _ = rand.Read(random)
	random[0] = 0
	for _, first := range [][]byte{{0}, {0x1f}, {0x1f, 0x8b}, {0x1f, 0x8b, 0x07}, {0x28, 0xb5, 0x2f}, {0x50, 0x2a, 0x4d}, random} {
		if got := formatOf(first); got != formatPlain {
			t.Errorf("%x: format %d", first, got)
		}
	}
}
