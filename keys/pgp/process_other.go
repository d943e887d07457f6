//go:build !unix

package pgp

import "os/exec"

// ownGroup does nothing: only cmd itself is killed.
func ownGroup(*exec.Cmd) {}
