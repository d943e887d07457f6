package provider

import (
	"encoding/json"
	"errors"
)

// The operations.
const (
	opWrap   = "keywrap"
	opUnwrap = "keyunwrap"
)

// maxAnswer bounds what a provider may write, in bytes: a packet of the largest size in
// base64, and what is around it.
const maxAnswer = 3 << 19

// request is ocicrypt's KeyProviderKeyWrapProtocolInput. Both halves are always there.
type request struct {
	Op     string       `json:"op"`
	Wrap   wrapParams   `json:"keywrapparams"`
	Unwrap unwrapParams `json:"keyunwrapparams"`
}

type wrapParams struct {
	Config *encryptConfig `json:"ec"`
	Secret []byte         `json:"optsdata"`
}

type unwrapParams struct {
	Config *decryptConfig `json:"dc"`
	Packet []byte         `json:"annotation"`
}

type encryptConfig struct {
	Parameters    map[string][][]byte
	DecryptConfig decryptConfig
}

type decryptConfig struct {
	Parameters map[string][][]byte
}

// answer is ocicrypt's KeyProviderKeyWrapProtocolOutput.
type answer struct {
	Wrap struct {
		Packet []byte `json:"annotation"`
	} `json:"keywrapresults"`
	Unwrap struct {
		Secret []byte `json:"optsdata"`
	} `json:"keyunwrapresults"`
}

// question is what a provider is asked.
type question struct {
	name   string
	op     string
	params [][]byte
	// data is the secret to wrap or the packet to unwrap.
	data []byte
}

// marshal returns the request. Maps are never null, since there are providers that
// do not take null for a map; what ocicrypt's clients send is never null either.
func (q question) marshal() ([]byte, error) {
	params := make(map[string][][]byte)
	if len(q.params) > 0 {
		params[q.name] = q.params
	}
	r := request{Op: q.op}
	if q.op == opWrap {
		none := decryptConfig{Parameters: map[string][][]byte{}}
		r.Wrap = wrapParams{Config: &encryptConfig{Parameters: params, DecryptConfig: none}, Secret: q.data}
	} else {
		r.Unwrap = unwrapParams{Config: &decryptConfig{Parameters: params}, Packet: q.data}
	}
	return json.Marshal(r)
}

// hidden are the parts of a question that must not come back in an error.
func (q question) hidden() [][]byte {
	hidden := q.params
	if q.op == opWrap {
		hidden = append([][]byte{q.data}, q.params...)
	}
	return hidden
}

var (
	errNoJSON   = errors.New("its answer is not the JSON of the protocol")
	errNoPacket = errors.New("there is no packet in its answer")
	errNoSecret = errors.New("there is no secret in its answer")
)

// parse returns what an answer holds. An error never quotes it: it may be secret.
func (q question) parse(data []byte) ([]byte, error) {
	var a answer
	if json.Unmarshal(data, &a) != nil {
		return nil, errNoJSON
	}
	switch {
	case q.op == opWrap && len(a.Wrap.Packet) == 0:
		return nil, errNoPacket
	case q.op == opWrap:
		return a.Wrap.Packet, nil
	case len(a.Unwrap.Secret) == 0:
		return nil, errNoSecret
	}
	return a.Unwrap.Secret, nil
}
