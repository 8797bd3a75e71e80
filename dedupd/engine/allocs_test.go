package engine_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/memory"
)

// What a batch costs the garbage collector. A message costs the name under which the store keeps
// it, of which its key is a part. The memory store, for a new one, adds its copy of that name and what
// it puts there. What a batch costs beside is its answers and the context of its call. Whoever
// raises a number says why.
func TestAllocationsOfABatch(t *testing.T) {
	const size, rounds = 256, 50
	seen := storeFunc(func(_ context.Context, _ []store.Op, results []store.Result) {
		for i := range results {
			results[i].Outcome = store.Seen
		}
	})
	for name, test := range map[string]struct {
		store      store.Store
		fresh      bool
		perMessage float64
	}{
		"the engine alone":  {seen, false, 1},
		"repeats in memory": {newMemory(), false, 1},
		"new in memory":     {newMemory(), true, 4},
	} {
		t.Run(name, func(t *testing.T) {
			e := engine.New(compile(t), test.store, engine.Options{Now: time.Now})
			batches := make([][]engine.Request, rounds+2) // one to begin with, one that AllocsPerRun runs before it counts
			for i := range batches {
				for j := range size {
					id := fmt.Sprint(j)
					if test.fresh {
						id = fmt.Sprint(i, "-", j)
					}
					batches[i] = append(batches[i], attempt(id, fmt.Sprint(i)))
				}
			}
			next := 0
			check := func() {
				e.Check(t.Context(), batches[next])
				next++
			}
			check()
			got := testing.AllocsPerRun(rounds, check)
			t.Logf("%.2f allocations per message", got/size)
			if want := test.perMessage*size + 20 + pooled*size; got > want {
				t.Errorf("%v allocations for a batch of %d, at most %v", got, size, want)
			}
		})
	}
}

func newMemory() store.Store {
	return memory.New(memory.Options{MaxEntries: 1_000_000, Now: time.Now})
}

func BenchmarkCheck(b *testing.B) {
	for _, n := range []int{1, 256} {
		b.Run(fmt.Sprintf("repeats, batch of %d", n), func(b *testing.B) {
			e := engine.New(compile(b), newMemory(), engine.Options{Now: time.Now})
			var batch []engine.Request
			for i := range n {
				batch = append(batch, attempt(fmt.Sprint(i), "x"))
			}
			b.ReportAllocs()
			for b.Loop() {
				e.Check(b.Context(), batch)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/message")
		})
	}
}
