// Package postgrestest starts real PostgreSQL servers for tests.
package postgrestest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dedupd/dedup-operator/hack/freeport"
)

// Server is a PostgreSQL server on a loopback port, with a folder of its own. It ends with
// the test. Its superuser postgres needs no password, every other user does.
type Server struct {
	// Addr is the server's host:port. It stays the same over Stop and Restart.
	Addr string

	// Dir holds the server's data.
	Dir string

	tb       testing.TB
	settings []string
	cmd      *exec.Cmd
	gone     chan struct{} // closed when cmd has ended
}

// startTime is how long a server may take to answer.
const startTime = 60 * time.Second

// hba lets in who knows a password, and the superuser.
//
//nolint:dupword // that is its format
const hba = `# type  database         user      address       method
host    all,replication  postgres  127.0.0.1/32  trust
host    all              all       127.0.0.1/32  scram-sha-256
`

// Start starts a server. settings, such as "max_connections=10", win over the defaults, which
// are made for speed: what is under test is mostly not the disk.
func Start(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	s := &Server{Dir: filepath.Join(folder(tb), "data"), tb: tb, settings: settings}
	template, err := initialised()
	if err != nil {
		tb.Fatal(err)
	}
	run(tb, "cp", "-a", template, s.Dir)
	s.serve()
	return s
}

// Standby starts a server that follows this one. Asked for a promotion, it takes writes.
func (s *Server) Standby(settings ...string) *Server {
	s.tb.Helper()
	standby := &Server{Dir: filepath.Join(folder(s.tb), "data"), tb: s.tb, settings: settings}
	host, port, _ := net.SplitHostPort(s.Addr)
	run(s.tb, program("pg_basebackup"), "-h", host, "-p", port, "-U", "postgres", "-D", standby.Dir, "-R", "-c", "fast", "--no-sync")
	standby.serve()
	return standby
}

// serve starts the server on a free port.
func (s *Server) serve() {
	s.tb.Helper()
	// Between asking for a free port and the server's listening on it, another process may
	// have taken it.
	for range 5 {
		s.Addr = freeAddr(s.tb)
		if s.start() {
			s.tb.Cleanup(s.Stop)
			return
		}
	}
	log, _ := os.ReadFile(s.log())
	s.tb.Fatalf("the server did not start; its log:\n%s", log)
}

// log is the server's log. A base backup would stumble over one among the data.
func (s *Server) log() string { return filepath.Join(filepath.Dir(s.Dir), "log") }

// start starts the process and reports whether it answers.
func (s *Server) start() bool {
	s.tb.Helper()
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		s.tb.Fatal(err)
	}
	args := []string{"-D", s.Dir, "-p", port, "-h", host, "-k", ""}
	for _, setting := range slices.Concat([]string{"fsync=off", "full_page_writes=off", "shared_buffers=32MB", "max_wal_size=256MB", "autovacuum_naptime=5s"}, s.settings) {
		args = append(args, "-c", setting)
	}
	log, err := os.OpenFile(s.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.tb.Fatal(err)
	}
	defer func() { _ = log.Close() }() // the process has its own
	s.cmd = command(program("postgres"), args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.gone = make(chan struct{})
	if err := s.cmd.Start(); err != nil {
		s.tb.Fatalf("start postgres: %v", err)
	}
	go func(cmd *exec.Cmd, gone chan struct{}) {
		_ = cmd.Wait()
		close(gone)
	}(s.cmd, s.gone)
	return s.answers()
}

// answers waits until the server answers, and this one and not another's. A server that is up
// and lets nobody in has answered too.
func (s *Server) answers() bool {
	deadline := time.After(startTime)
	for {
		var dir string
		err := s.query("SHOW data_directory", &dir)
		if err == nil && dir == s.Dir || err != nil && strings.Contains(err.Error(), "not accepting connections") {
			return true
		}
		select {
		case <-s.gone:
			return false
		case <-deadline:
			s.Stop()
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop ends the server at once, as a crash does: what has no place on the disk is lost.
func (s *Server) Stop() {
	_ = s.cmd.Process.Signal(syscall.SIGQUIT)
	<-s.gone
}

// Pause stops every process of the server without closing its connections, until Resume.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume lets a paused server go on.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.tb.Helper()
	pids := []int{s.cmd.Process.Pid}
	children, err := exec.Command("pgrep", "-P", strconv.Itoa(pids[0])).Output()
	if err != nil {
		s.tb.Fatalf("pgrep: %v", err)
	}
	for _, field := range strings.Fields(string(children)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			s.tb.Fatal(err)
		}
		pids = append(pids, pid)
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, sig) // a session may have ended meanwhile
	}
}

// Restart starts the server again, on the same port and in the same folder.
func (s *Server) Restart(settings ...string) {
	s.tb.Helper()
	s.Stop()
	s.settings = append(s.settings, settings...)
	if !s.start() {
		s.tb.Fatalf("postgres did not start again on %s", s.Addr)
	}
}

