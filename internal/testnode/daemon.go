package testnode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/client"

	"imgcrypt/internal/testenv"
)

// Limits for what takes a fraction of a second on an idle machine.
const (
	startTimeout = time.Minute
	stopTimeout  = 20 * time.Second
)

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
	if n.containerd, err = testenv.StartDaemon(cmd); err != nil {
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
		case <-n.containerd.Ended():
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
