// Package streamproc is the protocol between containerd and the programs that it
// starts to turn one layer's stream into another: what containerd calls stream
// processors.
//
// For every encrypted layer that it unpacks, containerd starts the processor that
// its configuration names for the layer's media type, with the ciphertext on
// standard input, and reads the plain bytes from standard output. What the layer
// needs beyond that, its descriptor and perhaps keys, is the [Payload]: it comes
// from the client that asked for the unpacking, on a channel of its own that
// [Source] finds and [ReadPayload] reads. [Decoder] does the rest.
//
// This package links neither containerd nor its protobuf types, so that the
// processor stays small and starts quickly.
package streamproc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	// PayloadURI is the type URL of a payload. Source: containerd's imgcrypt,
	// which registers its Payload type under this name.
	PayloadURI = "io.containerd.ocicrypt.v1.Payload"
	// MaxPayload bounds a payload, in bytes. It is far above what any client
	// sends: one descriptor and some keys.
	MaxPayload = 4 << 20
)

var (
	// ErrNoPayload means that containerd sent no payload. Without one there is
	// no descriptor, and so nothing that could be decrypted, whatever keys the
	// node has.
	ErrNoPayload = errors.New("containerd sent no payload")
	// ErrMalformed is wrapped by every error about a payload that cannot be what
	// the protocol says.
	ErrMalformed = errors.New("malformed payload")
)

// Payload is what a client of containerd sends for one layer.
type Payload struct {
	DecryptConfig DecryptConfig
	// Descriptor is that of the encrypted layer, with its annotations.
	Descriptor ocispec.Descriptor
}

// DecryptConfig holds the keys that the client sends; often there are none,
// because the node has its own. It is ocicrypt's type of this name on the wire.
type DecryptConfig struct {
	// Parameters are ocicrypt's: "privkeys", "privkeys-passwords", "x509s" and
	// so on, each a list of values.
	Parameters map[string][][]byte
}

// ReadPayload reads a payload from r until its end, and parses it. containerd
// always writes all of it and closes its end; if nevertheless ctx ends first, that
// is an error that wraps [ErrNoPayload], and the read of r goes on in the
// background until the caller closes r.
func ReadPayload(ctx context.Context, r io.Reader) (*Payload, error) {
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := io.ReadAll(io.LimitReader(r, MaxPayload+1))
		done <- result{data, err}
	}()
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: its end did not come: %w", ErrNoPayload, ctx.Err())
	case got := <-done:
		switch {
		case got.err != nil:
			return nil, fmt.Errorf("read payload: %w", got.err)
		case len(got.data) == 0:
			return nil, fmt.Errorf("%w: it is empty", ErrNoPayload)
		}
		return ParseAny(got.data)
	}
}

// ParseAny parses a payload in its form on the wire: a protobuf Any whose type URL
// is [PayloadURI], or ends in it after a slash, and whose value is the JSON of a
// [Payload]. Its errors wrap [ErrMalformed] and quote nothing of the value, which
// may hold private keys.
func ParseAny(data []byte) (*Payload, error) {
	if len(data) > MaxPayload {
		return nil, fmt.Errorf("%w: over %d bytes", ErrMalformed, MaxPayload)
	}
	typeURL, value, err := splitAny(data)
	if err != nil {
		return nil, err
	}
	if name := typeURL[strings.LastIndexByte(typeURL, '/')+1:]; name != PayloadURI {
		return nil, fmt.Errorf("%w: type %.80q, want %q", ErrMalformed, typeURL, PayloadURI)
	}
	if !json.Valid(value) {
		return nil, fmt.Errorf("%w: its value is not JSON, or was cut off", ErrMalformed)
	}
	if !bytes.HasPrefix(bytes.TrimLeft(value, " \t\r\n"), []byte("{")) {
		return nil, fmt.Errorf("%w: its value is not a JSON object", ErrMalformed)
	}
	var p Payload
	if err := json.Unmarshal(value, &p); err != nil {
		return nil, fmt.Errorf("%w: its value is not the JSON of a payload", ErrMalformed)
	}
	return &p, nil
}

// The fields of google.protobuf.Any.
const (
	anyTypeURL protowire.Number = 1
	anyValue   protowire.Number = 2
)

// splitAny takes a protobuf Any apart. As in all of protobuf, the last one of a
// repeated field counts, and unknown fields are skipped.
func splitAny(data []byte) (typeURL string, value []byte, err error) {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return "", nil, malformedAny(n)
		}
		data = data[n:]
		if number == anyTypeURL || number == anyValue {
			if kind != protowire.BytesType {
				return "", nil, fmt.Errorf("%w: not a protobuf Any: field %d has wire type %d", ErrMalformed, number, kind)
			}
			field, n := protowire.ConsumeBytes(data)
			if n < 0 {
				return "", nil, malformedAny(n)
			}
			switch {
			case number == anyValue:
				value = field
			case !utf8.Valid(field):
				return "", nil, fmt.Errorf("%w: not a protobuf Any: its type is not UTF-8", ErrMalformed)
			default:
				typeURL = string(field)
			}
			data = data[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(number, kind, data); n < 0 {
			return "", nil, malformedAny(n)
		}
		data = data[n:]
	}
	return typeURL, value, nil
}

func malformedAny(n int) error {
	err := protowire.ParseError(n)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: cut off", ErrMalformed)
	}
	return fmt.Errorf("%w: not a protobuf Any", ErrMalformed)
}