// HBA puts lines before those that say who is let in, and how.
func (s *Server) HBA(lines string) {
	s.tb.Helper()
	path := filepath.Join(s.Dir, "pg_hba.conf")
	if err := os.WriteFile(path, []byte(lines+hba), 0o600); err != nil {
		s.tb.Fatal(err)
	}
	s.Must("SELECT pg_reload_conf()")
	var loaded bool
	for deadline := time.Now().Add(startTime); !loaded; {
		// The postmaster reads the file when it gets to it.
		s.Value("postgres", "SELECT pg_conf_load_time() > (pg_stat_file('pg_hba.conf')).modification", &loaded)
		if time.Now().After(deadline) {
			s.tb.Fatal("pg_hba.conf was not read again")
		}
	}
}

// Database is the name of a new database.
func (s *Server) Database() string {
	s.tb.Helper()
	name := fmt.Sprintf("db%d", databases())
	s.Must("CREATE DATABASE " + name + "")
	return name
}

// databases counts the databases of this process.
var databases = func() func() int {
	var mu sync.Mutex
	n := 0
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		n++
		return n
	}
}()

// Must runs statements, which must succeed, as the superuser in the database postgres.
func (s *Server) Must(sql string) {
	s.tb.Helper()
	s.MustIn("postgres", sql)
}

// MustIn runs statements, which must succeed, as the superuser.
func (s *Server) MustIn(database, sql string) {
	s.tb.Helper()
	if err := s.with(database, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql)
		return err
	}); err != nil {
		s.tb.Fatalf("%s: %v", sql, err)
	}
}

// Value reads the one row that a query returns, as the superuser, into variables.
func (s *Server) Value(database, sql string, into ...any) {
	s.tb.Helper()
	if err := s.with(database, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, sql).Scan(into...)
	}); err != nil {
		s.tb.Fatalf("%s: %v", sql, err)
	}
}

// Hold runs a statement in a transaction that stays open until the test ends.
func (s *Server) Hold(database, sql string) {
	s.tb.Helper()
	ctx, stop := context.WithCancel(context.Background())
	held, ended := make(chan error, 2), make(chan struct{})
	go func() {
		defer close(ended)
		held <- s.with(database, func(own context.Context, conn *pgx.Conn) error {
			if _, err := conn.Exec(own, "BEGIN"); err != nil {
				return err
			}
			if _, err := conn.Exec(own, sql); err != nil {
				return err
			}
			held <- nil
			<-ctx.Done()
			return nil
		})
	}()
	s.tb.Cleanup(func() { stop(); <-ended })
	if err := <-held; err != nil {
		s.tb.Fatalf("%s: %v", sql, err)
	}
}

func (s *Server) query(sql string, into any) error {
	return s.with("postgres", func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, sql).Scan(into)
	})
}

func (s *Server) with(database string, do func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, fmt.Sprintf("host=%s port=%s user=postgres dbname=%s sslmode=disable", host, port, database))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	return do(ctx, conn)
}

// Secrets writes files like those of mounted Secrets, readable by the server's user as well,
// and returns their folder.
func Secrets(tb testing.TB, files map[string]string) string {
	tb.Helper()
	dir := folder(tb)
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			tb.Fatal(err)
		}
		give(tb, filepath.Dir(path))
		give(tb, path)
	}
	return dir
}

// program is the path of a program of PostgreSQL. Debian keeps most of them from PATH.
func program(name string) string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) == 0 {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
		return name
	}
	slices.SortFunc(found, func(a, b string) int { return release(a) - release(b) })
	return found[len(found)-1]
}

func release(path string) int {
	n, _ := strconv.Atoi(strings.Split(path, "/")[4])
	return n
}

// servant is whom the server runs as: it refuses root. Nil: ourselves.
var servant = sync.OnceValues(func() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return nil, err
		}
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, err
})

func command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC")
	if who, err := servant(); err == nil && who != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who}
	}
	return cmd
}

func run(tb testing.TB, name string, args ...string) {
	tb.Helper()
	if out, err := command(name, args...).CombinedOutput(); err != nil {
		tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// folder is a new folder of the server's user, gone after the test. (A folder of tb.TempDir is
// within one that only we may enter.)
func folder(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "postgrestest")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	give(tb, dir)
	return dir
}

func give(tb testing.TB, path string) {
	tb.Helper()
	who, err := servant()
	if err == nil && who != nil {
		err = os.Chown(path, int(who.Uid), int(who.Gid))
	}
	if err != nil {
		tb.Fatal(err)
	}
}

func freeAddr(tb testing.TB) string {
	tb.Helper()
	port, err := freeport.On("127.0.0.1")
	if err != nil {
		tb.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", port)
}
