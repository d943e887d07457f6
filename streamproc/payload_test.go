package streamproc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/typeurl/v2"
	encconfig "github.com/containers/ocicrypt/config"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const sample = `{"DecryptConfig":{"Parameters":{"privkeys":["a2V5"],"privkeys-passwords":[""]}},` +
	`"Descriptor":{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip+encrypted","digest":"sha256:` +
	`e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":7,"annotations":{"a":"b"}}}`

func samplePayload() *Payload {
	return &Payload{
		DecryptConfig: DecryptConfig{Parameters: map[string][][]byte{
			"privkeys": {[]byte("key")}, "privkeys-passwords": {{}},
		}},
		Descriptor: ocispec.Descriptor{
			MediaType:   "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
			Digest:      "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
			Size:        7,
			Annotations: map[string]string{"a": "b"},
		},
	}
}

func anyOf(typeURL, value string) []byte {
	var b []byte
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendString(b, typeURL)
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	return protowire.AppendString(b, value)
}

func TestParseAny(t *testing.T) {
	t.Parallel()
	good := anyOf(PayloadURI, sample)
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 5)
	for _, tt := range []struct {
		name string
		data []byte
		want string // in the error; empty: samplePayload
	}{
		{"good", good, ""},
		{"type URL with a host", anyOf("type.googleapis.com/"+PayloadURI, sample), ""},
		{"unknown field first", slices.Concat(unknown, good), ""},
		{"unknown field last", slices.Concat(good, unknown), ""},
		{"repeated: the last one counts", append(anyOf("other", "x"), good...), ""},
		{"value before type", slices.Concat(good[2+len(PayloadURI):], good[:2+len(PayloadURI)]), ""},
		{"white space and unknown members", anyOf(PayloadURI, " \n"+sample[:len(sample)-1]+`,"More":[1]}`), ""},

		{"empty", nil, `type "", want`},
		{"other type", anyOf("types.containerd.io/opencontainers/runtime-spec/1/Spec", "{}"), "want \"" + PayloadURI},
		{"a type that ends alike", anyOf("x"+PayloadURI, sample), "want"},
		{"endless type", anyOf(strings.Repeat("t", 1<<20), sample), "want"},
		{"no value", anyOf(PayloadURI, ""), "not JSON"},
		{"null", anyOf(PayloadURI, "null"), "not a JSON object"},
		{"array", anyOf(PayloadURI, "[]"), "not a JSON object"},
		{"two values", anyOf(PayloadURI, sample+sample), "not JSON"},
		{"wrong types", anyOf(PayloadURI, `{"Descriptor":{"size":"seven"}}`), "not the JSON of a payload"},
		{"key that is not base64", anyOf(PayloadURI, `{"DecryptConfig":{"Parameters":{"privkeys":["-----BEGIN"]}}}`), "not the JSON of a payload"},
		{"cut off in the value", good[:len(good)-1], "cut off"},
		{"cut off in the type", good[:5], "cut off"},
		{"bare JSON", []byte(sample), "not a protobuf Any"},
		{"type URL as a number", protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 5), "wire type"},
		{"value as a group", protowire.AppendTag(nil, 2, protowire.StartGroupType), "wire type"},
		{"type that is not UTF-8", anyOf("\xcd/"+PayloadURI, sample), "UTF-8"},
		{"huge", anyOf(PayloadURI, strings.Repeat(" ", MaxPayload)), "over 4194304 bytes"},
		{"deeply nested", anyOf(PayloadURI, `{"Descriptor":`+strings.Repeat("[", 1<<20)), "not JSON"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseAny(tt.data)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(samplePayload(), got); diff != "" {
					t.Error(diff)
				}
				return
			}
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want one that says %q", err, tt.want)
			}
			if text := err.Error(); strings.Contains(text, "\n") || len(text) > 300 {
				t.Errorf("not one short line: %q", text)
			}
			if strings.Contains(err.Error(), "BEGIN") {
				t.Errorf("quotes the value: %v", err)
			}
		})
	}
}

// Every prefix of a payload is an error, never something that is half of one.
func TestParseAnyPrefixes(t *testing.T) {
	t.Parallel()
	good := anyOf(PayloadURI, sample)
	for n := range good {
		if _, err := ParseAny(good[:n]); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d of %d bytes: %v", n, len(good), err)
		}
	}
}

