package postgres

import (
	"context"
	"time"
)

// The walk of the sweep: at each tick so many steps of so many pages (of 8 kB), and a rest
// after the last page of all. So at most 8 MB are read in a second with a tick each second, and a few thousand
// rows are removed in a transaction.
const (
	sweepPages = 64
	sweepSteps = 16
	sweepRest  = 30 * time.Second
)

// sweepSkips is how many ticks a store leaves out after one at which another walked, or the walk
// rested: of many replicas, few ask.
const sweepSkips = 9

// sweep removes expired records at each tick until ctx ends. Of all the stores on a schema, in
// this process or another, one walks at a time, from where the last one has stopped.
func (s *Store) sweep(ctx context.Context, tick <-chan time.Time) {
	skip := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		if skip > 0 || !s.schema.made.Load() {
			// Where nobody has asked yet, or the server is down, that is not the sweep's to find out.
			skip = max(skip-1, 0)
			continue
		}
		if !s.sweepTick(ctx) {
			skip = sweepSkips
		}
	}
}

// sweepTick makes the steps of a tick, and says whether it was this store that walked.
func (s *Store) sweepTick(ctx context.Context) bool {
	for step := range sweepSteps {
		walked, err := s.sweepOnce(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "removing expired records", "error", s.server.explain(err, ""))
		}
		if err != nil || !walked {
			return step > 0
		}
	}
	return true
}

// sweepOnce makes a step, unless another store does so or the walk rests.
func (s *Store) sweepOnce(ctx context.Context) (walked bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	var removed int64
	err = s.pool.QueryRow(ctx, "SELECT walked, removed FROM "+s.schema.ident+".sweep_1($1, $2)", sweepPages, sweepRest).Scan(&walked, &removed)
	if removed > 0 {
		s.log.DebugContext(ctx, "expired records removed", "records", removed)
	}
	return walked, err
}
