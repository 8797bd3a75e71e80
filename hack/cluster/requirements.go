package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

const otherwise = "On another cluster, such as kind's, the same tests run with: make e2e KUBECONFIG=/path/to/kubeconfig"

// check says early, before anything is built or installed, that it would be in vain.
func check() error { return inWords(cannotBeInstalled()) }

func cannotBeInstalled() []string {
	var lacks []string
	if runtime.GOOS != "linux" {
		lacks = append(lacks, "Linux: this is "+runtime.GOOS)
	}
	if os.Geteuid() != 0 {
		lacks = append(lacks, "root: namespaces, cgroups and interfaces are made")
	}
	if len(lacks) > 0 {
		return lacks
	}
	return append(namespacesLack(), cgroupsLack()...)
}

// A container has neither namespaces nor cgroups to give away, unless it is privileged.

const isolated = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC

func namespacesLack() []string {
	probe := exec.Command("/bin/true")
	probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: isolated}
	if err := probe.Run(); err != nil {
		return []string{fmt.Sprintf("namespaces for processes, mounts and the network, or the right to make them (CAP_SYS_ADMIN): %v", err)}
	}
	return nil
}

func cgroupsLack() []string {
	all, err := hierarchies()
	if err != nil {
		return []string{"cgroups: " + err.Error()}
	}
	var lacks []string
	for _, hierarchy := range all {
		trial, err := os.MkdirTemp(hierarchy, "dedup-probe-")
		if err != nil {
			lacks = append(lacks, "writable cgroups: "+err.Error())
			continue
		}
		_ = os.Remove(trial)
	}
	return lacks
}

// requirements says all that this machine lacks, in one error.
func requirements() error {
	lacks := cannotBeInstalled()
	for program, its := range map[string]string{
		"containerd": "containerd", "ctr": "containerd", "runc": "runc", "ip": "iproute2", "nft": "nftables",
		"conntrack": "conntrack", "nsenter": "util-linux", "mount": "mount",
	} {
		if _, err := exec.LookPath(program); err != nil {
			lacks = append(lacks, fmt.Sprintf("the program %s, of the Debian package %s", program, its))
		}
	}
	if _, err := os.Stat("/usr/lib/cni/ptp"); err != nil {
		lacks = append(lacks, "the CNI plugins in /usr/lib/cni, of the Debian package containernetworking-plugins")
	}
	if len(lacks) == 0 {
		lacks = nftablesLack()
	}
	return inWords(lacks)
}

func inWords(lacks []string) error {
	if len(lacks) == 0 {
		return nil
	}
	return errors.New("this machine can't run a Kubernetes node. It lacks:\n  - " + strings.Join(lacks, "\n  - ") + "\n" + otherwise)
}

// nftablesLack tries what kube-proxy will need of the kernel, in namespaces of its own: that leaves nothing behind.
func nftablesLack() []string {
	probe := exec.Command("nft", "add table ip dedup-probe; add chain ip dedup-probe nat { type nat hook prerouting priority dstnat; }; "+
		"add rule ip dedup-probe nat ct state new numgen random mod 2 vmap { 0: accept, 1: accept }; add rule ip dedup-probe nat fib daddr type local accept")
	probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: isolated}
	if said, err := probe.CombinedOutput(); err != nil {
		return []string{fmt.Sprintf("nftables with NAT (nf_tables, nf_nat, nft_numgen, nft_fib): %v %s", err, said)}
	}
	return nil
}

// onOverlay says whether a folder lies on an overlay file system.
func onOverlay(folder string) bool {
	const overlayMagic = 0x794c7630
	var fs syscall.Statfs_t
	return syscall.Statfs(folder, &fs) == nil && fs.Type == overlayMagic
}
