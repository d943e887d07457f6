package keys_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
)

// writeKeyPair does what openssl genpkey and openssl pkey -pubout do.
func writeKeyPair(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
		os.WriteFile(filepath.Join(dir, "pub.pem"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o644),
	)
}

// Wrapping a layer's secret for a recipient, and opening it with the private key.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := writeKeyPair(dir); err != nil {
		log.Fatal(err)
	}

	parser := &keys.Parser{Schemes: schemes.All(schemes.Options{})}
	recipient, err := parser.Recipient(context.Background(), "jwe:"+filepath.Join(dir, "pub.pem"))
	if err != nil {
		log.Fatal(err)
	}
	secret, err := layer.MarshalSecret(layer.Secret{Key: [32]byte{1}, Nonce: [16]byte{2}})
	if err != nil {
		log.Fatal(err)
	}
	packet, err := recipient.Wrap(context.Background(), secret)
	if err != nil {
		log.Fatal(err)
	}
	annotations := map[string]string{layer.KeysAnnotationPrefix + packet.Scheme: layer.AddPacket("", packet)}

	identity, err := parser.Identity(filepath.Join(dir, "key.pem"))
	if err != nil {
		log.Fatal(err)
	}
	opened, err := keys.Open(context.Background(), []keys.Identity{identity}, annotations)
	fmt.Println(opened.Key[0], opened.Nonce[0], err)

	_, err = keys.Open(context.Background(), nil, annotations)
	fmt.Println(err)
	// Output:
	// 1 2 <nil>
	// no key was given to open it (encrypted for jwe)
}

func ExampleParser_Key() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "key.pem")
	if err := writeKeyPair(dir); err != nil {
		log.Fatal(err)
	}

	var parser keys.Parser
	key, err := parser.Key(path + ":pass=with:colons")
	fmt.Println(len(key.Data) > 0, string(key.Password), err)
	key, err = parser.Key(path)
	fmt.Println(len(key.Data) > 0, key.Password == nil, err)
	// Output:
	// true with:colons <nil>
	// true true <nil>
}

// What users get wrong most often has an error that says what to do.
func ExampleParser_Recipient() {
	parser := &keys.Parser{Schemes: schemes.All(schemes.Options{})}
	_, err := parser.Recipient(context.Background(), "pub.pem")
	fmt.Println(err)
	_, err = parser.Recipient(context.Background(), "jew:pub.pem")
	fmt.Println(err)
	// Output:
	// recipient "pub.pem" names no scheme, as in jwe:…: unknown scheme (known: jwe, pgp, pkcs11, pkcs7, provider)
	// recipient of unknown scheme "jew" (known: jwe, pgp, pkcs11, pkcs7, provider)
}

// A directory of keys, as a node has it: what is no key is named and passed over.
func ExampleParser_Dir() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := writeKeyPair(dir); err != nil {
		log.Fatal(err)
	}

	parser := &keys.Parser{Schemes: schemes.All(schemes.Options{})}
	ids, warnings := parser.Dir(dir)
	for _, id := range ids {
		fmt.Println("key:", filepath.Base(id.(keys.Named).Name()))
	}
	for _, w := range warnings {
		fmt.Println("warning:", w.Error()[len(dir)+1:])
	}
	// Output:
	// key: key.pem
	// warning: pub.pem: not a usable key: it holds a public key, and opening takes the private key that belongs to it
}

func ExampleFromParameters() {
	ids, err := keys.FromParameters(schemes.All(schemes.Options{}), map[string][][]byte{
		"privkeys": {[]byte("not a key at all")},
	})
	fmt.Println(len(ids), err)
	_, err = ids[0].Unwrap(context.Background(), nil)
	fmt.Println(err)
	// Output:
	// 1 <nil>
	// privkeys[0]: not a usable key: neither PEM, DER nor JWK
}
