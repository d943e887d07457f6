//go:build cgo && unix

package main

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// maxTurn bounds the wait for other processes. Whoever may read the library can keep it locked.
const maxTurn = 10 * time.Second

// turn waits until no other process of this program uses the library, by a lock on its file that ends with
// the process. SoftHSM rewrites a token at each login, and whoever looks meanwhile finds none; and of
// processes that have the same wrong PIN each is to see what became of the one before. Where there is no such lock,
// or it takes too long, things go on without.
func turn(module string, timeout time.Duration) {
	// Never closed, since that would be the end of the lock.
	fd, err := unix.Open(module, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for errors.Is(unix.Flock(fd, unix.LOCK_EX), unix.EINTR) {
		}
	}()
	select {
	case <-done:
	case <-time.After(min(maxTurn, timeout/2)):
	}
}
