package blobio_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt"
	"imgcrypt/store/internal/blobio"
)

func descOf(data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: "a/b", Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func TestReader(t *testing.T) {
	t.Parallel()
	for _, data := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("0123456789"), 1000)} {
		for _, want := range []ocispec.Descriptor{descOf(data), {MediaType: "a/b"}} {
			r := blobio.NewReader(t.Context(), bytes.NewReader(data), want)
			if err := iotest.TestReader(r, data); err != nil {
				t.Error(err)
			}
			if got := r.Desc(); got.Digest != descOf(data).Digest || got.Size != int64(len(data)) || got.MediaType != "a/b" {
				t.Errorf("got %v", got)
			}
			if r.Err() != io.EOF {
				t.Error(r.Err())
			}
		}
	}
}

// No wrong byte is ever followed by an end, and never are there more than there should be.
func TestReaderMismatch(t *testing.T) {
	t.Parallel()
	data := []byte("0123456789")
	longer, shorter, other := descOf(data), descOf(data), descOf(data)
	longer.Size++
	shorter.Size--
	other.Digest = digest.FromString("other")
	for _, want := range []ocispec.Descriptor{longer, shorter, other, {Digest: other.Digest, Size: -1}} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "with the end": iotest.DataErrReader,
		} {
			r := blobio.NewReader(t.Context(), wrap(bytes.NewReader(data)), want)
			got, err := io.ReadAll(r)
			if !errors.Is(err, imgcrypt.ErrMismatch) || int64(len(got)) > max(want.Size, 0) {
				t.Errorf("%s: %q, %v", name, got, err)
			}
			if _, again := r.Read(make([]byte, 1)); again != err {
				t.Errorf("%s: then %v", name, again)
			}
		}
	}
}

func TestReaderEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	r := blobio.NewReader(ctx, bytes.NewReader(make([]byte, 10)), ocispec.Descriptor{})
	if _, err := r.Read(make([]byte, 5)); err != nil {
		t.Error(err)
	}
	cancel()
	if n, err := r.Read(make([]byte, 5)); n != 0 || !errors.Is(err, context.Canceled) {
		t.Error(n, err)
	}
	broken := errors.New("broken")
	r = blobio.NewReader(t.Context(), iotest.ErrReader(broken), ocispec.Descriptor{})
	if _, err := io.ReadAll(r); err != broken {
		t.Error(err)
	}
}

// A writer's io.EOF is not the reader's.
func TestCopyWriterFails(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{io.EOF, errors.New("full")} {
		_, err := blobio.Copy(t.Context(), failing{cause}, bytes.NewReader([]byte("data")), ocispec.Descriptor{})
		if errors.Is(err, io.EOF) || cause != io.EOF && !errors.Is(err, cause) || cause == io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%v: got %v", cause, err)
		}
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestCheckDigest(t *testing.T) {
	t.Parallel()
	for _, good := range []digest.Digest{digest.FromString(""), digest.SHA512.FromString(""), digest.SHA384.FromString("")} {
		if err := blobio.CheckDigest(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []digest.Digest{"", "sha256:", "sha256:../..", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256"} {
		if err := blobio.CheckDigest(bad); !errors.Is(err, imgcrypt.ErrManifest) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
