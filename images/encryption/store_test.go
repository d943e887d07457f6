package encryption_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"imgcrypt"
	"imgcrypt/images/encryption"
	"imgcrypt/internal/testimage"
)

func descOf(data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: "text/plain", Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// overGRPC returns cs as a client of containerd sees it.
func overGRPC(t *testing.T, cs content.Store) content.Store {
	t.Helper()
	client, _ := serve(t, cs)
	return client
}

func serve(t *testing.T, cs content.Store) (content.Store, *grpc.Server) {
	t.Helper()
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	server := grpc.NewServer(grpc.WaitForHandlers(true)) // or they write into a directory that is being removed
	api.RegisterContentServer(server, contentserver.New(cs))
	done := make(chan error)
	go func() { done <- server.Serve(listener) }()
	conn := must(grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())))
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return proxy.NewContentStore(conn), server
}

// kinds are the ways in which a client reaches a content store.
var kinds = map[string]func(*testing.T, content.Store) content.Store{
	"in process": func(_ *testing.T, cs content.Store) content.Store { return cs },
	"over gRPC":  overGRPC,
}

// sizes are around those of the pieces in which blobs are read and written.
var sizes = []int{0, 1, 1<<20 - 1, 1 << 20, 1<<20 + 1, 3<<20 + 17}

func TestPutAndOpen(t *testing.T) {
	t.Parallel()
	for kind, client := range kinds {
		for _, size := range sizes {
			for _, known := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %d bytes, digest known %v", kind, size, known), func(t *testing.T) {
					t.Parallel()
					cs, _ := newContent(t)
					checkPutAndOpen(t, client(t, cs), bytes.Repeat([]byte("0123456"), size/7+1)[:size], known)
				})
			}
		}
	}
}

func checkPutAndOpen(t *testing.T, cs content.Store, data []byte, known bool) {
	t.Helper()
	s := encryption.NewStore(cs)
	want := ocispec.Descriptor{MediaType: "text/plain"}
	if known {
		want = descOf(data)
	}
	// The second time it is there already.
	for range 2 {
		got, err := s.Put(t.Context(), want, iotest.HalfReader(bytes.NewReader(data)))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(descOf(data), got); diff != "" {
			t.Error(diff)
		}
		checkNoIngests(t, cs)
	}
	r, err := s.Open(t.Context(), descOf(data))
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(r, data); err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenMissing(t *testing.T) {
	t.Parallel()
	for kind, client := range kinds {
		cs, _ := newContent(t)
		_, err := encryption.NewStore(client(t, cs)).Open(t.Context(), descOf([]byte("missing")))
		if !errors.Is(err, imgcrypt.ErrNotFound) || !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// A blob file that lost its end is not a shorter blob.
func TestOpenCutShort(t *testing.T) {
	t.Parallel()
	cs, dir := newContent(t)
	data := bytes.Repeat([]byte("x"), 3<<20)
	desc := must(testimage.PutBlob(dir, "text/plain", data))
	r, err := encryption.NewStore(cs).Open(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.Truncate(filepath.Join(dir, "blobs", "sha256", desc.Digest.Encoded()), 2<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

func TestPutMismatch(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("x"), 1<<20+5)
	good := descOf(data)
	short, long, other := good, good, good
	short.Size--
	long.Size++
	other.Digest = digest.FromString("other")
	for kind, client := range kinds {
		for name, want := range map[string]ocispec.Descriptor{"too long": short, "too short": long, "other digest": other} {
			for _, present := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, present %v", kind, name, present), func(t *testing.T) {
					t.Parallel()
					cs, dir := newContent(t)
					if present {
						must(testimage.PutBlob(dir, "text/plain", data))
						if want.Digest == other.Digest {
							must(testimage.PutBlob(dir, "text/plain", []byte("other")))
						}
					}
					before := blobs(t, cs)
					_, err := encryption.NewStore(client(t, cs)).Put(t.Context(), want, bytes.NewReader(data))
					if !errors.Is(err, imgcrypt.ErrMismatch) {
						t.Errorf("got %v", err)
					}
					checkNoIngests(t, cs)
					if diff := cmp.Diff(before, blobs(t, cs)); diff != "" {
						t.Error(diff)
					}
				})
			}
		}
	}
}

func TestPutMalformedDigest(t *testing.T) {
	t.Parallel()
	cs, _ := newContent(t)
	for _, dgst := range []digest.Digest{"sha256:00", "sha256", "md5:d41d8cd98f00b204e9800998ecf8427e", "../../etc/passwd"} {
		_, err := encryption.NewStore(cs).Put(t.Context(), ocispec.Descriptor{Digest: dgst}, strings.NewReader(""))
		if err == nil {
			t.Errorf("%q was accepted", dgst)
		}
	}
}

// A blob exists only if its reader said io.EOF; every other end leaves nothing behind.
func TestPutReaderFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for kind, client := range kinds {
		for _, cause := range []error{broken, io.ErrUnexpectedEOF, io.ErrClosedPipe} {
			for _, size := range sizes {
				for _, known := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s, %v after %d bytes, digest known %v", kind, cause, size, known), func(t *testing.T) {
						t.Parallel()
						cs, _ := newContent(t)
						data := bytes.Repeat([]byte("x"), size)
						want := ocispec.Descriptor{}
						if known {
							want = descOf(data)
						}
						_, err := encryption.NewStore(client(t, cs)).Put(t.Context(), want, io.MultiReader(bytes.NewReader(data), iotest.ErrReader(cause)))
						if !errors.Is(err, cause) {
							t.Errorf("got %v", err)
						}
						checkNoIngests(t, cs)
						if got := blobs(t, cs); len(got) > 0 {
							t.Errorf("left behind: %v", got)
						}
					})
				}
			}
		}
	}
}

