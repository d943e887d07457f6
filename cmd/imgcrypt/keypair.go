package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.SHA256
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/youmark/pkcs8"

	"imgcrypt/keys"
	"imgcrypt/keys/jwe"
)

// pair is a new key pair, in PEM.
type pair struct {
	private, public []byte
	thumbprint      string
}

// The parameters of new keys.
const (
	rsaBits    = 3072
	iterations = 600_000 // of PBKDF2 with SHA-256: OWASP's advice
)

// newPair makes a key pair; an empty passwordFile leaves the private key unencrypted.
func newPair(kind, passwordFile string) (*pair, error) {
	var key crypto.Signer
	var err error
	if kind == "rsa" {
		key, err = rsa.GenerateKey(rand.Reader, rsaBits)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return nil, err
	}
	r, err := jwe.NewRecipient(keys.PublicKey{Key: key.Public()})
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	block := &pem.Block{Type: "PRIVATE KEY"}
	if passwordFile == "" {
		block.Bytes, err = x509.MarshalPKCS8PrivateKey(key)
	} else {
		block.Type = "ENCRYPTED PRIVATE KEY"
		block.Bytes, err = encrypted(key, passwordFile)
	}
	if err != nil {
		return nil, err
	}
	return &pair{
		private: pem.EncodeToMemory(block), thumbprint: r.KeyID(),
		public: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}),
	}, nil
}

func encrypted(key crypto.Signer, passwordFile string) ([]byte, error) {
	password, err := new(keys.Files).Read(passwordFile)
	if err != nil {
		return nil, err
	}
	password = bytes.TrimSuffix(bytes.TrimSuffix(password, []byte("\n")), []byte("\r"))
	if len(password) == 0 {
		return nil, fmt.Errorf("%s: the password is empty", passwordFile)
	}
	return pkcs8.MarshalPrivateKey(key, password, &pkcs8.Opts{
		Cipher:  pkcs8.AES256CBC,
		KDFOpts: pkcs8.PBKDF2Opts{SaltSize: 16, IterationCount: iterations, HMACHash: crypto.SHA256},
	})
}

// write writes both halves to new files, or neither.
func (p *pair) write(name string, out io.Writer) error {
	private, public := name+".pem", name+".pub.pem"
	if err := create(private, p.private, 0o600); err != nil {
		return err
	}
	if err := create(public, p.public, 0o644); err != nil {
		return errors.Join(err, os.Remove(private))
	}
	_, err := fmt.Fprintf(out, "jwe:%s\n%s\n", public, p.thumbprint)
	return err
}

// create writes a file that must not exist.
func create(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w, and is not overwritten", path, fs.ErrExist)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
