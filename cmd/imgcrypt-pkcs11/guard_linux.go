//go:build cgo

package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// guard returns another way to standard output and makes standard output the same as standard error. It also switches
// off core dumps.
func guard(stdout *os.File) (*os.File, error) {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return nil, fmt.Errorf("switching off core dumps: %w", err)
	}
	fd, err := unix.FcntlInt(stdout.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("standard output: %w", err)
	}
	if err := unix.Dup3(unix.Stderr, unix.Stdout, 0); err != nil {
		return nil, fmt.Errorf("standard output: %w", err)
	}
	return os.NewFile(uintptr(fd), "answer"), nil
}
