package pkcs7_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log"
	"math/big"
	"time"

	"imgcrypt/keys"
	"imgcrypt/keys/pkcs7"
	"imgcrypt/layer"
)

// A layer's secret for the holder of a certificate, who opens it with the private key.
func Example() {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		log.Fatal(err)
	}
	template := &x509.Certificate{
		Subject:      pkix.Name{CommonName: "alice", Organization: []string{"Acme"}},
		SerialNumber: big.NewInt(0x5a3f),
		NotBefore:    time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(2021, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		log.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		log.Fatal(err)
	}

	recipient, err := pkcs7.NewRecipient("alice.pem", cert)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("warning:", recipient.Caution())
	packet, err := recipient.Wrap(context.Background(), []byte("the secret"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(pkcs7.Describe(packet)[0])

	// The certificate is not needed.
	identity, err := pkcs7.NewIdentity("alice.key", nil, key)
	if err != nil {
		log.Fatal(err)
	}
	secret, err := identity.Unwrap(context.Background(), []layer.Packet{packet})
	fmt.Println(string(secret), err)

	// With it, a packet that was damaged is told from one for somebody else.
	packet.Data[len(packet.Data)-1] ^= 1
	_, err = identity.Unwrap(context.Background(), []layer.Packet{packet})
	fmt.Println(errors.Is(err, keys.ErrNoMatch), err)
	identity, err = pkcs7.NewIdentity("alice.key", []*x509.Certificate{cert}, key)
	if err != nil {
		log.Fatal(err)
	}
	_, err = identity.Unwrap(context.Background(), []layer.Packet{packet})
	fmt.Println(errors.Is(err, layer.ErrMalformed), err)
	// Output:
	// warning: alice.pem: the certificate expired at 2021-01-01T00:00:00Z; it is used all the same
	// issuer="CN=alice,O=Acme" serial=5A3F
	// the secret <nil>
	// true not for this key
	// true damaged pkcs7 packet: it names the certificate issuer="CN=alice,O=Acme" serial=5A3F but does not open with its key
}
