//go:build unix

package keys

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// dup returns a new descriptor for what fd refers to. It refuses what is no kind of
// file: where a number is wrong, it may be one that the Go runtime uses for itself,
// the reading of which would never end.
func dup(fd int) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT == 0 {
		return nil, unix.EBADF
	}
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), "fd"+strconv.Itoa(fd)), nil
}
