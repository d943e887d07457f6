package jwe

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"imgcrypt/internal/oneline"
	"imgcrypt/layer"
)

// parse accepts the algorithms that ocicrypt accepts; nothing with a password or a
// shared key is among them.
func parse(data []byte) (*jose.JSONWebEncryption, error) {
	obj, err := jose.ParseEncrypted(string(data),
		[]jose.KeyAlgorithm{jose.RSA_OAEP, jose.RSA_OAEP_256, jose.ECDH_ES_A128KW, jose.ECDH_ES_A192KW, jose.ECDH_ES_A256KW},
		[]jose.ContentEncryption{jose.A128CBC_HS256, jose.A192CBC_HS384, jose.A256CBC_HS512, jose.A128GCM, jose.A192GCM, jose.A256GCM})
	if err == nil {
		return obj, nil
	}
	heads, ok := headers(data)
	if !ok {
		return nil, fmt.Errorf("jwe packet: %w: no JWE", layer.ErrMalformed)
	}
	return nil, fmt.Errorf("jwe packet: %w: damaged, or of an algorithm that is not supported (alg %.40q, enc %.40q)",
		layer.ErrMalformed, heads[0].Algorithm, heads[0].Encryption)
}

// header is what is looked at of a recipient's header.
type header struct {
	KeyID      string
	Algorithm  string
	Encryption string
}

// headers returns one header for each recipient of a JWE, in the order in which it
// lists them, whether or not it could be decrypted.
func headers(data []byte) ([]header, bool) {
	var raw struct {
		Protected   string                     `json:"protected"`
		Unprotected map[string]json.RawMessage `json:"unprotected"`
		Header      map[string]json.RawMessage `json:"header"`
		Recipients  []struct {
			Header map[string]json.RawMessage `json:"header"`
		} `json:"recipients"`
	}
	if text := bytes.TrimSpace(data); bytes.HasPrefix(text, []byte("{")) {
		if json.Unmarshal(text, &raw) != nil {
			return nil, false
		}
	} else {
		// The compact serialisation, which nobody is known to write here.
		protected, rest, _ := strings.Cut(string(text), ".")
		if strings.Count(rest, ".") != 3 {
			return nil, false
		}
		raw.Protected = protected
	}
	var protected map[string]json.RawMessage
	if raw.Protected != "" {
		text, err := base64.RawURLEncoding.DecodeString(raw.Protected)
		if err != nil || json.Unmarshal(text, &protected) != nil {
			return nil, false
		}
	}
	merged := func(own map[string]json.RawMessage) header {
		get := func(name string) (s string) {
			for _, m := range []map[string]json.RawMessage{protected, raw.Unprotected, own} {
				if v, ok := m[name]; ok {
					if json.Unmarshal(v, &s) != nil {
						return ""
					}
					return s
				}
			}
			return ""
		}
		return header{KeyID: get("kid"), Algorithm: get("alg"), Encryption: get("enc")}
	}
	if len(raw.Recipients) == 0 {
		return []header{merged(raw.Header)}, true
	}
	all := make([]header, len(raw.Recipients))
	for i, r := range raw.Recipients {
		all[i] = merged(r.Header)
	}
	return all, true
}

// keyIDs returns the "kid" of each recipient, empty where there is none.
func keyIDs(data []byte) []string {
	all, _ := headers(data)
	ids := make([]string, len(all))
	for i, h := range all {
		ids[i] = h.KeyID
	}
	return ids
}

// Describe names the recipients of a packet in its order: the "kid", or "[jwe]"
// for a recipient that has none. A packet that cannot be parsed yields one "[jwe]".
// What would not print as one word is quoted, since anyone may have written it.
func Describe(p layer.Packet) []string {
	ids := keyIDs(p.Data)
	if len(ids) == 0 {
		return []string{"[jwe]"}
	}
	for i, id := range ids {
		if ids[i] = "[jwe]"; id != "" {
			ids[i] = oneline.Word(id)
		}
	}
	return ids
}
