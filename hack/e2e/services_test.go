package e2e_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dedupd/dedup-operator/hack/freeport"
)

// Redis and RabbitMQ run on this machine, at an address that only the cluster's pods reach.

// process is a program of this machine that ends with its test.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

func start(t *testing.T, env []string, program string, args ...string) *process {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), filepath.Base(program)+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p := &process{cmd: exec.Command(program, args...), log: log.Name(), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// A group of its own, to be ended as a whole; and it ends also when this program is killed.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			said, _ := os.ReadFile(p.log)
			t.Logf("%s said:\n%s", filepath.Base(program), said[max(0, len(said)-2000):])
		}
	})
	return p
}

// stop ends the process and what it started, gently for ten seconds.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
	}
	p.kill()
}

// kill ends the process and what it started as a crash does.
func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

func freePort(t *testing.T) string {
	t.Helper()
	port, err := freeport.On(host)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// rabbit is Debian's rabbitmq-server with a node and a port mapper of its own.
type rabbit struct {
	url  string
	conn *amqp.Connection
}

func newRabbit(t *testing.T) *rabbit {
	t.Helper()
	dir := t.TempDir()
	port, dist, epmd := freePort(t), freePort(t), freePort(t)
	env := []string{
		"HOME=" + dir,
		"RABBITMQ_NODENAME=e2e" + port + "@localhost",
		"RABBITMQ_NODE_IP_ADDRESS=" + host, "RABBITMQ_NODE_PORT=" + port, "RABBITMQ_DIST_PORT=" + dist,
		"RABBITMQ_MNESIA_BASE=" + dir, "RABBITMQ_LOG_BASE=" + dir, "RABBITMQ_LOGS=-",
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + filepath.Join(dir, "plugins"), "RABBITMQ_CONFIG_FILE=" + filepath.Join(dir, "rabbitmq"),
		"RABBITMQ_PID_FILE=" + filepath.Join(dir, "pid"),
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}",
		"ERL_EPMD_ADDRESS=127.0.0.1", "ERL_EPMD_PORT=" + epmd,
	}
	// guest may come from another address than localhost: from the pods.
	if err := os.WriteFile(filepath.Join(dir, "rabbitmq.conf"), []byte("loopback_users = none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// In the foreground, so that it ends when it is told to and not when it likes to.
	start(t, env, "epmd", "-port", epmd, "-address", "127.0.0.1")
	start(t, env, "/usr/lib/rabbitmq/bin/rabbitmq-server")
	r := &rabbit{url: fmt.Sprintf("amqp://guest:guest@%s/", net.JoinHostPort(host, port))}
	eventually(t, 90*time.Second, func() (err error) {
		r.conn, err = amqp.Dial(r.url)
		return err
	})
	t.Cleanup(func() { _ = r.conn.Close() })
	return r
}

// channel has its publishings confirmed, and the queues declared.
func (r *rabbit) channel(t *testing.T, queues ...string) *amqp.Channel {
	t.Helper()
	channel, err := r.conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := channel.Confirm(false); err != nil {
		t.Fatal(err)
	}
	for _, queue := range queues {
		if _, err := channel.QueueDeclare(queue, true, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	return channel
}
