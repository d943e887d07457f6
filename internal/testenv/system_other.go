//go:build !linux

package testenv

import (
	"errors"
	"os"
	"syscall"
)

// daemonAttr has nothing to add: daemons of tests run on Linux.
func daemonAttr() *syscall.SysProcAttr { return nil }

// lockFile does nothing: two test processes that build the same command at the same time do so twice.
func lockFile(*os.File) error { return nil }

func tryMountNamespace() error { return errors.New("there are none on this system") }
