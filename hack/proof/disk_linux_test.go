package proof

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// The disk of the append-only file is full. Checks fail as long as it is, and nothing that was
// acknowledged is lost, not even when the server is killed afterwards.
func TestTheDiskIsFull(t *testing.T) {
	t.Parallel()
	l := startLoad(t, redistest.Start(t, "--appendonly", "yes", "--appendfsync", "everysec"), "")
	l.reach(t, 150)
	l.server.LimitFiles(uint64(appendOnlySize(t, l.server.Dir)))
	l.refused(20, "cannot save to its disk")
	l.server.LimitFiles(redistest.NoLimit)
	l.reach(t, 150)
	l.end()
	redistest.Eventually(t, "everything is written", func() bool {
		info := fmt.Sprint(l.server.Must("info", "persistence"))
		return strings.Contains(info, "aof_buffer_length:0\r\n") && strings.Contains(info, "aof_last_write_status:ok\r\n")
	})
	l.server.Restart()
	l.remembered(t, untiringly(l.access))
	l.mustHold(t, nil)
}

func appendOnlySize(t *testing.T, dir string) int64 {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "appendonlydir", "*.incr.aof"))
	if err != nil || len(files) != 1 {
		t.Fatalf("append-only files %v, %v", files, err)
	}
	info, err := os.Stat(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
