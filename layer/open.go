package layer

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
)

// Holdback is how many bytes at the end of a layer an [Opener] keeps until the
// MAC has been checked. A reader that stops listening when it has seen enough can
// so never have seen a whole layer that turned out to be forged.
const Holdback = chunk

// Opener reads as the plain bytes of an encrypted layer. The last [Holdback] bytes,
// or all of a smaller layer, are released only after the MAC was found right.
type Opener struct {
	sealed io.Reader
	stream cipher.Stream
	mac    hash.Hash
	want   []byte // the MAC
	size   int64  // of the ciphertext, as its descriptor says
	seen   int64

	held  []byte   // decrypted, waiting for the MAC or for what follows it
	ready [][]byte // decrypted, to be handed out
	spare []byte   // a buffer that nothing is in
	err   error    // what Read returns once ready is empty
}

// NewOpener returns a reader of the plain bytes of sealed, whose descriptor says
// that it has size bytes. A missing or short MAC is refused here, with an error
// that wraps [ErrTampered], before a byte is read.
func NewOpener(sealed io.Reader, s Secret, p Public, size int64) (*Opener, error) {
	switch {
	case len(p.MAC) == 0:
		return nil, fmt.Errorf("%w: its MAC is missing", ErrTampered)
	case len(p.MAC) != sha256.Size:
		return nil, fmt.Errorf("%w: its MAC has %d bytes, want %d", ErrTampered, len(p.MAC), sha256.Size)
	case size < 0:
		return nil, fmt.Errorf("%w: a size of %d bytes", ErrMalformed, size)
	}
	o := &Opener{sealed: sealed, want: p.MAC, size: size}
	o.stream, o.mac = ciphers(&s)
	return o, nil
}

// Read implements [io.Reader]. It returns io.EOF only after MAC and length were
// found right; otherwise an error that wraps [ErrTampered], or the error of the
// underlying reader.
func (o *Opener) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	piece, err := o.next()
	if err != nil {
		return 0, err
	}
	n := copy(p, piece)
	o.consume(n)
	return n, nil
}

// WriteTo implements [io.WriterTo] without copying.
func (o *Opener) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		piece, err := o.next()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(piece)
		total += int64(n)
		o.consume(n)
		if err != nil {
			return total, err
		}
	}
}

// next returns the bytes to hand out, which are never empty, or the error that
// ends the layer.
func (o *Opener) next() ([]byte, error) {
	for len(o.ready) == 0 {
		if o.err != nil {
			return nil, o.err
		}
		o.fill()
	}
	return o.ready[0], nil
}

// consume drops n bytes of what next returned.
func (o *Opener) consume(n int) {
	piece := o.ready[0][n:]
	if len(piece) > 0 {
		o.ready[0] = piece
		return
	}
	o.ready = o.ready[1:]
}

// fill reads and decrypts one chunk. What was held becomes ready when a whole
// chunk follows it; at the end of the layer everything does, if the MAC is right.
func (o *Opener) fill() {
	buf := o.buffer()
	n, err := o.readFull(buf)
	o.seen += int64(n)
	o.mac.Write(buf[:n])
	o.stream.XORKeyStream(buf[:n], buf[:n])
	buf = buf[:n]
	if o.seen > o.size {
		o.fail(fmt.Errorf("%w: longer than the %d bytes that its descriptor says", ErrTampered, o.size))
		return
	}
	if err == nil {
		if o.held != nil {
			o.ready = append(o.ready, o.held)
			o.spare = o.held[:cap(o.held)]
		}
		o.held = buf
		return
	}
	if err != io.EOF {
		o.fail(err)
		return
	}
	if o.seen < o.size {
		o.fail(fmt.Errorf("%w: %d bytes long, its descriptor says %d", ErrTampered, o.seen, o.size))
		return
	}
	if !hmac.Equal(o.mac.Sum(nil), o.want) {
		o.fail(fmt.Errorf("%w: its MAC is wrong", ErrTampered))
		return
	}
	for _, piece := range [][]byte{o.held, buf} {
		if len(piece) > 0 {
			o.ready = append(o.ready, piece)
		}
	}
	o.held, o.spare, o.err = nil, nil, io.EOF
}

// readFull fills buf, or returns why it could not. Unlike io.ReadFull it does not
// take a reader's own io.ErrUnexpectedEOF, a broken connection, for an end.
func (o *Opener) readFull(buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = o.sealed.Read(buf[n:])
		n += m
	}
	if n == len(buf) && err == io.EOF {
		err = nil // The next read says so again.
	}
	return n, err
}

// fail ends the layer and forgets what was held.
func (o *Opener) fail(err error) {
	o.err = err
	o.held, o.spare = nil, nil
}

// buffer returns an empty buffer: of a chunk, or for a small layer of one byte
// more than it has, so that one read sees its end and anything that follows.
func (o *Opener) buffer() []byte {
	if o.spare != nil {
		buf := o.spare
		o.spare = nil
		return buf
	}
	return make([]byte, min(chunk-1, o.size)+1)
}
