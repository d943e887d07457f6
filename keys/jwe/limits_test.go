package jwe_test

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"imgcrypt/layer"
)

// A few bytes of packet are an RSA operation, and half a megabyte would be a minute.
func TestTooManyRecipients(t *testing.T) {
	t.Parallel()
	id, mine := newIdentity(t, find("rsa")), newRecipient(t, find("rsa"), "")
	b64 := base64.RawURLEncoding.EncodeToString
	one := `{"header":{"alg":"RSA-OAEP"},"encrypted_key":"QUJD"}`
	many := layer.Packet{Scheme: "jwe", Data: []byte(`{"protected":"` + b64([]byte(`{"enc":"A256GCM"}`)) + `","iv":"` + b64(make([]byte, 12)) +
		`","ciphertext":"AAAA","tag":"` + b64(make([]byte, 16)) + `","recipients":[` + one + strings.Repeat(","+one, 15_000) + `]}`)}
	if _, err := id.Unwrap(t.Context(), []layer.Packet{many}); !errors.Is(err, layer.ErrMalformed) {
		t.Errorf("a packet for 15001: %v", err)
	}
	if secret, err := id.Unwrap(t.Context(), []layer.Packet{many, wrap(t, mine, "secret")}); err != nil || string(secret) != "secret" {
		t.Errorf("beside a packet for 15001: %q, %v", secret, err)
	}
}
