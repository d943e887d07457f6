package testnode

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"golang.org/x/sys/unix"
)

// prepareRoot chooses the snapshotter and gives the node a file system that can carry it: the one of the temporary
// directory where overlayfs works on it, which it does not on another overlay (in a container, say),
// otherwise a tmpfs.
func (n *Node) prepareRoot() error {
	n.snapshotter = n.cfg.Snapshotter
	if n.cfg.RootSize > 0 {
		if err := mountTmpfs(n.rootDir(), n.cfg.RootSize); err != nil {
			return err
		}
	}
	if n.snapshotter != "" {
		return nil
	}
	n.snapshotter = "overlayfs"
	if overlayWorks(n.rootDir()) == nil {
		return nil
	}
	if n.cfg.RootSize == 0 {
		if err := mountTmpfs(n.rootDir(), 0); err != nil {
			return err
		}
		if overlayWorks(n.rootDir()) == nil {
			return nil
		}
	}
	n.snapshotter = "native"
	return nil
}

// mountTmpfs mounts a tmpfs of size bytes, or the kernel's default for 0.
func mountTmpfs(dir string, size int64) error {
	options := "mode=0711"
	if size > 0 {
		options += ",size=" + strconv.FormatInt(size, 10)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	return nil
}

// overlayWorks mounts an overlay with all its directories below dir.
func overlayWorks(dir string) error {
	tmp, err := os.MkdirTemp(dir, "overlay")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(tmp, name), 0o700); err != nil {
			return err
		}
	}
	merged := filepath.Join(tmp, "merged")
	options := fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", tmp, tmp, tmp)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return err
	}
	return unix.Unmount(merged, unix.MNT_DETACH)
}

// unmountBelow unmounts everything at and below dir, the last mounted first.
func unmountBelow(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// mountsBelow lists the mount points at and below dir in the order in which they were mounted.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var points []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// proc(5): the fifth field is the mount point, blanks in it escaped, of which our directories have none.
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && (fields[4] == dir || strings.HasPrefix(fields[4], dir+"/")) {
			points = append(points, fields[4])
		}
	}
	return points, nil
}

// hostPlatform is this machine's platform as containerd's configuration spells it.
func hostPlatform() string { return platforms.Format(platforms.DefaultSpec()) }
