package testenv

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// daemonAttr starts a child that ends with the thread that started it, in a process group of its own: an interrupt from
// the terminal must not reach it before its clients.
func daemonAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// lockFile waits for an exclusive lock, which goes with the file's descriptor.
func lockFile(f *os.File) error {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX)
}