// theirPayload is the type of containerd's imgcrypt, field by field.
type theirPayload struct {
	DecryptConfig encconfig.DecryptConfig
	Descriptor    ocispec.Descriptor
}

// What containerd's client and containerd itself make of a payload is understood:
// typeurl in the client, an Any over gRPC, marshalled by protobuf for the processor.
func TestParseAnyMadeByContainerd(t *testing.T) {
	t.Parallel()
	typeurl.Register(&theirPayload{}, PayloadURI)
	theirs := &theirPayload{
		DecryptConfig: encconfig.DecryptConfig{Parameters: samplePayload().DecryptConfig.Parameters},
		Descriptor:    samplePayload().Descriptor,
	}
	marshalled, err := typeurl.MarshalAny(theirs)
	if err != nil {
		t.Fatal(err)
	}
	data, err := proto.Marshal(typeurl.MarshalProto(marshalled))
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseAny(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(samplePayload(), got); diff != "" {
		t.Error(diff)
	}

	// And the other way round, as long as nobody gives these types tags.
	ours, err := json.Marshal(samplePayload())
	if err != nil {
		t.Fatal(err)
	}
	var back theirPayload
	if err := json.Unmarshal(ours, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(theirs, &back); diff != "" {
		t.Error(diff)
	}

	// The protobuf library agrees with the few lines here about unknown input.
	var pb anypb.Any
	if err := proto.Unmarshal(data, &pb); err != nil {
		t.Fatal(err)
	}
	typeURL, value, err := splitAny(data)
	if err != nil || typeURL != pb.TypeUrl || !bytes.Equal(value, pb.Value) {
		t.Errorf("splitAny: %q, %q, %v", typeURL, value, err)
	}
}

func TestReadPayload(t *testing.T) {
	t.Parallel()
	good := anyOf(PayloadURI, sample)
	broken := errors.New("broken")
	for _, tt := range []struct {
		name   string
		reader io.Reader
		want   error
	}{
		{"at once", bytes.NewReader(good), nil},
		{"byte by byte", iotest.OneByteReader(bytes.NewReader(good)), nil},
		{"by halves", iotest.HalfReader(bytes.NewReader(good)), nil},
		{"end with the data", iotest.DataErrReader(bytes.NewReader(good)), nil},
		{"error at once", iotest.ErrReader(broken), broken},
		{"error after the data", io.MultiReader(bytes.NewReader(good), iotest.ErrReader(broken)), broken},
		{"empty", bytes.NewReader(nil), ErrNoPayload},
		{"cut off", bytes.NewReader(good[:len(good)/2]), ErrMalformed},
		{"endless", zeros{}, ErrMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := ReadPayload(t.Context(), tt.reader)
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if tt.want != nil {
				return
			}
			if diff := cmp.Diff(samplePayload(), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A writer that never closes does not hang the reader for ever.
func TestReadPayloadNeverEnds(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	if _, err := w.Write(anyOf(PayloadURI, sample)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = ReadPayload(ctx, r)
	if !errors.Is(err, ErrNoPayload) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
}

func FuzzParseAny(f *testing.F) {
	f.Add(anyOf(PayloadURI, sample))
	f.Add(anyOf("type.googleapis.com/"+PayloadURI, "{}"))
	f.Add(anyOf(PayloadURI, `{"DecryptConfig":{"Parameters":null},"Descriptor":{"annotations":null}}`))
	f.Add(anyOf("\xcd/"+PayloadURI, "{}"))
	f.Add([]byte{})
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Add([]byte{0x13, 0x14})
	f.Add([]byte(sample))
	f.Fuzz(func(t *testing.T, data []byte) {
		var want anypb.Any
		libErr := proto.Unmarshal(data, &want)
		typeURL, value, err := splitAny(data)
		// The library takes fields of the wrong wire type for unknown ones; here
		// they are errors.
		if err == nil && libErr == nil && (typeURL != want.TypeUrl || !bytes.Equal(value, want.Value)) {
			t.Fatalf("got %q, %q, the library %q, %q", typeURL, value, want.TypeUrl, want.Value)
		}
		p, err := ParseAny(data)
		switch {
		case err == nil && p == nil:
			t.Fatal("neither payload nor error")
		case err != nil && !errors.Is(err, ErrMalformed):
			t.Fatalf("untyped error: %v", err)
		case err == nil && libErr != nil:
			t.Fatalf("accepted what the library refuses: %v", libErr)
		}
	})
}
