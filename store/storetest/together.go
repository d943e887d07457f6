package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
)

// With a context that has ended nothing is stored, and nothing is called missing.
func testCancelled(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	present, data := content(100), content(200)
	desc := s.put(layerType, present)
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	for _, want := range []ocispec.Descriptor{unknown(layerType), descOf(layerType, data)} {
		if _, err := s.Store.Put(ctx, want, bytes.NewReader(data)); !errors.Is(err, context.Canceled) {
			t.Errorf("put: got %v", err)
		}
	}
	s.checkClean()
	s.checkAbsent(descOf(layerType, data))
	if !s.NoLayers {
		r, err := s.Store.Open(ctx, desc)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("open: got %v", err)
		}
	}
	if s.Tags == nil {
		return
	}
	image := s.image("cancelled")
	if err := s.Tags.Tag(ctx, s.Names[0], image.manifest); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("tag: got %v", err)
	}
	if err := s.Tags.Tag(s.ctx, s.Names[0], image.manifest); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Tags.Resolve(ctx, s.Names[0]); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("resolve: got %v", err)
	}
}

// endless yields bytes until it is told to stop, which it never is; after so many of
// them it calls a function.
type endless struct {
	after int
	call  func()
}

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 0x80
	}
	if e.after -= len(p); e.after <= 0 && e.call != nil {
		e.call()
		e.call = nil
	}
	return len(p), nil
}

func testCancelledWhileWriting(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	for _, after := range s.sizes() {
		for _, want := range []ocispec.Descriptor{unknown(layerType), {MediaType: layerType, Digest: descOf("", nil).Digest, Size: 1 << 60}} {
			ctx, cancel := context.WithCancel(s.ctx)
			_, err := s.Store.Put(ctx, want, &endless{after, cancel})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("after %d bytes: got %v", after, err)
			}
			cancel()
			s.checkClean()
		}
	}
	s.checkUsable()
}

// Nobody sees a blob before its reader reported its end.
func testInvisible(t *testing.T, open func(*testing.T) Subject) {
	for _, known := range []bool{false, true} {
		s := start(t, open)
		data := content(2*s.Piece + 5)
		desc := descOf(layerType, data)
		want := unknown(layerType)
		if known {
			want = desc
		}
		r, w := io.Pipe()
		defer w.Close()
		done := make(chan error, 1)
		go func() {
			_, err := s.Store.Put(s.ctx, want, r)
			r.CloseWithError(err)
			done <- err
		}()
		for _, part := range [][]byte{data[:1], data[1 : s.Piece+1], data[s.Piece+1:]} {
			if _, err := w.Write(part); err != nil {
				t.Fatal(err)
			}
			s.checkAbsent(desc)
		}
		w.Close()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		s.checkPresent(desc, data)
		s.checkClean()
	}
}

func testSameInParallel(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	data := content(s.Piece + 1)
	desc := descOf(layerType, data)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			want := unknown(layerType)
			if i%2 == 0 {
				want = desc
			}
			got, err := s.Store.Put(s.ctx, want, bytes.NewReader(data))
			if err != nil {
				t.Error(err)
				return
			}
			s.checkDesc(desc, got)
			s.checkPresent(desc, data)
		})
	}
	wg.Wait()
	s.checkClean()
}

func testInParallel(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			data := fmt.Append(content(s.Piece/4), i)
			desc := descOf(layerType, data)
			want := unknown(layerType)
			if i%2 == 0 {
				want = desc
			}
			if _, err := s.Store.Put(s.ctx, want, bytes.NewReader(data)); err != nil {
				t.Error(err)
				return
			}
			s.checkPresent(desc, data)
		})
	}
	wg.Wait()
	s.checkClean()
}

// A blob that somebody puts does not vanish because somebody else fails to.
func testOneFails(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	data := content(s.Piece + 1)
	desc := descOf(layerType, data)
	broken := errors.New("broken")
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			if i%2 == 0 {
				if _, err := s.Store.Put(s.ctx, desc, bytes.NewReader(data)); err != nil {
					t.Error(err)
				}
				s.checkPresent(desc, data)
				return
			}
			if _, err := s.Store.Put(s.ctx, desc, &failing{data: data[:len(data)-i], err: broken}); !errors.Is(err, broken) {
				t.Errorf("got %v", err)
			}
		})
	}
	wg.Wait()
	s.checkPresent(desc, data)
	s.checkClean()
}

func testReadersInParallel(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	if s.NoLayers {
		return
	}
	blobs := make(map[string][]byte)
	for i := range 4 {
		blobs[fmt.Sprint(i)] = fmt.Append(content(s.Piece+i), i)
		s.put(layerType, blobs[fmt.Sprint(i)])
	}
	var wg sync.WaitGroup
	for range 4 {
		for _, data := range blobs {
			wg.Go(func() { s.checkPresent(descOf(layerType, data), data) })
		}
	}
	wg.Wait()
}

// A reader goes on whatever becomes of names meanwhile.
func testReadingWhileNaming(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	if s.Tags == nil || s.NoLayers {
		return
	}
	data := content(2 * s.Piece)
	first := s.imageOf("first", data)
	r, err := s.Store.Open(s.ctx, first.layer)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100, len(data))
	if _, err := io.ReadFull(r, got); err != nil {
		t.Fatal(err)
	}
	for _, salt := range []string{"second", "third"} {
		s.tag(s.Names[0], s.image(salt).manifest)
	}
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(append(got, rest...), data) {
		t.Errorf("read %d bytes, %v", 100+len(rest), err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// After it was closed a store does nothing any more, but does not fall over either.
func testClosed(t *testing.T, open func(*testing.T) Subject) {
	s := start(t, open)
	closer, ok := s.Store.(io.Closer)
	if !ok {
		return
	}
	image := s.image("closed")
	if s.Tags != nil {
		s.tag(s.Names[0], image.manifest)
	}
	if err := closer.Close(); err != nil {
		t.Error(err)
	}
	s.checkClean()
	if _, err := s.Store.Put(s.ctx, unknown(layerType), bytes.NewReader([]byte("data"))); err == nil {
		t.Error("put: no error")
	}
	if r, err := s.Store.Open(s.ctx, image.layer); err == nil {
		r.Close()
		t.Error("open: no error")
	}
	if s.Tags != nil {
		if err := s.Tags.Tag(s.ctx, s.Names[1], image.manifest); err == nil {
			t.Error("tag: no error")
		}
		if _, err := s.Tags.Resolve(s.ctx, s.Names[0]); err == nil || errors.Is(err, imgcrypt.ErrNotFound) {
			t.Errorf("resolve: %v", err)
		}
	}
	_ = closer.Close() // Whatever it says.
	s.checkClean()
}
