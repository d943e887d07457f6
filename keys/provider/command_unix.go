//go:build unix

package provider

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
)

// isolate gives a command a session of its own, and so a process group, by which all of
// it is killed. Without a terminal, a command that wants to ask somebody fails at once; in
// a background group of the user's session it would be stopped.
func isolate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return killGroup(cmd.Process) }
}

func killGroup(p *os.Process) error {
	if err := syscall.Kill(-p.Pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return os.ErrProcessDone
}
