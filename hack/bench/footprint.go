package main

import (
	"context"
	"os"
	"time"
)

// footprint is what dedupd itself costs: how long it takes to be ready, what it keeps in memory
// when there is nothing to do, and how large it is.
func footprint(ctx context.Context, s *stand, o options) ([]result, error) {
	store, err := s.startRedis(ctx)
	if err != nil {
		return nil, err
	}
	defer store.stop()
	var starts, sizes []float64
	for range o.rounds {
		dedupd, err := s.startDedupd(ctx, store.addr, marksPolicy, claimsPolicy)
		if err != nil {
			return nil, err
		}
		starts = append(starts, float64(dedupd.ready.Microseconds())/1e3)
		// Long enough for the first questions to the store.
		time.Sleep(time.Second)
		bytes, err := resident(dedupd.cmd.Process.Pid)
		dedupd.stop()
		if err != nil {
			return nil, err
		}
		sizes = append(sizes, float64(bytes)/(1<<20))
	}
	program, err := os.Stat(s.dedupd)
	if err != nil {
		return nil, err
	}
	one := func(what, reach, format string, found spread, limit float64) result {
		return result{
			what: what, rival: "—", theirs: "—", reach: reach, ratio: "—",
			ours: found.with(format), score: limit / found.mid,
		}
	}
	size := float64(program.Size()) / 1e6
	return []result{
		one("dedupd: ready after its start", "100 ms", "%.0f ms", of(starts), 100),
		one("dedupd: resident at idle", "30 MiB", "%.1f MiB", of(sizes), 30),
		one("dedupd: binary", "25 MB", "%.1f MB", spread{size, size, size}, 25),
	}, nil
}
