package main

import (
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// detached keeps the terminal's signals away from the keeper.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// watch returns a function that says whether the process pid is gone: not only
// dead, but reaped by its parent. Should its number be in use again by then, the
// keeper stays to its limit, and a failure is late, but no less a failure.
func watch(pid int) func() bool {
	return func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) }
}

// abandoned says whether nobody can read from out any more.
func abandoned(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(f.Fd())}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0
}

// consumed says whether all that was written to the pipe out has been read, or will
// never be.
func consumed(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return true
	}
	n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ)
	return err != nil || n == 0 || abandoned(out)
}
