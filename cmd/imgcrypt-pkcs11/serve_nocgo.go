//go:build !cgo

package main

import (
	"errors"
	"io"
	"os"
)

// serve has nothing to load a library with.
func serve(io.Reader, *os.File) error {
	return errors.New("built without cgo, so it cannot use tokens (build it with CGO_ENABLED=1 and a C compiler)")
}
