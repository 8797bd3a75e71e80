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
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// stage is everything that stands while the demo plays.
type stage struct {
	out io.Writer

	mu        sync.Mutex // guards out and processes
	processes []*process

	root       string // of the repository
	dir        string // for everything the demo writes
	kubectl    string
	kubeconfig string // of an administrator
	redis      string // host:port
	env        *envtest.Environment
	api        client.Client

	kubelet     *kubelet
	stopKubelet func()
	samples     []sample
}

func (s *stage) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format+"\n", args...)
}

// process is a program that the demo started, its output in a file.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
}

// start runs a program until strike or stop. Its output goes to <dir>/<name>.log.
func (s *stage) start(name, program string, args ...string) (*process, error) {
	log := filepath.Join(s.dir, name+".log")
	file, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = file, file
	cmd.SysProcAttr = attributes()
	started := make(chan error)
	starts() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p := &process{name: name, log: log, cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	s.mu.Lock()
	s.processes = append(s.processes, p)
	s.mu.Unlock()
	return p, nil
}

// starts takes what starts a process, and runs it on a thread that lasts as long as the demo: on Linux a
// process ends with the thread that started it, see attributes.
var starts = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for start := range work {
			start()
		}
	}()
	return work
})

// stop ends a process, gently for five seconds.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// exited is an error once the process has ended by itself, with the end of its output.
func (p *process) exited() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	output, _ := os.ReadFile(p.log)
	lines := strings.Split(strings.TrimSpace(string(output)), "\n")
	return fmt.Errorf("%s ended: %s\n%s", p.name, p.cmd.ProcessState, strings.Join(lines[max(0, len(lines)-15):], "\n"))
}

// await polls until check returns nil; a process that ends meanwhile ends the wait.
func (s *stage) await(ctx context.Context, limit time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	var last error
	for {
		if err := check(ctx); err == nil {
			return nil
		} else if ctx.Err() == nil {
			last = err
		}
		s.mu.Lock()
		processes := s.processes
		s.mu.Unlock()
		for _, p := range processes {
			if err := p.exited(); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("still not after %s: %w", limit, last)
		case <-ticker.C:
		}
	}
}

// forget takes a process that was stopped on purpose off the list.
func (s *stage) forget(gone *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range s.processes {
		if p == gone {
			s.processes = append(s.processes[:i:i], s.processes[i+1:]...)
			return
		}
	}
}

// strike stops whatever was started, the last first, and removes what was written.
func (s *stage) strike() error {
	if s.stopKubelet != nil {
		s.stopKubelet()
	}
	s.mu.Lock()
	processes := s.processes
	s.processes = nil
	s.mu.Unlock()
	for i := len(processes) - 1; i >= 0; i-- {
		processes[i].stop()
	}
	var errs []error
	if s.env != nil {
		errs = append(errs, s.env.Stop())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// command runs a program to its end and returns its standard output.
func command(ctx context.Context, dir string, stdin io.Reader, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdin = dir, stdin
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
