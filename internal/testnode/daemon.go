package testnode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"

	"imgcrypt/internal/testenv"
)

// Limits for what takes a fraction of a second on an idle machine.
const (
	startTimeout = time.Minute
	stopTimeout  = 20 * time.Second
)

// daemon is a child process. A nil one has ended.
type daemon struct {
	process *os.Process
	ended   chan struct{} // closed when it has been reaped
}

// startDaemon starts a command that is killed when this process ends, even when it crashes. The kernel
// does that when the thread ends that started the child, hence a thread for the child's whole life.
func startDaemon(cmd *exec.Cmd) (*daemon, error) {
	// A process group of its own: an interrupt from the terminal must not reach it before its clients.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	d := &daemon{ended: make(chan struct{})}
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

func (d *daemon) pid() int {
	if d == nil || d.hasEnded() {
		return 0
	}
	return d.process.Pid
}

func (d *daemon) hasEnded() bool {
	select {
	case <-d.ended:
		return true
	default:
		return false
	}
}

// terminate asks the process to end and kills it when it does not.
func (d *daemon) terminate() error {
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
		return d.kill()
	}
}

func (d *daemon) kill() error {
	if d == nil {
		return nil
	}
	if err := d.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-d.ended
	return nil
}

// startContainerd returns when containerd answers.
func (n *Node) startContainerd(ctx context.Context) error {
	log, err := os.OpenFile(n.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(testenv.Containerd(n.cfg.Version.requirement()), "--config", n.path("config.toml"))
	cmd.Dir = n.dir
	cmd.Env = n.daemonEnv()
	cmd.Stdout, cmd.Stderr = log, log
	if n.containerd, err = startDaemon(cmd); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := n.answers(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-n.containerd.ended:
			return fmt.Errorf("ended at once:\n%s", n.Log())
		case <-ctx.Done():
			return fmt.Errorf("%w, log:\n%s", errors.Join(ctx.Err(), err), n.Log())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// answers returns nil once containerd serves requests.
func (n *Node) answers(ctx context.Context) error {
	if _, err := os.Stat(n.Address()); err != nil {
		return err
	}
	c, err := client.New(n.Address(), client.WithTimeout(time.Second))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Version(ctx)
	return err
}

// daemonEnv is containerd's environment, which is its shims' and decoders' too: nothing of the caller's
// but what names programs. The directory of this containerd's shim comes first.
func (n *Node) daemonEnv() []string {
	bin := filepath.Dir(testenv.Containerd(n.cfg.Version.requirement()))
	return []string{
		"PATH=" + bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + n.dir,
		"TMPDIR=" + n.path("tmp"),
	}
}
