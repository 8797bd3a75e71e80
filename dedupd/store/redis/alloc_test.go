package redis_test

import (
	"fmt"
	"runtime/debug"
	"testing"

	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// What a batch needs is had once for all of its messages. The one allocation for each is go-redis's,
// which looks at each answer "nil" whether it is an error.
func TestABatchOfNewMessagesAllocatesAsAWhole(t *testing.T) {
	s := newStore(t, redistest.Start(t).Addr)
	const n, runs = 256, 20
	batches := make([][]store.Op, runs+1) // AllocsPerRun has one more to warm up
	for i := range batches {
		for j := range n {
			batches[i] = append(batches[i], op(store.Mark, fmt.Sprint(i, ":", j), "a"))
		}
	}
	results := make([]store.Result, n)
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it empties the pools
	next := 0
	allocs := testing.AllocsPerRun(runs, func() {
		s.Apply(t.Context(), batches[next], results)
		next++
	})
	if r := results[n-1]; r.Outcome != store.Granted {
		t.Fatalf("%+v", r)
	}
	if limit := float64(n + 80); allocs > limit {
		t.Errorf("%g allocations for a batch of %d, at most %g", allocs, n, limit)
	}
}
