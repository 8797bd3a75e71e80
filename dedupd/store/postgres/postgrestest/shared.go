package postgrestest

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// once is what is made once per process, and removed by Main.
var once struct {
	mu       sync.Mutex
	template string // a data folder in which no server has run
	err      error
	shared   *Server
	remove   []func()
}

// initialised returns a data folder to be copied: making one takes a second.
func initialised() (string, error) {
	once.mu.Lock()
	defer once.mu.Unlock()
	if once.template == "" && once.err == nil {
		once.template, once.err = initialise()
	}
	return once.template, once.err
}

func initialise() (string, error) {
	dir, err := os.MkdirTemp("", "postgrestest-template")
	if err != nil {
		return "", err
	}
	once.remove = append(once.remove, func() { _ = os.RemoveAll(dir) })
	if who, err := servant(); err != nil {
		return "", err
	} else if who != nil {
		if err := os.Chown(dir, int(who.Uid), int(who.Gid)); err != nil {
			return "", err
		}
	}
	out, err := command(program("initdb"), "-D", dir, "-U", "postgres", "--no-sync", "--encoding=UTF8", "--locale=C").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("install postgresql (apt-get install postgresql), or run make test: initdb: %w\n%s", err, out)
	}
	return dir, os.WriteFile(filepath.Join(dir, "pg_hba.conf"), []byte(hba), 0o600)
}

// Shared is a server for all tests of the process, whose TestMain has to call Main. A test
// takes a database of its own.
func Shared(tb testing.TB) *Server {
	tb.Helper()
	template, err := initialised()
	if err != nil {
		tb.Fatal(err)
	}
	once.mu.Lock()
	defer once.mu.Unlock()
	if once.shared == nil {
		life := &lifetime{TB: tb}
		s := &Server{Dir: filepath.Join(folder(life), "data"), tb: life, settings: []string{"max_connections=500"}}
		run(life, "cp", "-a", template, s.Dir)
		s.serve()
		once.shared = s
		once.remove = append(once.remove, life.cleanups...)
	}
	return &Server{Addr: once.shared.Addr, Dir: once.shared.Dir, tb: tb, cmd: once.shared.cmd, gone: once.shared.gone}
}

// lifetime is a test that ends with the process.
type lifetime struct {
	testing.TB
	cleanups []func()
}

// Cleanup keeps f for Main.
func (l *lifetime) Cleanup(f func()) { l.cleanups = append(l.cleanups, f) }

// Main runs the tests of a package, and removes what they have shared.
func Main(m *testing.M) int {
	code := m.Run()
	once.mu.Lock()
	defer once.mu.Unlock()
	for i := range once.remove {
		once.remove[len(once.remove)-1-i]()
	}
	return code
}
