package main

import (
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	// holdPoll is how often the keeper looks at what it waits for.
	holdPoll = time.Millisecond
	// holdLimit bounds how long the keeper waits for the first process to be
	// reaped. containerd reaps it at once, but a program that reads to the end
	// before it waits for its child would wait for ever.
	holdLimit = 10 * time.Second
	// linger is how long the keeper stays after that. When containerd's wait
	// returns, it still has to pass the result on between goroutines; that takes
	// microseconds, but much longer on a busy machine.
	linger = 20 * time.Millisecond
	// tailPieces is in how many pieces the tail is written. Each has to be read
	// before the next one follows: so the reader gets to run that often in
	// between, and to see what it was told, however busy the machine is.
	tailPieces = 16
	// pieceWait bounds the wait for a piece to be read.
	pieceWait = time.Second
)

// hold is the keeper's own life: it waits for the end of its standard input, which
// is the end of the process pid, and then until that was reaped by whoever reads the
// output. What it reads is the format of what that process has written.
func hold(opts options, std stdio) int {
	// Who stops containerd's whole group of processes does not mean this one.
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	gone := watch(opts.holdFor)
	if _, err := std.err.Write([]byte{readyByte}); err != nil {
		return exitFailure
	}
	said, _ := io.ReadAll(std.in)
	f := formatNone
	if len(said) > 0 {
		f = format(said[len(said)-1])
	}
	reaped := within(holdLimit, func() bool { return gone() || abandoned(std.out) })
	if abandoned(std.out) {
		return exitOK
	}
	if reaped {
		time.Sleep(linger)
	}
	if opts.spoil {
		end(std.out, tail(f))
	}
	return exitOK
}

// end writes the tail, and makes the reader read it piece by piece.
func end(out io.Writer, tail []byte) {
	for n := tailPieces; n > 0; n-- {
		size := len(tail) / n
		if _, err := out.Write(tail[:size]); err != nil {
			return
		}
		tail = tail[size:]
		within(pieceWait, func() bool { return consumed(out) })
	}
}

// within waits until cond holds, but not longer than limit, and says whether it did.
func within(limit time.Duration, cond func() bool) bool {
	for start := time.Now(); !cond(); time.Sleep(holdPoll) {
		if time.Since(start) > limit {
			return false
		}
	}
	return true
}
