package provider

import (
	"bytes"
	"context"
	"fmt"

	"imgcrypt/keys"
	"imgcrypt/layer"
)

// Recipient is whoever a key provider can open packets for, as its parameters say.
type Recipient struct {
	directory *directory
	name      string
	params    [][]byte
}

// Wrap implements [keys.Recipient]. Its errors are [*Error]s.
func (r *Recipient) Wrap(ctx context.Context, secret []byte) (layer.Packet, error) {
	data, err := r.directory.ask(ctx, question{name: r.name, op: opWrap, params: r.params, data: secret})
	if err == nil && len(data) > layer.MaxPacketSize {
		err = &Error{Provider: r.name, Op: opWrap, Err: unreachable(fmt.Errorf("its packet is over %d bytes", layer.MaxPacketSize))}
	}
	if err != nil {
		return layer.Packet{}, err
	}
	return layer.Packet{Scheme: Name + "." + r.name, Data: data}, nil
}

// Mark implements [keys.Marked]: the text is the parameter.
func (r *Recipient) Mark() (scheme, text string) {
	return Name + "." + r.name, string(bytes.Join(r.params, []byte{0}))
}

// Parameters implements [keys.Portable].
func (r *Recipient) Parameters() (keys.Parameters, error) { return parameters(r.name, r.params), nil }

func parameters(name string, params [][]byte) keys.Parameters {
	all := make([][]byte, len(params))
	for i, p := range params {
		all[i] = bytes.Clone(p)
	}
	return keys.Parameters{name: all}
}
