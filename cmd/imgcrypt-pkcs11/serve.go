//go:build cgo

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"imgcrypt/internal/tokenproto"
	"imgcrypt/keys/pkcs11/module"
)

// serve answers one request. An error means that there was no answer.
func serve(stdin io.Reader, stdout *os.File) error {
	// A library that knows nothing of threads sees one only.
	runtime.LockOSThread()
	// What it prints must not get between the lines, nor its memory, with PIN and keys in it, into a file when it crashes.
	out, err := guard(stdout)
	if err != nil {
		return err
	}
	req, err := read(stdin)
	if err != nil {
		return err
	}
	// Whoever started this program ends it before. If that is gone, nobody else does.
	time.AfterFunc(req.Timeout+time.Second, func() { os.Exit(failed(os.Stderr, errors.New("it took too long"))) })
	for name, value := range req.Env {
		if err := os.Setenv(name, value); err != nil {
			return errors.New("an environment variable cannot be set")
		}
	}
	turn(req.Module, req.Timeout)
	answer, finish := module.Do(req)
	line, err := json.Marshal(answer)
	if err != nil {
		return errors.New("the answer cannot be written")
	}
	if _, err := out.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	if err := out.Close(); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	finish()
	return nil
}

// read never repeats an error of the decoder, which may quote a PIN. What it returns has been checked.
func read(stdin io.Reader) (tokenproto.Request, error) {
	var req tokenproto.Request
	data, err := io.ReadAll(io.LimitReader(stdin, tokenproto.MaxRequest+1))
	switch {
	case err != nil:
		return req, fmt.Errorf("reading the request: %w", err)
	case len(data) > tokenproto.MaxRequest:
		return req, fmt.Errorf("the request has more than %d bytes", tokenproto.MaxRequest)
	case json.Unmarshal(data, &req) != nil:
		return req, errors.New("standard input is no request")
	}
	if err := req.Check(); err != nil {
		return req, fmt.Errorf("the request has %w", err)
	}
	return req, nil
}
