//go:build cgo && !unix

package main

import "time"

// turn does nothing here: processes use a library side by side.
func turn(string, time.Duration) {}
