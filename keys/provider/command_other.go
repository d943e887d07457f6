//go:build !unix

package provider

import (
	"os"
	"os/exec"
)

// isolate does nothing: there are no process groups that could be killed.
func isolate(*exec.Cmd) {}

func killGroup(p *os.Process) error { return p.Kill() }
