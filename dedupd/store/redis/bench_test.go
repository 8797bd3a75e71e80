package redis_test

import (
	"fmt"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// BenchmarkApply is new messages in batches, and what the same server does with a pipeline of
// bare SETNX, per message.
func BenchmarkApply(b *testing.B) {
	server := redistest.Start(b)
	for _, n := range []int{1, 256} {
		b.Run(fmt.Sprintf("batch of %d", n), func(b *testing.B) {
			s := newStore(b, server.Addr)
			ops, results := make([]store.Op, n), make([]store.Result, n)
			for i := 0; b.Loop(); i++ {
				for j := range ops {
					ops[j] = op(store.Mark, fmt.Sprintf("%s:%d:%d", b.Name(), i, j), "a")
				}
				s.Apply(b.Context(), ops, results)
				if r := results[n-1]; r.Outcome != store.Granted {
					b.Fatalf("%+v", r)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/message")
		})
		b.Run(fmt.Sprintf("bare SETNX, pipeline of %d", n), func(b *testing.B) {
			client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
			defer func() { _ = client.Close() }()
			for i := 0; b.Loop(); i++ {
				pipe := client.Pipeline()
				for j := range n {
					pipe.SetNX(b.Context(), fmt.Sprintf("%s:%d:%d", b.Name(), i, j), 1, time.Hour)
				}
				if _, err := pipe.Exec(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/message")
		})
	}
}
