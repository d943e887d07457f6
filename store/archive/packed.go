package archive

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// compression is how a stream is compressed.
type compression string

const (
	plain   compression = ""
	gzipped compression = "gzip"
	zstded  compression = "zstd"
)

// magics are what compressed streams begin with. Not all can be read.
var magics = []struct {
	is    compression
	bytes []byte
}{
	{gzipped, []byte{0x1f, 0x8b}},
	{zstded, []byte{0x28, 0xb5, 0x2f, 0xfd}},
	{"bzip2", []byte("BZh")},
	{"xz", []byte{0xfd, '7', 'z', 'X', 'Z', 0}},
}

// magicSize is how many bytes tell how a stream is compressed.
const magicSize = 6

// detect tells how a stream is compressed by its first bytes.
func detect(r io.Reader) (compression, error) {
	head := make([]byte, magicSize)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return plain, err
	}
	return compressionOf(head[:n]), nil
}

func compressionOf(head []byte) compression {
	for _, m := range magics {
		if bytes.HasPrefix(head, m.bytes) {
			return m.is
		}
	}
	return plain
}

// maxWindow is how much of what it has decompressed a zstd stream may make its reader
// keep: what zstd itself allows.
const maxWindow = 128 << 20

// decompress returns what is compressed in r.
func decompress(r io.Reader, c compression) (io.ReadCloser, error) {
	switch c {
	case plain:
		return io.NopCloser(r), nil
	case gzipped:
		return gzip.NewReader(r)
	case zstded:
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return nil, fmt.Errorf("it is compressed with %s, which is not read here", c)
}

// cursor reads a compressed tar from its beginning.
type cursor struct {
	r  io.ReadCloser
	at int64
}

// begin returns a cursor at the beginning.
func (t *tarball) begin() (*cursor, error) {
	r, err := decompress(io.NewSectionReader(t.f, 0, t.info.Size()), t.packed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotArchive, err)
	}
	return &cursor{r: r}, nil
}

func (c *cursor) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.at += int64(n)
	return n, err
}

func (c *cursor) close() { c.r.Close() }

// seek returns a cursor at an offset. What comes before has to be decompressed for that,
// unless the last reader stopped there: whoever reads the files in their order does it
// once.
func (t *tarball) seek(ctx context.Context, offset int64) (*cursor, error) {
	t.mu.Lock()
	c := t.idle
	if c != nil && c.at <= offset {
		t.idle = nil
	} else {
		c = nil
	}
	t.mu.Unlock()
	if c == nil {
		var err error
		if c, err = t.begin(); err != nil {
			return nil, err
		}
	}
	for c.at < offset {
		err := ctx.Err()
		if err == nil {
			_, err = io.CopyN(io.Discard, c, min(offset-c.at, 1<<20))
		}
		if err != nil {
			c.close()
			return nil, err
		}
	}
	return c, nil
}

// rest takes a cursor back.
func (t *tarball) rest(c *cursor) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.idle != nil {
		t.idle.close()
	}
	t.idle = c
}
