package proof

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/dedupd/dedup-operator/dedupd/store/postgres/postgrestest"
)

func TestMain(m *testing.M) {
	if isConsumer() {
		return
	}
	// A write beyond a file's limit is to be an error for the servers started here, not their
	// end. What is ignored here is ignored by them.
	signal.Ignore(syscall.SIGXFSZ)
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "proof")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program = sync.OnceValues(func() (string, error) { return build(filepath.Join(dir, "dedupd")) })
	return postgrestest.Main(m)
}

// program is the path of dedupd, which is built when it is first asked for.
var program func() (string, error)

// build builds dedupd, with the race detector where the tests have it.
func build(path string) (string, error) {
	args := []string{"build", "-o", path}
	if raced {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./dedupd")...)
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building dedupd: %w\n%s", err, out)
	}
	return path, nil
}
