// Package redistest starts real Redis servers for tests.
package redistest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/hack/freeport"
)

// Server is a redis-server on a loopback port, with a folder of its own. It ends with the test.
type Server struct {
	// Addr is the server's host:port. It stays the same over Stop and Restart.
	Addr string

	// Dir is the server's working folder.
	Dir string

	tb   testing.TB
	conf Config
	args []string
	cmd  *exec.Cmd
	gone chan struct{} // closed when cmd has ended
}

// The programs that hack/servers.sh brings, for Program.
const (
	Redis8  = "redis-8"
	Valkey8 = "valkey-8"
)

// Program is where hack/servers.sh has put a server's program.
func Program(tb testing.TB, name string) string {
	tb.Helper()
	dir := os.Getenv("DEDUP_TEST_SERVERS")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			tb.Fatal(err)
		}
		dir = filepath.Join(cache, "dedup-operator", "servers", "trixie")
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		tb.Fatalf("%v: run hack/servers.sh, which brings it, or make test", err)
	}
	return path
}

// startTime is how long a server may take to answer.
const startTime = 20 * time.Second

// Config is how servers are started and reached. The zero Config is a redis-server of PATH with
// neither TLS nor users.
type Config struct {
	// Program is the server's program. Empty: redis-server, looked up on PATH.
	Program string

	// TLS signs the certificates of servers and clients, each of which wants the other's. Nil: no TLS.
	TLS *Authority

	// ACL gives the servers users, and switches the default one off.
	ACL bool

	// Args are further arguments, such as "--maxmemory", "2mb"; they win over the defaults.
	Args []string
}

// Start starts a redis-server that does not persist and does not evict. args are as in Config.
func Start(tb testing.TB, args ...string) *Server {
	tb.Helper()
	return Config{Args: args}.Start(tb)
}

// Start starts a server that does not persist and does not evict. args come after c.Args.
func (c Config) Start(tb testing.TB, args ...string) *Server {
	tb.Helper()
	args = slices.Concat(c.Args, args)
	// Between asking for a free port and the server's listening on it, another process may
	// have taken it.
	for range 5 {
		s := &Server{Addr: freeAddr(tb), Dir: tb.TempDir(), tb: tb, conf: c, args: args}
		if s.start() {
			tb.Cleanup(s.Stop)
			return s
		}
	}
	tb.Fatal("redis-server did not start; is a redis-server of version 7.0 or newer on PATH?")
	return nil
}

func freeAddr(tb testing.TB) string {
	tb.Helper()
	port, err := freeport.On("127.0.0.1")
	if err != nil {
		tb.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", port)
}

// start starts the process and reports whether it answers.
func (s *Server) start() bool {
	s.tb.Helper()
	program := s.conf.Program
	if program == "" {
		var err error
		if program, err = exec.LookPath("redis-server"); err != nil {
			s.tb.Fatalf("install redis-server (apt-get install redis-server), or run make test: %v", err)
		}
	}
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		s.tb.Fatal(err)
	}
	// A sentinel keeps its state in its configuration file; a server needs none.
	config := filepath.Join(s.Dir, "redis.conf")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		s.tb.Fatal(err)
	}
	args := []string{config, "--bind", host, "--dir", s.Dir, "--logfile", filepath.Join(s.Dir, "redis.log")}
	args = append(args, s.conf.security(s.tb, s.Dir, port)...)
	if !slices.Contains(s.args, "--sentinel") {
		args = append(args, "--save", "", "--appendonly", "no")
	}
	s.cmd = exec.Command(program, append(args, s.args...)...)
	s.gone = make(chan struct{})
	if err := s.cmd.Start(); err != nil {
		s.tb.Fatalf("start redis-server: %v", err)
	}
	go func(cmd *exec.Cmd, gone chan struct{}) {
		_ = cmd.Wait()
		close(gone)
	}(s.cmd, s.gone)
	return s.answers()
}

// answers waits until the server answers, and this one and not another's.
func (s *Server) answers() bool {
	deadline := time.After(startTime)
	mine := fmt.Sprintf("process_id:%d\r\n", s.cmd.Process.Pid)
	for {
		info, err := s.Do("info", "server")
		if text, ok := info.(string); err == nil && ok && strings.Contains(text, mine) {
			return true
		}
		select {
		case <-s.gone:
			return false
		case <-deadline:
			s.Stop()
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Stop kills the server, as kill -9 does: what it has not saved is lost.
func (s *Server) Stop() {
	_ = s.cmd.Process.Kill()
	<-s.gone
}

// Pause stops the server's process without closing its connections, until Resume.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume lets a paused server go on.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.tb.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.tb.Fatal(err)
	}
}

// Restart starts the server again, on the same port and in the same folder.
func (s *Server) Restart() {
	s.tb.Helper()
	s.Stop()
	if !s.start() {
		s.tb.Fatalf("redis-server did not start again on %s", s.Addr)
	}
}

// Do runs a command and returns its answer as go-redis does: nil, string, int64 or []any.
func (s *Server) Do(args ...any) (any, error) {
	o := &redis.Options{Addr: s.Addr, Password: s.password(), Protocol: 2, MaxRetries: -1, DisableIdentity: true}
	if s.conf.ACL {
		o.Username, o.Password = admin, passwordOf(admin)
	}
	if s.conf.TLS != nil {
		o.TLSConfig = s.conf.TLS.client(s.tb)
	}
	client := redis.NewClient(o)
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	answer, err := client.Do(ctx, args...).Result()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	return answer, err
}

// Must runs a command that must succeed.
func (s *Server) Must(args ...any) any {
	s.tb.Helper()
	answer, err := s.Do(args...)
	if err != nil {
		s.tb.Fatalf("%v: %v", args, err)
	}
	return answer
}

// Calls is how often the server has run a command, those of scripts included.
func (s *Server) Calls(command string) int {
	s.tb.Helper()
	text, _ := s.Must("info", "commandstats").(string)
	_, rest, found := strings.Cut(text, "cmdstat_"+command+":calls=")
	if !found {
		return 0
	}
	var n int
	if _, err := fmt.Sscanf(rest, "%d", &n); err != nil {
		s.tb.Fatal(err)
	}
	return n
}

// password is what the server's own arguments say that it wants.
func (s *Server) password() string {
	if i := slices.Index(s.args, "--requirepass"); i >= 0 && i+1 < len(s.args) {
		return s.args[i+1]
	}
	return ""
}
