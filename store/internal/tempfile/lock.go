package tempfile

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"
)

// errLocked means that somebody else has the lock.
var errLocked = errors.New("locked")

// Lock locks the file or directory called name in root against every other Lock of it,
// in this process and others, and waits until ctx ends. It locks what has the name once
// it has the lock, whatever had it before. An error that wraps [fs.ErrNotExist] says that
// nothing has. The result unlocks it.
func Lock(ctx context.Context, root *os.Root, name string) (unlock func(), err error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		f, err := root.Open(name)
		if err != nil {
			return nil, err
		}
		err = tryLock(f)
		if err == nil && isAt(root, name, f) {
			return func() { f.Close() }, nil
		}
		f.Close()
		switch {
		case err == nil:
			// Another file has the name by now.
		case errors.Is(err, errors.ErrUnsupported):
			return lockByFile(ctx, root)
		case !errors.Is(err, errLocked):
			return nil, err
		}
		if err := pause(ctx, wait); err != nil {
			return nil, err
		}
	}
}

func pause(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

const (
	lockSuffix = ".lock"
	lockName   = prefix + "all" + lockSuffix
	// A lock by file that was not touched for so long is that of a killed process.
	lockStale = 30 * time.Second
	lockTouch = 5 * time.Second
)

// lockByFile is Lock where systems or file systems have no locks: for all of root.
func lockByFile(ctx context.Context, root *os.Root) (unlock func(), err error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		f, err := root.OpenFile(lockName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if err == nil {
			f.Close()
			return keepTouched(root), nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		if info, err := root.Lstat(lockName); err == nil && time.Since(info.ModTime()) > lockStale {
			_ = root.Remove(lockName)
			continue
		}
		if err := pause(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// keepTouched keeps the lock's file fresh until the result is called, which removes it.
func keepTouched(root *os.Root) func() {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(lockTouch)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case now := <-ticker.C:
				_ = root.Chtimes(lockName, now, now)
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped
		_ = root.Remove(lockName)
	}
}
