package pgp_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/ProtonMail/go-crypto/openpgp"

	"imgcrypt/keys"
	"imgcrypt/keys/pgp"
	"imgcrypt/layer"
)

// Wrapping for a public key in a file, and opening with the secret key in another. Neither
// needs GnuPG.
func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// What gpg --export and gpg --export-secret-keys write.
	alice, err := openpgp.NewEntity("Alice", "", "alice@example.com", nil)
	if err != nil {
		log.Fatal(err)
	}
	var public, secret bytes.Buffer
	if err := alice.SerializePrivate(&secret, nil); err != nil {
		log.Fatal(err)
	}
	if err := alice.Serialize(&public); err != nil {
		log.Fatal(err)
	}
	file := filepath.Join(dir, "alice.gpg")
	if err := os.WriteFile(file, public.Bytes(), 0o644); err != nil {
		log.Fatal(err)
	}

	scheme := pgp.Scheme(pgp.Config{})
	recipient, err := scheme.Recipient(context.Background(), file, new(keys.Files))
	if err != nil {
		log.Fatal(err)
	}
	packet, err := recipient.Wrap(context.Background(), []byte("the layer's secret"))
	if err != nil {
		log.Fatal(err)
	}

	identity, err := scheme.Identity(keys.Key{Label: "alice-secret.gpg", Data: secret.Bytes()})
	if err != nil {
		log.Fatal(err)
	}
	opened, err := identity.Unwrap(context.Background(), []layer.Packet{packet})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, for one of the keys of %s: %d recipient\n", opened, filepath.Base(file), len(pgp.KeyIDs(packet)))
	// Output: the layer's secret, for one of the keys of alice.gpg: 1 recipient
}
