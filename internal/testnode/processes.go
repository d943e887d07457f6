package testnode

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// killShims ends the shims of this node and the containers in them. A shim is known by its arguments: it is
// started with -address and the socket of its containerd. A container's processes are its children, since it
// is their sub-reaper. Processes that are not ours are never looked at twice.
func (n *Node) killShims() error {
	shims, err := n.shims()
	if err != nil {
		return err
	}
	for _, shim := range shims {
		// The containers first: without their shim they would become children of process 1.
		children, err := descendants(shim)
		if err != nil {
			return err
		}
		for _, pid := range append(children, shim) {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill %d: %w", pid, err)
			}
		}
	}
	return n.waitForShims()
}

// waitForShims waits until no shim of this node is left.
func (n *Node) waitForShims() error {
	for deadline := time.Now().Add(stopTimeout); ; time.Sleep(10 * time.Millisecond) {
		shims, err := n.shims()
		if err != nil || len(shims) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("shims still running: %v", shims)
		}
	}
}

// shims lists the process ids of this node's shims. One that has ended and not been reaped has no
// arguments any more, so it is not listed.
func (n *Node) shims() ([]int, error) {
	pids, err := processes()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(pids, func(pid int) bool {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			return true
		}
		args := strings.Split(string(cmdline), "\x00")
		isShim := strings.HasPrefix(filepath.Base(args[0]), "containerd-shim")
		return !isShim || !slices.Contains(args, n.Address())
	}), nil
}

// descendants lists the children of pid, theirs, and so on.
func descendants(pid int) ([]int, error) {
	pids, err := processes()
	if err != nil {
		return nil, err
	}
	children := make(map[int][]int)
	for _, p := range pids {
		parent := parentOf(p)
		children[parent] = append(children[parent], p)
	}
	all := slices.Clone(children[pid])
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all, nil
}

// parentOf returns the parent's process id, 0 where the process is gone.
func parentOf(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// proc(5): "pid (comm) state ppid …", and comm may contain blanks and parentheses.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	ppid, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return ppid
}

func processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// removeCgroups removes the control groups of the node's containers: ctr names them
// /NAMESPACE/CONTAINER, runc removes the lower ones of containers that end orderly, and nobody the upper one.
func (n *Node) removeCgroups() error {
	var errs []error
	for _, pattern := range []string{"*/%s/*", "*/%s", "%s/*", "%s"} {
		groups, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", fmt.Sprintf(pattern, n.Namespace())))
		if err != nil {
			return err
		}
		for _, dir := range groups {
			if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
				continue
			}
			errs = append(errs, removeCgroup(dir))
		}
	}
	return errors.Join(errs...)
}

// removeCgroup removes one control group, which stays busy for a moment after its last process was killed.
func removeCgroup(dir string) error {
	for deadline := time.Now().Add(stopTimeout); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("remove control group %s: %w", dir, err)
		}
	}
}
