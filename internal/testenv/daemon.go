package testenv

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// stopTimeout is the time that a daemon has to end orderly. It takes a fraction of a second on an idle machine.
const stopTimeout = 20 * time.Second

// Daemon is a child process that runs until it is told to end. A nil Daemon has ended.
type Daemon struct {
	process *os.Process
	ended   chan struct{} // closed when it has been reaped
}

// StartDaemon starts a command that is killed when this process ends, even when it crashes. The kernel
// does that when the thread ends that started the child, hence a thread for the child's whole life.
func StartDaemon(cmd *exec.Cmd) (*Daemon, error) {
	cmd.SysProcAttr = daemonAttr()
	d := &Daemon{ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer close(d.ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			// How it ends is told by its log; that it ended, by the channel.
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	d.process = cmd.Process
	return d, nil
}

// Pid returns the process id, 0 after the end.
func (d *Daemon) Pid() int {
	if d == nil || d.hasEnded() {
		return 0
	}
	return d.process.Pid
}

// Ended returns a channel that is closed once the process has ended and been reaped.
func (d *Daemon) Ended() <-chan struct{} { return d.ended }

func (d *Daemon) hasEnded() bool {
	select {
	case <-d.ended:
		return true
	default:
		return false
	}
}

// Terminate asks the process to end and kills it when it does not.
func (d *Daemon) Terminate() error {
	if d == nil {
		return nil
	}
	if err := d.process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.ended:
		return nil
	case <-time.After(stopTimeout):
		return d.Kill()
	}
}

// Kill ends the process at once.
func (d *Daemon) Kill() error {
	if d == nil {
		return nil
	}
	if err := d.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-d.ended
	return nil
}
