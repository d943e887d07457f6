//go:build unix

package pgp

import (
	"os/exec"
	"syscall"
)

// ownGroup makes cmd the first of a process group, all of which is killed with it.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
