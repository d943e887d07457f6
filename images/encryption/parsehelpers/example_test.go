package parsehelpers_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"

	"imgcrypt/images/encryption/parsehelpers"
)

func ExampleCreateCryptoConfig() {
	dir := must(os.MkdirTemp("", "example"))
	defer os.RemoveAll(dir)
	public := filepath.Join(dir, "public.der")
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	if err := os.WriteFile(public, must(x509.MarshalPKIXPublicKey(key.Public())), 0o600); err != nil {
		fmt.Println(err)
	}

	cc, err := parsehelpers.CreateCryptoConfig(parsehelpers.EncArgs{Recipient: []string{"jwe:" + public}}, nil)
	if err != nil {
		fmt.Println(err)
	}
	fmt.Println("recipients:", len(cc.EncryptConfig.Parameters["pubkeys"]))

	_, err = parsehelpers.CreateCryptoConfig(parsehelpers.EncArgs{Recipient: []string{"age:" + public}}, nil)
	fmt.Println(err)
	// Output:
	// recipients: 1
	// recipient of unknown scheme "age" (known: jwe, pgp, pkcs11, pkcs7, provider)
}