// What the reader has to say counts also if the blob is there: it may be that its
// source was forged.
func TestPutReaderFailsAlthoughPresent(t *testing.T) {
	t.Parallel()
	cs, dir := newContent(t)
	data := []byte("data")
	desc := must(testimage.PutBlob(dir, "text/plain", data))
	broken := errors.New("broken")
	_, err := encryption.NewStore(cs).Put(t.Context(), desc, io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// faulty is a content store that fails where it is told to.
type faulty struct {
	content.Store
	// write is asked before each write, commit before each commit.
	write, commit func() error
}

func (f *faulty) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := f.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return &faultyWriter{Writer: w, store: f}, nil
}

type faultyWriter struct {
	content.Writer
	store *faulty
}

func (w *faultyWriter) Write(p []byte) (int, error) {
	if w.store.write != nil {
		if err := w.store.write(); err != nil {
			n, _ := w.Writer.Write(p[:len(p)/2])
			return n, err
		}
	}
	return w.Writer.Write(p)
}

func (w *faultyWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	if w.store.commit != nil {
		if err := w.store.commit(); err != nil {
			w.Writer.Close()
			return err
		}
	}
	return w.Writer.Commit(ctx, size, expected, opts...)
}

// after returns a function that fails from its nth call on.
func after(n int, err error) func() error {
	return func() error {
		if n--; n < 0 {
			return err
		}
		return nil
	}
}

func TestPutStoreFails(t *testing.T) {
	t.Parallel()
	full := &os.PathError{Op: "write", Path: "data", Err: syscall.ENOSPC}
	for name, failing := range map[string]func(content.Store) content.Store{
		"first write":  func(cs content.Store) content.Store { return &faulty{Store: cs, write: after(0, full)} },
		"second write": func(cs content.Store) content.Store { return &faulty{Store: cs, write: after(1, full)} },
		"commit":       func(cs content.Store) content.Store { return &faulty{Store: cs, commit: after(0, full)} },
	} {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, digest known %v", name, known), func(t *testing.T) {
				t.Parallel()
				cs, _ := newContent(t)
				data := bytes.Repeat([]byte("x"), 2<<20)
				want := ocispec.Descriptor{}
				if known {
					want = descOf(data)
				}
				_, err := encryption.NewStore(failing(cs)).Put(t.Context(), want, bytes.NewReader(data))
				if !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("got %v", err)
				}
				checkNoIngests(t, cs)
				if got := blobs(t, cs); len(got) > 0 {
					t.Errorf("left behind: %v", got)
				}
			})
		}
	}
}

