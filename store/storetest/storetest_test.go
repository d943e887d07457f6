package storetest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/store/storetest"
)

// memory is a store in memory. With a fault it is wrong in one point.
type memory struct {
	fault string

	mu     sync.Mutex
	blobs  map[digest.Digest][]byte
	refs   map[digest.Digest][]ocispec.Descriptor
	names  map[string]ocispec.Descriptor
	closed bool
}

func newMemory(fault string) *memory {
	return &memory{
		fault: fault, blobs: map[digest.Digest][]byte{}, refs: map[digest.Digest][]ocispec.Descriptor{}, names: map[string]ocispec.Descriptor{},
	}
}

var errClosed = errors.New("closed")

func (m *memory) get(d digest.Digest) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed && m.fault != "open after close" {
		return nil, errClosed
	}
	data, ok := m.blobs[d]
	if !ok && m.fault == "missing is empty" {
		return nil, nil
	}
	if !ok && m.fault == "other error for missing" {
		return nil, os.ErrNotExist
	}
	if !ok {
		return nil, fmt.Errorf("%s: %w", d, imgcrypt.ErrNotFound)
	}
	return data, nil
}

func (m *memory) Has(_ context.Context, desc ocispec.Descriptor) (bool, error) {
	_, err := m.get(desc.Digest)
	if errors.Is(err, imgcrypt.ErrNotFound) {
		return m.fault == "has all", nil
	}
	return true, err
}

func (m *memory) Open(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := desc.Digest.Validate(); err != nil && m.fault != "any digest" {
		return nil, err
	}
	data, err := m.get(desc.Digest)
	if m.fault == "bytes" && len(data) > 0 {
		data = append(slices.Clone(data[:len(data)-1]), 0)
	}
	return io.NopCloser(bytes.NewReader(data)), err
}

func (m *memory) put(d digest.Digest, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blobs[d] = data
}

func (m *memory) Put(ctx context.Context, want ocispec.Descriptor, r io.Reader, refs ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	if err := want.Digest.Validate(); want.Digest != "" && err != nil {
		if m.fault == "any digest" {
			return want, nil
		}
		return ocispec.Descriptor{}, err
	}
	if _, err := m.get(want.Digest); errors.Is(err, errClosed) {
		return ocispec.Descriptor{}, err
	}
	if _, err := m.get(want.Digest); want.Digest != "" && err == nil && m.fault == "present is not read" {
		return ocispec.Descriptor{MediaType: want.MediaType, Digest: want.Digest, Size: want.Size}, nil
	}
	data, err := m.readAll(ctx, want, r)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	algorithm := digest.Canonical
	if want.Digest != "" && m.fault != "only SHA-256" {
		algorithm = want.Digest.Algorithm()
	}
	got := ocispec.Descriptor{MediaType: want.MediaType, Digest: algorithm.FromBytes(data), Size: int64(len(data))}
	if m.fault == "stored before it is checked" {
		m.put(got.Digest, data)
	}
	if want.Digest != "" && m.fault != "no check" && (want.Digest != got.Digest || want.Size != got.Size && m.fault != "no check of the size") {
		return got, fmt.Errorf("put: %w", imgcrypt.ErrMismatch)
	}
	switch m.fault {
	case "media type is lost":
		got.MediaType = ""
	case "annotations":
		got.Annotations = map[string]string{"a": "b"}
	}
	m.put(got.Digest, data)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refs[got.Digest] = refs
	return got, nil
}

func (m *memory) readAll(ctx context.Context, want ocispec.Descriptor, r io.Reader) ([]byte, error) {
	var data []byte
	buf := make([]byte, 1<<20)
	for idle := 0; idle < 100; idle++ {
		if err := ctx.Err(); err != nil && m.fault != "context" {
			return nil, err
		} else if err != nil && len(data) > 10<<20 {
			return data, nil
		}
		n, err := r.Read(buf)
		data = append(data, buf[:n]...)
		if m.fault == "visible in part" {
			m.put(want.Digest, data)
		}
		switch {
		case err == io.EOF, err == io.ErrUnexpectedEOF && m.fault == "early end", errors.Is(err, io.EOF) && m.fault == "wrapped end":
			return data, nil
		case err != nil && m.fault == "data with the error counts":
			m.put(digest.FromBytes(data), data)
			return nil, err
		case err != nil && m.fault == "error is replaced":
			return nil, errors.New("cannot read")
		case err != nil:
			return nil, err
		}
		if n > 0 {
			idle = 0
		}
	}
	return nil, io.ErrNoProgress
}

func (m *memory) Resolve(_ context.Context, ref string) (ocispec.Descriptor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	desc, ok := m.names[ref]
	if m.closed {
		return desc, errClosed
	}
	if !ok && m.fault == "unknown names are empty" {
		return desc, nil
	}
	if !ok {
		return desc, imgcrypt.ErrNotFound
	}
	return desc, nil
}

func (m *memory) Tag(_ context.Context, ref string, desc ocispec.Descriptor) error {
	if ref == "" && m.fault != "any name" {
		return errors.New("no name")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errClosed
	}
	switch m.fault {
	case "delete, then create":
		delete(m.names, ref)
		m.mu.Unlock()
		for range 1000 {
			_ = digest.FromString("for a while")
		}
		m.mu.Lock()
	case "other names are lost":
		clear(m.names)
	case "name without size":
		desc.Size = 0
	}
	m.names[ref] = desc
	return nil
}

// collect removes what no name leads to.
func (m *memory) collect(*testing.T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	live := map[digest.Digest]bool{}
	var mark func(d digest.Digest)
	mark = func(d digest.Digest) {
		live[d] = true
		for _, ref := range m.refs[d] {
			if m.fault != "refs" {
				mark(ref.Digest)
			}
		}
	}
	for _, desc := range m.names {
		mark(desc.Digest)
	}
	for d := range m.blobs {
		if !live[d] {
			delete(m.blobs, d)
		}
	}
}

func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

const faultVariable = "STORETEST_FAULT"

// A store that does what it should passes.
func TestMemory(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(*testing.T) storetest.Subject {
		m := newMemory(os.Getenv(faultVariable))
		return storetest.Subject{
			Store: m, Tags: m, OddNames: []string{""}, Piece: 4096, Collect: m.collect,
			Reopen: func(*testing.T) storetest.Subject {
				if m.fault == "forgets" {
					clear(m.blobs)
				}
				return storetest.Subject{Store: m, Tags: m}
			},
			Leftovers: func(*testing.T) []string {
				if m.fault == "leftovers" {
					return []string{"something"}
				}
				return nil
			},
		}
	})
}

// A store with a fault does not pass.
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, fault := range []string{
		"open after close", "missing is empty", "other error for missing", "has all", "any digest", "bytes", "present is not read", "only SHA-256",
		"stored before it is checked", "no check", "no check of the size", "media type is lost", "annotations", "context", "visible in part",
		"early end", "wrapped end", "data with the error counts", "error is replaced", "unknown names are empty", "any name", "delete, then create",
		"other names are lost", "name without size", "refs", "forgets", "leftovers",
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestMemory$")
			cmd.Env = append(os.Environ(), faultVariable+"="+fault)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Errorf("the suite passed:\n%s", out)
			} else if !strings.Contains(string(out), "--- FAIL: TestMemory/") || strings.Contains(string(out), "panic:") {
				t.Errorf("the suite did not fail but break: %v\n%s", err, out)
			}
		})
	}
}
