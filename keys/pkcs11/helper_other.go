//go:build !unix

package pkcs11

import "os/exec"

// asGroup does nothing: the command is killed alone.
func asGroup(*exec.Cmd) {}