// What was written is removed although the context that wrote it has ended.
func TestPutCancelled(t *testing.T) {
	t.Parallel()
	for kind, client := range kinds {
		for n := range 3 {
			cs, _ := newContent(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			cancelAfter := func() error {
				if n--; n < 0 {
					cancel()
				}
				return nil
			}
			store := &faulty{Store: client(t, cs), write: cancelAfter}
			_, err := encryption.NewStore(store).Put(ctx, ocispec.Descriptor{}, io.LimitReader(zeros{}, 100<<20))
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", kind, err)
			}
			checkNoIngests(t, cs)
		}
	}
	// However the connection words it.
	cs, _ := newContent(t)
	ctx, cancel := context.WithCancel(t.Context())
	store := &faulty{Store: cs, commit: func() error { cancel(); return errors.New("connection lost") }}
	_, err := encryption.NewStore(store).Put(ctx, ocispec.Descriptor{}, strings.NewReader("data"))
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	checkNoIngests(t, cs)
}

// The connection's end is not the reader's.
func TestContainerdGoesAway(t *testing.T) {
	t.Parallel()
	for n := range 3 {
		cs, _ := newContent(t)
		client, server := serve(t, cs)
		stopAfter := func() error {
			if n--; n < 0 {
				server.Stop()
			}
			return nil
		}
		_, err := encryption.NewStore(&faulty{Store: client, write: stopAfter}).Put(t.Context(), ocispec.Descriptor{}, io.LimitReader(zeros{}, 5<<20))
		if err == nil || errors.Is(err, io.EOF) {
			t.Error(err)
		}
	}
	// Which error it is depends on when the connection is found to have ended.
	cs, _ := newContent(t)
	store := &faulty{Store: cs, write: after(0, fmt.Errorf("failed to send write: %w", io.EOF))}
	_, err := encryption.NewStore(store).Put(t.Context(), ocispec.Descriptor{}, strings.NewReader("data"))
	if errors.Is(err, io.EOF) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

// A containerd that is not there is an error, and nothing to wait for.
func TestNoContainerd(t *testing.T) {
	t.Parallel()
	conn := must(grpc.NewClient("unix://"+filepath.Join(t.TempDir(), "containerd.sock"), grpc.WithTransportCredentials(insecure.NewCredentials())))
	defer conn.Close()
	s := encryption.NewStore(proxy.NewContentStore(conn))
	if _, err := s.Put(t.Context(), ocispec.Descriptor{}, strings.NewReader("data")); !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
	if _, err := s.Open(t.Context(), descOf([]byte("data"))); !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// idle never ends and never yields anything.
type idle struct{}

func (idle) Read([]byte) (int, error) { return 0, nil }

func TestPutIdleReader(t *testing.T) {
	t.Parallel()
	cs, _ := newContent(t)
	if _, err := encryption.NewStore(cs).Put(t.Context(), ocispec.Descriptor{}, idle{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("got %v", err)
	}
	checkNoIngests(t, cs)
}

func TestPutInParallel(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("x"), 2<<20)
	refs := []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString("config")}}
	for kind, client := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			cs, _ := newContent(t)
			s := encryption.NewStore(client(t, cs))
			var wg sync.WaitGroup
			for i := range 16 {
				wg.Go(func() {
					want := ocispec.Descriptor{MediaType: "text/plain"}
					if i%2 == 0 {
						want = descOf(data)
					}
					got, err := s.Put(t.Context(), want, bytes.NewReader(data), refs...)
					if err != nil {
						t.Error(err)
					}
					if diff := cmp.Diff(descOf(data), got); diff != "" {
						t.Error(diff)
					}
				})
			}
			wg.Wait()
			checkNoIngests(t, cs)
			info := must(cs.Info(t.Context(), digest.FromBytes(data)))
			if got := info.Labels["containerd.io/gc.ref.content.config"]; got != refs[0].Digest.String() {
				t.Errorf("label %q", got)
			}
		})
	}
}
