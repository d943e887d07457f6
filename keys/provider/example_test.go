package provider_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"imgcrypt/keys"
	"imgcrypt/keys/provider"
)

// safe is a complete key provider: it hides secrets by a key of its own, for tenants that
// the users name.
type safe struct{ aead cipher.AEAD }

func newSafe(key []byte) (safe, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return safe{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return safe{aead}, err
}

func (s safe) Wrap(_ context.Context, params [][]byte, secret []byte) ([]byte, error) {
	if len(params) != 1 || !bytes.HasPrefix(params[0], []byte("tenant=")) {
		return nil, errors.New("name one tenant, as in provider:safe:tenant=7")
	}
	return s.aead.Seal(nil, nil, secret, params[0]), nil
}

func (s safe) Unwrap(_ context.Context, params [][]byte, packet []byte) ([]byte, error) {
	if len(params) != 1 {
		return nil, errors.New("name one tenant, as in provider:safe:tenant=7")
	}
	secret, err := s.aead.Open(nil, nil, packet, params[0])
	if err != nil {
		return nil, errors.New("not of this tenant")
	}
	return secret, nil
}

// A provider that is a command. Users configure it as
//
//	{"key-providers": {"safe": {"cmd": {"path": "/usr/local/bin/safe"}}}}
func ExampleServer_Command() {
	s, err := newSafe(make([]byte, 32))
	if err != nil {
		fmt.Println(err)
		return
	}
	server := provider.Server{Name: "safe", Provider: s}
	// In a program, these are os.Stdin and os.Stdout.
	var stdout bytes.Buffer
	stdin := strings.NewReader(`{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"safe":["dGVuYW50PTc="]}},"optsdata":"c2VjcmV0"}}`)
	if err := server.Command(context.Background(), stdin, &stdout); err != nil {
		fmt.Println(err)
	}
	fmt.Printf("%.32s…\n", &stdout)
	// Output:
	// {"keywrapresults":{"annotation":…
}

// A provider that is a service, here with neither TLS nor a port for others.
func ExampleServer_Serve() {
	s, err := newSafe(make([]byte, 32))
	if err != nil {
		fmt.Println(err)
		return
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	file, err := os.CreateTemp("", "ocicrypt*.conf")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.Remove(file.Name())
	fmt.Fprintf(file, `{"key-providers": {"safe": {"grpc": %q}}}`, listener.Addr())

	var config *tls.Config // with certificates and ClientAuth, for services that others can reach
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- provider.Server{Name: "safe", Provider: s}.Serve(ctx, listener, config) }()

	// A user of it.
	scheme := provider.Scheme(provider.Config{File: file.Name()})
	parser := keys.Parser{Schemes: []keys.Scheme{scheme}}
	for _, tenant := range []string{"provider:safe:tenant=7", "provider:safe"} {
		recipient, err := parser.Recipient(ctx, tenant)
		if err != nil {
			fmt.Println(err)
			continue
		}
		packet, err := recipient.Wrap(ctx, []byte("secret"))
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(packet.Scheme, len(packet.Data), "bytes")
	}

	stop()
	fmt.Println("stopped:", <-done)
	// Output:
	// provider.safe 34 bytes
	// provider safe: refused: name one tenant, as in provider:safe:tenant=7
	// stopped: <nil>
}
