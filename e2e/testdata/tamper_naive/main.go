// Command tamper_naive is a stream processor with the fault that the tests of forged
// layers are about: it lets out all but the last 10 KiB of a layer before it has
// checked the MAC, and does not care when containerd learns of its failure. It shows
// that those tests can fail.
package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"imgcrypt/keys"
	"imgcrypt/keys/schemes"
	"imgcrypt/layer"
	"imgcrypt/streamproc"
)

const holdback = 10 << 10

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	ctx := context.Background()
	source, err := streamproc.Source("")
	if err != nil {
		return err
	}
	payload, err := streamproc.ReadPayload(ctx, source)
	if err != nil {
		return err
	}
	ids, err := keys.FromParameters(schemes.All(schemes.Options{}), payload.DecryptConfig.Parameters)
	if err != nil {
		return err
	}
	secret, err := keys.Open(ctx, ids, payload.Descriptor.Annotations)
	if err != nil {
		return err
	}
	public, err := layer.ParsePublic(payload.Descriptor.Annotations)
	if err != nil {
		return err
	}
	return decrypt(secret, public)
}

func decrypt(secret layer.Secret, public layer.Public) error {
	block, err := aes.NewCipher(secret.Key[:])
	if err != nil {
		return err
	}
	stream, mac := cipher.NewCTR(block, secret.Nonce[:]), hmac.New(sha256.New, secret.Key[:])
	var held bytes.Buffer
	buf := make([]byte, 64<<10)
	for {
		n, err := os.Stdin.Read(buf)
		mac.Write(buf[:n])
		stream.XORKeyStream(buf[:n], buf[:n])
		held.Write(buf[:n])
		if free := held.Len() - holdback; free > 0 {
			if _, err := os.Stdout.Write(held.Next(free)); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if !hmac.Equal(mac.Sum(nil), public.MAC) {
		return errors.New("tampered")
	}
	_, err = os.Stdout.Write(held.Bytes())
	return err
}
