package redis_test

import (
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// The layouts that docs/architecture.md weighs beside dense.lua, as far as a new message needs
// them: KEYS are hashes, ARGV for each the field, the owner and the ttl.
var (
	//go:embed testdata/layouts/buckets.lua
	buckets string

	//go:embed testdata/layouts/byfield.lua
	byField string
)

// marker marks new messages in one call or pipeline.
type marker func(ids []string, ttl time.Duration)

// BenchmarkLayouts is what a message takes of a server's memory and time, in one hash or another
// and in a key of its own: a number of them at once, and then a constant rate of them.
func BenchmarkLayouts(b *testing.B) {
	for _, layout := range []struct {
		name    string
		program string // of redistest; empty: the server of PATH
		open    func(b *testing.B, addr string) marker
	}{
		{"bare SET", "", bareSets},
		{"buckets", "", scripted(buckets)},
		{"expiry by field", redistest.Redis8, scripted(byField)},
		{"expiry in the value", "", stored(func(b *testing.B, addr string) hashed { b.Helper(); return newDense(b, addr, layoutIDs) })},
		{"the same, whole records", "", stored(func(b *testing.B, addr string) hashed { b.Helper(); return newCompact(b, addr) })},
	} {
		b.Run(layout.name, func(b *testing.B) {
			var config redistest.Config
			if layout.program != "" {
				config.Program = redistest.Program(b, layout.program)
			}
			for b.Loop() {
				server := config.Start(b)
				mark := layout.open(b, server.Addr)
				fill(b, server, mark)
				server.Must("flushall")
				pace(b, server, mark)
				server.Stop()
			}
		})
	}
}

// Each layout is for layoutIDs messages in a ttl, in layoutHashes hashes, 64 messages in a call.
const (
	layoutIDs    = 200_000
	layoutHashes = 2048
	layoutBatch  = 64
)

func bareSets(b *testing.B, addr string) marker {
	b.Helper()
	client := goredis.NewClient(&goredis.Options{Addr: addr})
	b.Cleanup(func() { _ = client.Close() })
	return func(ids []string, ttl time.Duration) {
		pipe := client.Pipeline()
		for _, id := range ids {
			pipe.Set(b.Context(), "dedup:orders:"+id, 1, ttl)
		}
		if _, err := pipe.Exec(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func scripted(lua string) func(*testing.B, string) marker {
	return func(b *testing.B, addr string) marker {
		b.Helper()
		client := goredis.NewClient(&goredis.Options{Addr: addr})
		b.Cleanup(func() { _ = client.Close() })
		script := goredis.NewScript(lua)
		return func(ids []string, ttl time.Duration) {
			keys, args := make([]string, len(ids)), make([]any, 0, 3*len(ids))
			for i, id := range ids {
				id := key.IDOf(id)
				keys[i] = fmt.Sprintf("%s~d11:%x", prefix, (int(id[0])<<8|int(id[1]))%layoutHashes)
				args = append(args, id[1:], id[:8], ttl.Milliseconds())
			}
			if err := script.Run(b.Context(), client, keys, args...).Err(); err != nil && !errors.Is(err, goredis.Nil) {
				b.Fatal(err)
			}
		}
	}
}

// stored is a key format of the store itself.
func stored(open func(*testing.B, string) hashed) func(*testing.B, string) marker {
	return func(b *testing.B, addr string) marker {
		b.Helper()
		s := open(b, addr)
		return func(ids []string, ttl time.Duration) {
			ops := make([]store.Op, len(ids))
			for i, id := range ids {
				ops[i] = op(store.Mark, id, id)
				ops[i].TTL = ttl
			}
			for _, r := range apply(s, ops...) {
				if r.Outcome != store.Granted {
					b.Fatalf("%+v", r)
				}
			}
		}
	}
}

func ids() []string {
	ids := make([]string, layoutBatch)
	for i := range ids {
		ids[i] = uuid()
	}
	return ids
}

// fill marks as many messages as are expected, which nobody forgets meanwhile.
func fill(b *testing.B, server *redistest.Server, mark marker) {
	b.Helper()
	memory, cpu := used(b, server), busy(b, server)
	const n = layoutIDs / layoutBatch * layoutBatch
	for range n / layoutBatch {
		mark(ids(), time.Hour)
	}
	b.ReportMetric(float64(used(b, server)-memory)/n, "bytes/id")
	b.ReportMetric((busy(b, server)-cpu)*1e6/n, "server-µs/id")
}

// pace marks as many messages in each ttl as are expected, for three of them, and looks at
// the memory from the second on: in bytes for each message of the last ttl.
func pace(b *testing.B, server *redistest.Server, mark marker) {
	b.Helper()
	const ttl, looks = 20 * time.Second, 200
	memory := used(b, server)
	begun, next := time.Now(), 0
	var sum, peak float64
	n := 0
	for marked := 0; marked < 3*layoutIDs; marked += layoutBatch {
		mark(ids(), ttl)
		ahead := time.Duration(float64(marked)/layoutIDs*float64(ttl)) - time.Since(begun)
		time.Sleep(max(ahead, 0))
		if marked < layoutIDs*3/2 || marked < next {
			continue
		}
		next = marked + layoutIDs/looks
		now := float64(used(b, server)-memory) / layoutIDs
		sum, peak, n = sum+now, max(peak, now), n+1
	}
	b.ReportMetric(sum/float64(n), "paced-bytes/id")
	b.ReportMetric(peak, "paced-peak-bytes/id")
	b.ReportMetric(0, "ns/op")
}

// busy is for how many seconds the server has computed.
func busy(b *testing.B, server *redistest.Server) (seconds float64) {
	b.Helper()
	info, _ := server.Must("info", "cpu").(string)
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name == "used_cpu_user" || name == "used_cpu_sys" {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				b.Fatal(err)
			}
			seconds += n
		}
	}
	return seconds
}
