package pkcs11

import (
	"encoding/base64"
	"encoding/json"
	"fmt"

	"imgcrypt/internal/oneline"
	"imgcrypt/internal/tokenproto"
	"imgcrypt/layer"
)

// packetJSON is a packet as ocicrypt has it.
type packetJSON struct {
	Version    uint            `json:"version"`
	Recipients []recipientJSON `json:"recipients"`
}

type recipientJSON struct {
	Version uint   `json:"version"`
	Blob    string `json:"blob"`
	// Hash is empty in old packets, and then SHA-1.
	Hash string `json:"hash,omitempty"`
	// KeyID is a text. What else stands there is passed over, as ocicrypt does.
	KeyID any `json:"kid,omitempty"`
}

func (r recipientJSON) keyID() string {
	id, _ := r.KeyID.(string)
	return id
}

// marshal returns the packet for one recipient.
func marshal(blob []byte, hash, keyID string) (layer.Packet, error) {
	data, err := json.Marshal(packetJSON{Recipients: []recipientJSON{{
		Blob: base64.StdEncoding.EncodeToString(blob), Hash: hash, KeyID: keyID,
	}}})
	return layer.Packet{Scheme: Name, Data: data}, err
}

// parse returns the recipients of a packet.
func parse(data []byte) ([]recipientJSON, error) {
	var packet packetJSON
	if err := json.Unmarshal(data, &packet); err != nil {
		return nil, malformed("not JSON of the form that it should have")
	}
	if packet.Version != 0 {
		return nil, malformed("version %d, and 0 is known", packet.Version)
	}
	if len(packet.Recipients) == 0 {
		return nil, malformed("no recipients")
	}
	return packet.Recipients, nil
}

// blob returns what a recipient got.
func (r recipientJSON) blob() (tokenproto.Blob, error) {
	b := tokenproto.Blob{Hash: r.Hash, KeyID: r.keyID()}
	if r.Hash == "" {
		b.Hash = tokenproto.SHA1
	}
	if r.Version != 0 {
		return b, malformed("a recipient of version %d, and 0 is known", r.Version)
	}
	if b.Hash != tokenproto.SHA1 && b.Hash != tokenproto.SHA256 {
		return b, malformed("hash %.40q is not supported", r.Hash)
	}
	var err error
	b.Data, err = base64.StdEncoding.DecodeString(r.Blob)
	if err != nil || len(b.Data) == 0 || len(b.Data) > tokenproto.MaxBlob {
		return b, malformed("a blob that is not base64 or of an impossible size")
	}
	return b, nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("pkcs11 packet: %w: "+format, append([]any{layer.ErrMalformed}, args...)...)
}

// keyIDs returns the "kid" of each recipient, empty where there is none.
func keyIDs(p layer.Packet) []string {
	all, _ := parse(p.Data)
	ids := make([]string, len(all))
	for i, r := range all {
		ids[i] = r.keyID()
	}
	return ids
}

// Describe names the recipients of a packet in its order: the "kid", or "[pkcs11]" for a recipient that has none, as
// those of other tools. A packet that cannot be parsed yields one "[pkcs11]". What would not print as one word is
// quoted, since anyone may have written it.
func Describe(p layer.Packet) []string {
	ids := keyIDs(p)
	if len(ids) == 0 {
		return []string{"[pkcs11]"}
	}
	for i, id := range ids {
		if ids[i] = "[pkcs11]"; id != "" {
			ids[i] = oneline.Word(id)
		}
	}
	return ids
}
