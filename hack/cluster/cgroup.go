package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const cgroupRoot = "/sys/fs/cgroup"

// cgroups2 says that the machine has the unified hierarchy, which distributions use since about 2020.
func cgroups2() bool {
	_, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers"))
	return err == nil
}

// hierarchies are the folders in which a cgroup is made: one, or with version 1 one per controller.
func hierarchies() ([]string, error) {
	if cgroups2() {
		return []string{cgroupRoot}, nil
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var all []string
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && (f[2] == "cgroup" || f[2] == "cgroup2") { // beside version 1 runc uses both
			all = append(all, f[1])
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted below " + cgroupRoot)
	}
	return all, nil
}

// makeCgroup makes the cgroup under which the kubelet puts every pod.
func (p *plan) makeCgroup() error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	if err := p.enableControllers(); err != nil {
		return err
	}
	for _, hierarchy := range all {
		own := filepath.Join(hierarchy, p.Name)
		if err := os.MkdirAll(own, 0o755); err != nil {
			return fmt.Errorf("making a cgroup: %w", err)
		}
		// With version 1 a new cpuset is empty, and nothing could run in it.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(hierarchy, file))
			if cgroups2() || errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(own, file), value, 0o600); err != nil {
				return fmt.Errorf("giving the cgroup its %s: %w", file, err)
			}
		}
	}
	return nil
}

const subtreeControl = cgroupRoot + "/cgroup.subtree_control"

// enableControllers lets a cgroup below the root have every controller, and notes in the plan which
// ones had to be enabled for that. With version 1 there is nothing to enable.
func (p *plan) enableControllers() error {
	if !cgroups2() {
		return nil
	}
	available, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	if err != nil {
		return err
	}
	enabled, err := os.ReadFile(subtreeControl)
	if err != nil {
		return err
	}
	for controller := range strings.FieldsSeq(string(available)) {
		if slices.Contains(strings.Fields(string(enabled)), controller) {
			continue
		}
		if err := os.WriteFile(subtreeControl, []byte("+"+controller), 0o600); err != nil {
			return fmt.Errorf("enabling the cgroup controller %s: %w", controller, err)
		}
		p.Controllers = append(p.Controllers, controller)
	}
	return p.write()
}

// removeCgroup removes the cgroup and those below. Their processes have ended, but the kernel
// takes a moment to see it.
func (p *plan) removeCgroup() error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, hierarchy := range all {
		own := filepath.Join(hierarchy, p.Name)
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			err := removeTree(own)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("removing a cgroup: %w", err)
			}
		}
	}
	for _, controller := range p.Controllers {
		// Someone else may use it by now; then the kernel refuses, which is right.
		_ = os.WriteFile(subtreeControl, []byte("-"+controller), 0o600)
	}
	return nil
}

// removeTree removes folders from the leaves up. A cgroup's files can't be removed and needn't be.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, syscall.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}
