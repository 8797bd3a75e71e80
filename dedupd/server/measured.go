package server

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/store"
)

// logEvery is how often one policy's store errors are logged at most: an outage is a line now
// and then, and not one for each message.
const logEvery = 10 * time.Second

// measured is a store that is timed, and whose errors are counted and logged.
type measured struct {
	store.Store
	policy  string
	metrics *Metrics
	log     *slog.Logger
	now     func() time.Time

	mu         sync.Mutex
	lastLog    time.Time // guarded by mu
	suppressed int       // guarded by mu: errors since then
}

// Measure wraps the store of a policy.
func (m *Metrics) Measure(s store.Store, policy string, log *slog.Logger) store.Store {
	return &measured{Store: s, policy: policy, metrics: m, log: log, now: m.claims.now}
}

// Apply implements store.Store.
func (s *measured) Apply(ctx context.Context, ops []store.Op, results []store.Result) {
	if len(ops) == 0 {
		return
	}
	start := s.now()
	s.Store.Apply(ctx, ops, results)
	took := s.now().Sub(start)
	s.metrics.storeDuration.WithLabelValues(s.policy, opsName(ops)).Observe(took.Seconds())
	failed := 0
	var first error
	for i := range results {
		if err := results[i].Err; err != nil {
			s.metrics.storeErrors.WithLabelValues(s.policy, errorCause(err)).Inc()
			if failed == 0 {
				first = err
			}
			failed++
		}
	}
	if failed > 0 {
		s.report(first, failed)
	}
}

func (s *measured) report(err error, failed int) {
	s.mu.Lock()
	now := s.now()
	if !s.lastLog.IsZero() && now.Sub(s.lastLog) < logEvery {
		s.suppressed += failed
		s.mu.Unlock()
		return
	}
	unlogged := s.suppressed
	s.lastLog, s.suppressed = now, 0
	s.mu.Unlock()
	s.log.Warn("the store does not answer as it should", "policy", s.policy, "error", err, "operations", failed, "unlogged", unlogged)
}

// opsName is the verb of a batch, or settle for one of several verbs.
func opsName(ops []store.Op) string {
	for i := range ops {
		if ops[i].Verb != ops[0].Verb {
			return "settle"
		}
	}
	return verbName(ops[0].Verb)
}

func errorCause(err error) string {
	switch {
	case errors.Is(err, store.ErrFull):
		return "full"
	case errors.Is(err, store.ErrCorrupt):
		return "corrupt"
	default:
		return "unavailable"
	}
}
