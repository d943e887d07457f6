package main

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/binary"
)

// format is how the bytes that have left are compressed. The keeper is told it as
// one byte.
type format byte

const (
	// formatNone: nothing has left.
	formatNone format = iota
	formatPlain
	formatGzip
	formatZstd
)

// formatOf tells the format from the first bytes, as containerd does: not from the
// layer's media type.
func formatOf(first []byte) format {
	switch {
	case bytes.HasPrefix(first, []byte{0x1f, 0x8b, 0x08}):
		return formatGzip
	case bytes.HasPrefix(first, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return formatZstd
	case len(first) >= 4 && first[0]&0xf0 == 0x50 && bytes.Equal(first[1:4], []byte{0x2a, 0x4d, 0x18}):
		return formatZstd // a skippable frame
	}
	return formatPlain
}

// tail is what has to end an output that must not be taken for a layer. It is
// something that a tar archive may be followed by, so that containerd gets to ask
// for this process's failure instead of complaining about the archive; but it is
// random, so that the digest of the whole cannot be the diff id that whoever forged
// the layer has put into the image's config. So is its length, lest the forgery
// announce that so many bytes have to be skipped.
func tail(f format) []byte {
	const least, most = 1 << 10, 3 << 10
	random := make([]byte, most)
	_, _ = rand.Read(random)
	random = random[:least+int(binary.LittleEndian.Uint16(random))%(most-least)]
	switch f {
	case formatNone:
		// Two blocks of zeros are an empty archive.
		return append(make([]byte, 1024), random...)
	case formatGzip:
		return gzipMember(random)
	case formatZstd:
		return zstdFrame(random)
	}
	return random
}

// gzipMember returns data as a whole member of a gzip file (RFC 1952), of which
// another may come before it.
func gzipMember(data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	// A bytes.Buffer takes everything.
	_, _ = w.Write(data)
	_ = w.Close()
	return b.Bytes()
}

// zstdFrame returns data as a zstd frame (RFC 8878, 3.1.1) with one raw block.
func zstdFrame(data []byte) []byte {
	const (
		descriptor = 0x00 // no content size, no checksum, no dictionary
		window     = 0x10 // of 4 KiB, which is also the largest block
		lastRaw    = 0x01
	)
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, descriptor, window}
	header := uint32(len(data))<<3 | lastRaw
	frame = append(frame, byte(header), byte(header>>8), byte(header>>16))
	return append(frame, data...)
}
