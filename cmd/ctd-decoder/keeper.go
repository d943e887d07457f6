package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"time"
)

const (
	// readyByte is what the keeper writes once it is there. No message of a Go
	// runtime that fails to start begins with it.
	readyByte = 6
	// readyWait bounds the wait for it.
	readyWait = 10 * time.Second
)

// keeper holds standard output open for longer than this process lives, and ends
// it so that nobody takes it for a layer.
type keeper interface {
	// begin is told the first bytes of the output before they leave. They may
	// leave if it returns nil: the output is held.
	begin(first []byte) error
	// release lets go of the output: all is well.
	release()
	// fail is for the end of a failed process. The output stays open until the
	// reader can know of the failure.
	fail()
}

// keepOpen starts the keeper of out: this program once more, whose file is self. If
// it cannot be started, the error says so, and the keeper that is returned all the
// same is good for fail only. An out that is no pipe needs none.
//
// spoil says that the reader is containerd, for whom the output of a failed process
// has to end in a tail.
func keepOpen(out *os.File, self func() (string, error), spoil bool) (keeper, error) {
	info, err := out.Stat()
	if err == nil && info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return noKeeper{}, nil
	}
	k := &processKeeper{out: out, spoil: spoil, started: make(chan error, 1), ended: make(chan struct{})}
	if err := k.start(self); err != nil {
		k.err = fmt.Errorf("start the process that keeps standard output open: %w", err)
		k.asked = true
		return k, k.err
	}
	return k, nil
}

// noKeeper is the keeper of what needs none.
type noKeeper struct{}

func (noKeeper) begin([]byte) error { return nil }
func (noKeeper) release()           {}
func (noKeeper) fail()              {}

type processKeeper struct {
	out    *os.File
	spoil  bool
	format format // of what has left

	cmd     *exec.Cmd
	life    *os.File      // tells the keeper the format; ends when this process does
	started chan error    // whether the keeper is there
	ended   chan struct{} // closed when it is not any more

	asked bool // err is set
	err   error
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
		Args:        append([]string{"ctd-decoder"}, holdArgs(os.Getpid(), k.spoil)...),
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
	k.life = lifeW
	go k.listen(readyR)
	return nil
}

// listen hears from the keeper until it ends.
func (k *processKeeper) listen(r *os.File) {
	defer r.Close()
	defer close(k.ended)
	var b [1]byte
	if _, err := io.ReadFull(r, b[:]); err != nil || b[0] != readyByte {
		k.started <- errors.New("the process that keeps standard output open did not start")
		return
	}
	k.started <- nil
	_, _ = io.Copy(io.Discard, r)
}

// holdArgs are the arguments of the keeper of the process pid.
func holdArgs(pid int, spoil bool) []string {
	return []string{holdArg, strconv.Itoa(pid), strconv.FormatBool(spoil)}
}

// selfPath is this program's file, also if it was replaced since.
func selfPath() (string, error) {
	if runtime.GOOS == "linux" {
		return "/proc/self/exe", nil
	}
	return os.Executable()
}

// ready returns once the keeper is there, or why it is not.
func (k *processKeeper) ready() error {
	if k.asked {
		return k.err
	}
	k.asked = true
	select {
	case k.err = <-k.started:
	case <-time.After(readyWait):
		k.err = errors.New("the process that keeps standard output open does not answer")
	}
	return k.err
}

func (k *processKeeper) begin(first []byte) error {
	if err := k.ready(); err != nil {
		return err
	}
	k.format = formatOf(first)
	if _, err := k.life.Write([]byte{byte(k.format)}); err != nil {
		return fmt.Errorf("the process that keeps standard output open: %w", err)
	}
	return nil
}

func (k *processKeeper) release() {
	// Errors mean that it is gone already, which is as well.
	_ = k.cmd.Process.Kill()
	_ = k.cmd.Wait()
}

func (k *processKeeper) fail() {
	err := k.ready()
	select {
	case <-k.ended:
		err = errors.New("ended")
	default:
	}
	// What nobody holds must at least not be taken for a layer.
	if err != nil && k.spoil {
		_, _ = k.out.Write(tail(k.format))
	}
	// Until the process exits.
	runtime.KeepAlive(k.life)
}
