package main

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

const (
	// readyByte is what the keeper writes once it is there. No message of a Go
	// runtime that fails to start begins with it.
	readyByte = 6
	// readyWait bounds the wait for it.
	readyWait = 10 * time.Second
	// holdPoll is how often the keeper looks whether the first process is gone.
	holdPoll = 2 * time.Millisecond
	// linger is how long the keeper stays after that. From the moment at which
	// containerd's wait returns, containerd has to pass the result on between
	// goroutines; that takes microseconds, or milliseconds on a busy machine.
	linger = 100 * time.Millisecond
	// holdLimit bounds how long the keeper waits for the first process to be
	// reaped. containerd reaps it at once, but a program that reads to the end
	// before it waits for its child would wait for ever.
	holdLimit = 10 * time.Second
)

// keeper holds standard output open for longer than this process lives.
type keeper interface {
	// ready returns once the output is held, or the reason that it is not.
	ready() error
	// release lets go of it: all is well.
	release()
	// fail is for the end of a failed process. The output will stay open until
	// the reader can know of the failure, or is spoiled.
	fail()
}

// keepOpen starts the keeper of out: this program once more, whose file is self. If
// it cannot be started, the error says so, and the keeper that is returned all the same spoils
// the output on failure. An out that is no pipe needs none.
func keepOpen(out *os.File, self func() (string, error)) (keeper, error) {
	info, err := out.Stat()
	if err == nil && info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return noKeeper{}, nil
	}
	k := &processKeeper{out: out, done: make(chan error, 1)}
	if err := k.start(self); err != nil {
		err = fmt.Errorf("start the process that keeps standard output open: %w", err)
		k.done <- err
		return k, err
	}
	return k, nil
}

// noKeeper is the keeper of what needs none.
type noKeeper struct{}

func (noKeeper) ready() error { return nil }
func (noKeeper) release()     {}
func (noKeeper) fail()        {}

type processKeeper struct {
	out  *os.File
	cmd  *exec.Cmd
	held *os.File // ends in the keeper when this process does
	done chan error
	err  error
	seen bool // err is set
}

func (k *processKeeper) start(self func() (string, error)) error {
	path, err := self()
	if err != nil {
		return err
	}
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer lifeR.Close()
	readyR, readyW, err := os.Pipe()
	if err != nil {
		lifeW.Close()
		return err
	}
	defer readyW.Close()
	// It gets none of this process's files but the output, so that it keeps
	// neither the ciphertext's nor the error's pipe open, for whose ends
	// containerd waits too.
	k.cmd = &exec.Cmd{
		Path:        path,
		Args:        []string{"ctd-decoder", holdArg, strconv.Itoa(os.Getpid())},
		Env:         []string{"GOMAXPROCS=1"},
		Stdin:       lifeR,
		Stdout:      k.out,
		Stderr:      readyW,
		SysProcAttr: detached(),
	}
	if err := k.cmd.Start(); err != nil {
		lifeW.Close()
		readyR.Close()
		return err
	}
	k.held = lifeW
	go func() {
		defer readyR.Close()
		var b [1]byte
		if _, err := io.ReadFull(readyR, b[:]); err != nil || b[0] != readyByte {
			k.done <- errors.New("the process that keeps standard output open did not start")
			return
		}
		k.done <- nil
	}()
	return nil
}

// selfPath is this program's file, also if it was replaced since.
func selfPath() (string, error) {
	if runtime.GOOS == "linux" {
		return "/proc/self/exe", nil
	}
	return os.Executable()
}

func (k *processKeeper) ready() error {
	if k.seen {
		return k.err
	}
	k.seen = true
	select {
	case k.err = <-k.done:
	case <-time.After(readyWait):
		k.err = errors.New("the process that keeps standard output open does not answer")
	}
	return k.err
}

func (k *processKeeper) release() {
	// Errors mean that it is gone already, which is as well.
	_ = k.cmd.Process.Kill()
	_ = k.cmd.Wait()
}

func (k *processKeeper) fail() {
	if k.ready() != nil {
		spoil(k.out)
	}
	runtime.KeepAlive(k.held)
}

// spoil ends an output that must not be taken for a layer, but will end before its
// reader can know that. The bytes are random, so that nobody could have put their
// digest into an image's config, or have made them part of the format before them
// that is skipped; so is their number.
func spoil(out io.Writer) {
	const most = 4096 // what a pipe takes in one piece
	b := make([]byte, most)
	_, _ = rand.Read(b)
	n := most/4 + int(binary.LittleEndian.Uint16(b))%(most*3/4)
	_, _ = out.Write(b[:n])
}

// hold is the keeper's own life: it waits for the end of its standard input, which
// is the end of the process pid, and then until that has been reaped by whoever
// reads the output.
func hold(pid int, std stdio) int {
	// Who stops containerd's whole group of processes does not mean this one.
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	gone := watch(pid)
	if _, err := std.err.Write([]byte{readyByte}); err != nil {
		return exitFailure
	}
	_, _ = io.Copy(io.Discard, std.in)
	for start := time.Now(); !gone(); time.Sleep(holdPoll) {
		if abandoned(std.out) {
			return exitOK
		}
		if time.Since(start) > holdLimit {
			spoil(std.out)
			return exitFailure
		}
	}
	time.Sleep(linger)
	return exitOK
}
