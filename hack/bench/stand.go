package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/hack/freeport"
)

// stand is where everything is measured: a directory, and the processes in it.
type stand struct {
	dedupd    string // the program
	dir       string
	processes []*process
}

func newStand(dedupd string) (*stand, error) {
	dir, err := os.MkdirTemp("", "dedup-bench-")
	if err != nil {
		return nil, err
	}
	return &stand{dedupd: dedupd, dir: dir}, nil
}

// strike stops what still runs and removes what was written.
func (s *stand) strike() error {
	for _, p := range s.processes {
		p.stop()
	}
	return os.RemoveAll(s.dir)
}

// process is a program on the stand, its output in a file.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

func (s *stand) start(program string, args ...string) (*process, error) {
	log, err := os.CreateTemp(s.dir, filepath.Base(program)+"-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, s.dir
	// A group of its own, so that Ctrl-C reaches the bench alone, which then stops the rest.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, log: log.Name(), done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	s.processes = append(s.processes, p)
	return p, nil
}

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

// await polls until ready says nil, or the process has ended, or ten seconds have passed.
func (p *process) await(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			output, _ := os.ReadFile(p.log)
			return fmt.Errorf("%s ended: %s\n%s", p.cmd.Path, p.cmd.ProcessState, output)
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", p.cmd.Path, err)
		case <-time.After(time.Millisecond):
		}
	}
}

// redisServer is a redis-server without persistence.
type redisServer struct {
	*process
	addr   string
	client *redis.Client // for the bench's own questions
}

const loopback = "127.0.0.1"

func (s *stand) startRedis(ctx context.Context) (*redisServer, error) {
	port, err := freeport.On(loopback)
	if err != nil {
		return nil, err
	}
	addr := net.JoinHostPort(loopback, port)
	p, err := s.start("redis-server", "--bind", loopback, "--port", port, "--dir", s.dir, "--save", "", "--appendonly", "no")
	if err != nil {
		return nil, fmt.Errorf("%w; install redis-server (apt-get install redis-server)", err)
	}
	r := &redisServer{process: p, addr: addr, client: newRedis(addr)}
	return r, p.await(ctx, func(ctx context.Context) error { return r.client.Ping(ctx).Err() })
}

// newRedis is a client as a consumer's that asks Redis itself: go-redis with its defaults.
func newRedis(addr string) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: addr, PoolSize: 64})
}

// daemon is a dedupd.
type daemon struct {
	*process
	http, grpc, pprof string // addresses
	ready             time.Duration
}

// startDedupd starts dedupd over a Redis with these policies and waits until it is ready.
func (s *stand) startDedupd(ctx context.Context, redis string, policies ...string) (*daemon, error) {
	dir, err := os.MkdirTemp(s.dir, "policies-")
	if err != nil {
		return nil, err
	}
	for i, p := range policies {
		text := strings.ReplaceAll(p, "REDIS", redis)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.yaml", i)), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	d := &daemon{}
	for _, addr := range []*string{&d.http, &d.grpc, &d.pprof} {
		port, err := freeport.On(loopback)
		if err != nil {
			return nil, err
		}
		*addr = net.JoinHostPort(loopback, port)
	}
	program, err := filepath.Abs(s.dedupd)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	d.process, err = s.start(program, "serve", "-f", dir, "--http-addr", d.http, "--grpc-addr", d.grpc, "--pprof-addr", d.pprof)
	if err != nil {
		return nil, fmt.Errorf("%w; build it by make build", err)
	}
	err = d.await(ctx, func(ctx context.Context) error { return ask(ctx, "http://"+d.http+"/readyz") })
	d.ready = time.Since(start)
	return d, err
}

// ask is nil if a GET is answered by 200.
func ask(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}
