package testenv

import (
	"os"
	"os/exec"
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

// tryMountNamespace runs a command in a mount namespace of its own, in which no mount is shared with the machine's.
func tryMountNamespace() error {
	cmd := exec.Command("true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	return cmd.Run()
}
