//go:build cgo && !linux

package main

import "os"

// guard does nothing here: what a library prints spoils the answer.
func guard(stdout *os.File) (*os.File, error) { return stdout, nil }
