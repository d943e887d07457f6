package keys

import (
	"os"
	"strconv"

	"golang.org/x/sys/windows"
)

// dup returns a new handle for what the handle fd refers to.
func dup(fd int) (*os.File, error) {
	var h windows.Handle
	self := windows.CurrentProcess()
	if err := windows.DuplicateHandle(self, windows.Handle(fd), self, &h, 0, false, windows.DUPLICATE_SAME_ACCESS); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(h), "fd"+strconv.Itoa(fd)), nil
}
