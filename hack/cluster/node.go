package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// nodeCommand makes this program the node's first process. It is for up alone.
const nodeCommand = "node-inside-its-namespaces"

// runNode is the first process in the node's namespaces. It waits until the host has connected the
// node's network, says so by a line with the cluster's folder, and then starts the components.
// When it ends, the kernel ends everything else in its process namespace.
func runNode(ctx context.Context, orders io.Reader) error {
	line, err := bufio.NewReader(orders).ReadString('\n')
	if err != nil {
		return fmt.Errorf("the host went away before the network stood: %w", err)
	}
	p, err := readPlan(strings.TrimSpace(line))
	if err != nil {
		return err
	}
	if err := p.mounts(); err != nil {
		return err
	}
	dead := make(chan int)
	go reap(dead)
	running := map[int]component{}
	for _, c := range p.components() {
		pid, err := p.start(c)
		if err != nil {
			return err
		}
		running[pid] = c
		if err := p.awaitReady(ctx, c, pid); err != nil {
			return err
		}
	}
	if err := os.WriteFile(p.path("started"), nil, 0o600); err != nil {
		return err
	}
	return p.supervise(ctx, running, dead)
}

// supervise starts again what ends, as every node does: kube-proxy ends when it learns its node's address.
func (p *plan) supervise(ctx context.Context, running map[int]component, dead <-chan int) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case pid := <-dead:
			c, ours := running[pid]
			if !ours {
				continue
			}
			delete(running, pid)
			time.Sleep(time.Second) // not in a tight loop
			fmt.Printf("%s ended; ", c.name)
			again, err := p.start(c)
			if err != nil {
				return err
			}
			running[again] = c
		}
	}
}

// mounts gives the node's mount namespace what must not be the host's.
func (p *plan) mounts() error {
	// Nothing mounted from here on is seen by the host. Within the node mounts are shared, as the kubelet wants.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
		return fmt.Errorf("sharing mounts within the node: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	// Pods' network namespaces and shims are found under /run, containers' logs under /var/log.
	for _, dir := range []string{"/run", "/var/log"} {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mounting %s: %w", dir, err)
		}
	}
	return p.ownSysctls()
}

// ownSysctls: the kubelet sets some of the whole machine's sysctls and ends if it cannot. It gets
// files of its own to write to, so that there is nothing to put back.
func (p *plan) ownSysctls() error {
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0",
		"kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		own := p.path("sysctl", strings.ReplaceAll(name, "/", "."))
		if err := os.MkdirAll(filepath.Dir(own), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(own, []byte(value+"\n"), 0o600); err != nil {
			return err
		}
		target := "/proc/sys/" + name
		if _, err := os.Stat(target); err != nil {
			continue // not of this kernel
		}
		if err := syscall.Mount(own, target, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting over %s: %w", target, err)
		}
	}
	// The network's are of the node's network namespace.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600); err != nil {
		return fmt.Errorf("letting the node forward: %w", err)
	}
	return nil
}

// start starts a component. Its output goes to <folder>/<name>.log.
func (p *plan) start(c component) (pid int, err error) {
	program := c.program
	if !filepath.IsAbs(program) {
		program = filepath.Join("/usr/bin", program)
	}
	log, err := os.OpenFile(p.path(c.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	fmt.Printf("starting %s\n", c.commandLine())
	process, err := os.StartProcess(program, append([]string{program}, c.args...), &os.ProcAttr{
		Dir:   p.Folder,
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + p.Folder, "TMPDIR=" + p.Folder},
		Files: []*os.File{nil, log, log},
	})
	if err != nil {
		return 0, fmt.Errorf("starting %s: %w", c.name, err)
	}
	pid = process.Pid
	return pid, process.Release() // reap buries it
}

func (p *plan) awaitReady(ctx context.Context, c component, pid int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		err := c.probe(ctx)
		if err == nil {
			return nil
		}
		if syscall.Kill(pid, 0) != nil {
			return fmt.Errorf("%s ended; its log is %s", c.name, p.path(c.name+".log"))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready after 2 minutes: %w; its log is %s", c.name, err, p.path(c.name+".log"))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (c component) probe(ctx context.Context) error {
	if c.ready == "" {
		return nil // up waits for what it does
	}
	if filepath.IsAbs(c.ready) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", c.ready)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.ready, http.NoBody)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	return nil
}

// reap buries the processes that the kernel hands to the first one, containerd's shims among them,
// and the components should they end, and says which have died.
func reap(dead chan<- int) {
	children := make(chan os.Signal, 16)
	signal.Notify(children, syscall.SIGCHLD)
	for range children {
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
			go func() { dead <- pid }() // nobody listens while the components start
		}
	}
}
