package streamproc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/windows"
)

const (
	pipePrefix = `\\.\pipe\`
	// busyFor is how long Source tries a pipe all of whose instances are taken.
	busyFor  = 2 * time.Second
	busyStep = 10 * time.Millisecond
)

// Source returns the stream on which containerd sends the payload, or an error
// that wraps [ErrNoPayload] if it sends none. The caller closes the stream.
//
// pipe is the value of the environment variable STREAM_PROCESSOR_PIPE: the path of
// the named pipe that containerd listens on for this one connection.
func Source(pipe string) (io.ReadCloser, error) {
	if pipe == "" {
		return nil, fmt.Errorf("%w: it names no pipe", ErrNoPayload)
	}
	if !strings.HasPrefix(strings.ToLower(pipe), pipePrefix) {
		return nil, fmt.Errorf("%w: %q is not a named pipe", ErrNoPayload, pipe)
	}
	path, err := windows.UTF16PtrFromString(pipe)
	if err != nil {
		return nil, fmt.Errorf("%w: %q is not a named pipe", ErrNoPayload, pipe)
	}
	for end := time.Now().Add(busyFor); ; time.Sleep(busyStep) {
		// The other end learns nothing about who this process runs as.
		h, err := windows.CreateFile(path, windows.GENERIC_READ, 0, nil, windows.OPEN_EXISTING,
			windows.SECURITY_SQOS_PRESENT|windows.SECURITY_ANONYMOUS, 0)
		if err == nil {
			return os.NewFile(uintptr(h), pipe), nil
		}
		if !errors.Is(err, windows.ERROR_PIPE_BUSY) || time.Now().After(end) {
			return nil, fmt.Errorf("payload: open %s: %w", pipe, err)
		}
	}
}
