//go:build unix

package keys

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// dup returns a new descriptor for what fd refers to.
func dup(fd int) (*os.File, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), "fd"+strconv.Itoa(fd)), nil
}
