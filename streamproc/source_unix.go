//go:build unix

package streamproc

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// payloadFD is the descriptor that containerd passes a payload on: the first one
// after the standard three.
const payloadFD = 3

// Source returns the stream on which containerd sends the payload, or an error
// that wraps [ErrNoPayload] if it sends none. The caller closes the stream.
//
// It is file descriptor 3 here, and the argument is not used. Without a payload,
// that descriptor may be anything, for the Go runtime opens files of its own; so it
// must be the reading end of a pipe, and one that this process inherited. Source
// must be called before the program opens files itself, because afterwards the
// process would take its own pipe for the inherited one, if that was marked to
// survive an exec.
func Source(string) (io.ReadCloser, error) { return sourceFrom(payloadFD) }

func sourceFrom(fd int) (io.ReadCloser, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("%w: descriptor %d is not open", ErrNoPayload, fd)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, fmt.Errorf("%w: descriptor %d is not a pipe", ErrNoPayload, fd)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	// What an exec left open cannot be marked to be closed by one; what the
	// runtime and package os open always is.
	if flags&unix.FD_CLOEXEC != 0 {
		return nil, fmt.Errorf("%w: descriptor %d is this process's own", ErrNoPayload, fd)
	}
	mode, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	if mode&unix.O_ACCMODE == unix.O_WRONLY {
		return nil, fmt.Errorf("%w: descriptor %d cannot be read", ErrNoPayload, fd)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "payload"), nil
}
