package keys

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/json"

	"github.com/go-jose/go-jose/v4"
)

// isJSON tells a JWK from the other formats.
func isJSON(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{"))
}

// jwkHead is what is looked at before a JWK is parsed in earnest.
type jwkHead struct {
	Type  string            `json:"kty"`
	Curve string            `json:"crv"`
	N     string            `json:"n"`
	D     string            `json:"d"`
	P     string            `json:"p"`
	Q     string            `json:"q"`
	Keys  []json.RawMessage `json:"keys"`
}

// parseJWK never repeats a decoder's error, which may quote the key.
func parseJWK(data []byte) (*jose.JSONWebKey, error) {
	var head jwkHead
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, notKey("neither PEM, DER nor JWK: not JSON either")
	}
	switch {
	case head.Type == "" && head.Keys != nil:
		return nil, notKey("a set of JWKs: give one of its keys in a file of its own")
	case head.Type == "":
		return nil, notKey("JSON that is no JWK")
	case head.Type == "oct":
		return nil, notKey("a symmetric JWK")
	}
	for _, number := range []string{head.N, head.D, head.P, head.Q} {
		if len(number) > base64.RawURLEncoding.EncodedLen(maxRSABits/8) {
			return nil, errOversized()
		}
	}
	var key jose.JSONWebKey
	if err := key.UnmarshalJSON(data); err != nil || !key.Valid() {
		return nil, notKey("a JWK that is damaged or of a kind that is not supported")
	}
	return &key, nil
}

func parseJWKPublic(data []byte) (PublicKey, error) {
	key, err := parseJWK(data)
	if err != nil {
		return PublicKey{}, err
	}
	if !key.IsPublic() {
		return PublicKey{}, errPrivateGiven()
	}
	return PublicKey{Key: key.Key, Algorithm: key.Algorithm}, nil
}

func parseJWKPrivate(data []byte) (crypto.PrivateKey, error) {
	key, err := parseJWK(data)
	if err != nil {
		return nil, err
	}
	if key.IsPublic() {
		return nil, errPublicGiven("a public key")
	}
	if ec, ok := key.Key.(*ecdsa.PrivateKey); ok {
		return checkEC(ec)
	}
	return key.Key, nil
}

// checkEC makes sure of what the JWK decoder takes for granted: that both halves
// belong together. If not, the key would have the wrong thumbprint.
func checkEC(key *ecdsa.PrivateKey) (crypto.PrivateKey, error) {
	d, err := key.Bytes()
	if err != nil {
		return nil, notKey("a damaged JWK")
	}
	whole, err := ecdsa.ParseRawPrivateKey(key.Curve, d)
	if err != nil || !whole.PublicKey.Equal(&key.PublicKey) {
		return nil, notKey("a JWK whose public and private halves do not belong together")
	}
	return whole, nil
}
