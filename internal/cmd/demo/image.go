package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imgcrypt/internal/testenv"
	"imgcrypt/internal/testimage"
)

// plainName is the image before it is encrypted.
const plainName = "example.test/hello:plain"

// secretText is what the second layer holds, besides what the first one runs.
const secretText = "The recipe of the house: flour, water, salt, and time.\n"

// buildImage makes the image in the layout at dir: a program that prints "Hello
// World!", in busybox if there is a static one, and a file in a second layer. It
// returns the command that runs in it.
func (sh *shell) buildImage(dir string) (command []string, desc ocispec.Descriptor, err error) {
	image := testimage.Runnable
	if missing := testenv.Missing(testenv.Busybox); missing != nil {
		sh.warn("%v; a small Go program takes its place", missing)
		image = helloImage
	}
	spec, err := image()
	if err != nil {
		return nil, desc, err
	}
	spec.Layers = append(spec.Layers, testimage.Layer{Files: []testimage.File{{Name: "etc/recipe", Body: []byte(secretText)}}})
	desc, err = spec.Write(dir, plainName)
	return spec.Cmd, desc, err
}

// helloImage has a small static Go program.
func helloImage() (testimage.Spec, error) {
	path, err := testenv.BuildCommand("./internal/cmd/demo/hello")
	if err != nil {
		return testimage.Spec{}, err
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return testimage.Spec{}, err
	}
	return testimage.Spec{
		Layers: []testimage.Layer{{Files: []testimage.File{{Name: "bin/hello", Body: body, Mode: 0o755}}}},
		Cmd:    []string{"/bin/hello"},
	}, nil
}

// keyPair makes private and public in the shell's directory.
func (sh *shell) keyPair(ctx context.Context, private, public string) error {
	if err := testenv.Missing("openssl"); err != nil {
		sh.warn("%v; %s and %s come from Go's crypto/rsa instead", err, private, public)
		return writeKeyPair(filepath.Join(sh.dir, private), filepath.Join(sh.dir, public))
	}
	if _, err := sh.ok(ctx, "openssl genrsa -out "+private+" 3072"); err != nil {
		return err
	}
	_, err := sh.ok(ctx, "openssl rsa -in "+private+" -pubout -out "+public)
	return err
}

func writeKeyPair(private, public string) error {
	key, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		return err
	}
	privateDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	publicDER, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(private, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: privateDER}), 0o600),
		os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER}), 0o644),
	)
}

// quote writes a command as one has to type it.
func quote(command []string) string {
	words := make([]string, len(command))
	for i, w := range command {
		if strings.ContainsAny(w, " !$'\"\\") {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		words[i] = w
	}
	return strings.Join(words, " ")
}
