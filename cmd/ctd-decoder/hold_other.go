//go:build !linux

package main

import (
	"io"
	"os"
	"syscall"
)

func detached() *syscall.SysProcAttr { return nil }

// watch returns a function that says whether the process pid has ended. On Windows
// there is no reaping: containerd's wait returns when the process ends, and so does
// this one, for a process that is no child. Elsewhere it returns at once.
func watch(pid int) func() bool {
	ended := make(chan struct{})
	p, err := os.FindProcess(pid)
	if err != nil {
		close(ended)
	} else {
		go func() {
			_, _ = p.Wait()
			close(ended)
		}()
	}
	return func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	}
}

// abandoned and consumed cannot be told here.
func abandoned(io.Writer) bool { return false }

func consumed(io.Writer) bool { return true }
