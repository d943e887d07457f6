package pkcs11_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"log"

	"imgcrypt/keys"
	"imgcrypt/keys/pkcs11"
)

// A secret is wrapped for a key on a token with nothing but its public half.
func ExampleNewRecipient() {
	key, err := rsa.GenerateKey(rand.Reader, 3072) // in place of one whose private half never leaves a token
	if err != nil {
		log.Fatal(err)
	}
	r, err := pkcs11.NewRecipient(keys.PublicKey{Key: key.Public()}, "")
	if err != nil {
		log.Fatal(err)
	}
	packet, err := r.Wrap(context.Background(), []byte("secret"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(packet.Scheme, r.Owns(packet), pkcs11.Describe(packet)[0] == r.KeyID())
	// Output: pkcs11 true true
}

// A key on a token is opened with by a file that names it. The token itself is asked only when there is something
// to open.
func ExampleScheme() {
	scheme := pkcs11.Scheme(pkcs11.Config{File: "internal"})
	id, err := scheme.Identity(keys.Key{Label: "key.yaml", Data: []byte(`
pkcs11:
  uri: pkcs11:token=NAME;object=NAME?module-name=softhsm2
`), Password: []byte("the PIN")})
	if err != nil {
		log.Fatal(err)
	}
	_, err = id.Unwrap(context.Background(), nil)
	fmt.Println(err)
	// Output: not for this key
}
