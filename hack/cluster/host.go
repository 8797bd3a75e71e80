package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// up starts the cluster and returns when pods can be made. If it can't, or is interrupted, it
// takes down what it has started.
func up(ctx context.Context, folder string) (err error) {
	if err := requirements(); err != nil {
		return err
	}
	if _, err := os.Stat(folder); err == nil {
		return fmt.Errorf("there is a cluster in %s already, or what a crash left of it: make cluster-down removes it", folder)
	}
	p, err := newPlan(folder)
	if err != nil {
		return err
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			err = p.explain(err)
		}
		if err != nil {
			err = errors.Join(err, down(folder))
		}
	}()
	for _, step := range []func() error{p.write, p.writeCredentials, p.writeConfigs, p.makeCgroup} {
		if err := step(); err != nil {
			return err
		}
	}
	began := time.Now()
	if err := p.startNode(ctx); err != nil {
		return err
	}
	if err := p.awaitUse(ctx); err != nil {
		return err
	}
	fmt.Printf("cluster: up after %.0f s\n\n  export KUBECONFIG=%s\n  alias kubectl=%s\n\nmake cluster-down stops it and removes every trace.\n",
		time.Since(began).Seconds(), p.path("admin.kubeconfig"), filepath.Join(p.Assets, "kubectl"))
	return nil
}

// startNode starts the node's first process in namespaces of its own, connects its network, and
// tells it to go on.
func (p *plan) startNode(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.Create(p.path("node.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	node := exec.Command(self, nodeCommand)
	node.Stdout, node.Stderr = log, log
	orders, err := node.StdinPipe()
	if err != nil {
		return err
	}
	defer orders.Close()
	node.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true, // it outlives this command and its terminal
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	if err := node.Start(); err != nil {
		return fmt.Errorf("starting a process in namespaces of its own: %w", err)
	}
	go node.Wait() //nolint:errcheck // only so that it leaves no zombie while this command runs
	p.PID = node.Process.Pid
	if p.Started, err = startOf(p.PID); err != nil {
		return err
	}
	if err := p.write(); err != nil {
		return err
	}
	if err := p.connect(ctx); err != nil {
		return err
	}
	_, err = io.WriteString(orders, p.Folder+"\n")
	return err
}

// connect joins host and node by a pair of interfaces, and routes the cluster's network to the node.
// Of the host only what has an address in that network can be reached from pods.
func (p *plan) connect(ctx context.Context) error {
	inNode := []string{"nsenter", "--net", "--target", strconv.Itoa(p.PID), "ip"}
	for _, step := range [][]string{
		{"ip", "link", "add", p.Name, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(p.PID)},
		{"ip", "address", "add", p.HostIP.String() + "/30", "dev", p.Name},
		{"ip", "link", "set", p.Name, "up"},
		append(inNode, "link", "set", "lo", "up"),
		append(inNode, "address", "add", p.NodeIP.String()+"/30", "dev", "eth0"),
		append(inNode, "link", "set", "eth0", "up"),
		// The API server calls webhooks by their Services. kube-proxy turns such an address into a pod's
		// only where there is a route for it; this one is never taken.
		append(inNode, "route", "add", p.Service.String(), "via", p.HostIP.String()),
		{"ip", "route", "add", p.Network.String(), "via", p.NodeIP.String(), "dev", p.Name},
	} {
		if _, err := command(ctx, step...); err != nil {
			return err
		}
	}
	return nil
}

// awaitUse waits until a pod can be made: the node is ready, its images are there, and a namespace
// gets its ServiceAccount.
func (p *plan) awaitUse(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	pause := p.path("pause.tar")
	if err := writePause(pause, filepath.Join(p.Own, "pause")); err != nil {
		return err
	}
	for _, step := range []struct {
		what string
		try  func() error
	}{
		{"containerd to take the pause image", func() error { return p.importImage(ctx, pause) }},
		{"the node's components", func() error { _, err := os.Stat(p.path("started")); return err }},
		{"the node to be ready", func() error {
			return p.kubectl(ctx, "wait", "--for=condition=Ready", "node/"+nodeName, "--timeout=5s")
		}},
		{"namespaces to get a ServiceAccount", func() error { return p.kubectl(ctx, "get", "serviceaccount", "default") }},
	} {
		fmt.Printf("cluster: waiting for %s\n", step.what)
		if err := p.until(ctx, step.try); err != nil {
			return fmt.Errorf("waiting for %s: %w", step.what, err)
		}
	}
	return nil
}

// until tries until it works, the node ends, or the context does.
func (p *plan) until(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		if !p.runs() {
			return errors.New("the node has ended")
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// explain adds the node's own last words to an error, before they are removed.
func (p *plan) explain(err error) error {
	for _, name := range []string{"node.log", "kubelet.log"} {
		said, readErr := os.ReadFile(p.path(name))
		if readErr != nil || len(said) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(said)), "\n")
		err = fmt.Errorf("%w\n%s ends:\n%s", err, name, strings.Join(lines[max(0, len(lines)-10):], "\n"))
	}
	return err
}

// down removes every trace of the cluster, from its plan alone. What is gone already is no error.
func down(folder string) error {
	p, err := readPlan(folder)
	if err != nil {
		if _, statErr := os.Stat(folder); statErr == nil {
			return os.RemoveAll(folder) // a crash came before the plan, and so before anything else
		}
		fmt.Println("cluster: none is up")
		return nil
	}
	// The network first: without it nothing of the node reaches the host any more.
	if _, err := os.Stat("/sys/class/net/" + p.Name); err == nil {
		if _, err := command(context.Background(), "ip", "link", "delete", p.Name); err != nil {
			return err
		}
	}
	if p.runs() {
		// With the first process of a process namespace the kernel ends all others, and with the last
		// one mount and network namespace go.
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			return fmt.Errorf("ending the node: %w", err)
		}
	}
	for deadline := time.Now().Add(60 * time.Second); p.runs(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("the node, process %d, does not end", p.PID)
		}
	}
	if err := p.removeCgroup(); err != nil {
		return err
	}
	if err := os.RemoveAll(folder); err != nil {
		return err
	}
	fmt.Println("cluster: down")
	return nil
}

// runs says whether the node's first process still does. A zombie doesn't, nor does another
// process that got the same PID.
func (p *plan) runs() bool {
	started, err := startOf(p.PID)
	return p.PID != 0 && err == nil && started == p.Started
}

// startOf is when a process started; for a zombie it is an error.
func startOf(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field, the name, may hold spaces and parentheses.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0, fmt.Errorf("process %d has ended", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func load(ctx context.Context, folder string, files []string) error {
	p, err := readPlan(folder)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := p.importImage(ctx, file); err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) importImage(ctx context.Context, file string) error {
	_, err := command(ctx, "ctr", "--address", p.containerdSocket(), "--namespace", "k8s.io", "images", "import", file)
	return err
}

func (p *plan) kubectl(ctx context.Context, args ...string) error {
	_, err := command(ctx, append([]string{filepath.Join(p.Assets, "kubectl"), "--kubeconfig", p.path("admin.kubeconfig")}, args...)...)
	return err
}

// command runs a program to its end and returns its standard output.
func command(ctx context.Context, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
