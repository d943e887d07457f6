//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package tempfile

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
)

// noLocks are what file systems answer that have no locks, or none on what is open for
// reading.
var noLocks = []error{syscall.ENOTSUP, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.ENOLCK, syscall.EBADF, syscall.EINVAL}

// tryLock locks a file until it is closed. It is errLocked if somebody else has, and
// wraps errors.ErrUnsupported where there are no locks.
func tryLock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case err == syscall.EINTR:
			continue
		case err == syscall.EWOULDBLOCK:
			return errLocked
		case slices.ContainsFunc(noLocks, func(no error) bool { return errors.Is(err, no) }):
			return fmt.Errorf("lock %s: %w: %w", f.Name(), errors.ErrUnsupported, err)
		}
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
}
