package redis_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"

	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// BenchmarkSettle completes claims in batches of 256, by the native command of a server that compares
// and by the script, and reports the server's own time: it does not depend on who else uses the machine.
func BenchmarkSettle(b *testing.B) {
	server := redistest.Config{Program: redistest.Program(b, redistest.Valkey8)}.Start(b)
	native, script := newStore(b, server.Addr), newStore(b, server.Addr)
	if h := native.Health(context.Background()); h.Err != nil {
		b.Fatal(h.Err)
	}
	const batch = 256
	for name, s := range map[string]store.Store{"native": native, "script": script} {
		b.Run(name, func(b *testing.B) {
			var used float64
			for n := range b.N {
				claims, completions := make([]store.Op, batch), make([]store.Op, batch)
				for i := range batch {
					key := fmt.Sprintf("dedup:shop:orders:billing:%s:%d:%030d", name, b.N, n*batch+i)
					claims[i], completions[i] = op(store.Claim, key, "a"), held(op(store.Complete, key, "a"), 1)
				}
				apply(s, claims...)
				before := serverTime(b, server)
				for _, r := range apply(s, completions...) {
					if r.Outcome != store.Granted {
						b.Fatal(r)
					}
				}
				used += serverTime(b, server) - before
			}
			b.ReportMetric(used*1e6/float64(b.N*batch), "server-µs/op")
		})
	}
}

// serverTime is the processor time that a server has used, in seconds.
func serverTime(b *testing.B, s *redistest.Server) float64 {
	b.Helper()
	used := 0.0
	info := s.Info("cpu")
	for _, field := range []string{"used_cpu_user", "used_cpu_sys"} {
		seconds, err := strconv.ParseFloat(info[field], 64)
		if err != nil {
			b.Fatal(err)
		}
		used += seconds
	}
	return used
}
