package main

import (
	"io"
	"syscall"

	"golang.org/x/sys/windows"
)

func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP, HideWindow: true}
}

// watch returns a function that says whether the process pid has ended. There is no
// reaping here: containerd's wait returns when the process ends.
func watch(pid int) func() bool {
	h, err := windows.OpenProcess(windows.SYNCHRONIZE, false, uint32(pid))
	if err != nil {
		return func() bool { return true }
	}
	return func() bool {
		event, err := windows.WaitForSingleObject(h, 0)
		return err != nil || event == windows.WAIT_OBJECT_0
	}
}

// abandoned cannot be told here without writing.
func abandoned(io.Writer) bool { return false }
