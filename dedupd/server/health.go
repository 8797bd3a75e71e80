package server

import (
	"context"
	"sync"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/status"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// watchStores asks every store how it is, now and at each tick, until ctx ends. Requests for
// the status read what was said last: a probe never waits for a store.
func (s *Service) watchStores(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		s.askStores(ctx, every)
		s.Metrics.claims.sweep()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-s.reloaded:
		}
	}
}

// askStores asks all stores at once.
func (s *Service) askStores(ctx context.Context, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, name := range s.Registry.Names() {
		run, err := s.Registry.acquire(name)
		if err != nil {
			continue // gone since
		}
		wg.Go(func() {
			defer run.store.release()
			s.note(name, run.store, run.store.Health(ctx))
		})
	}
	wg.Wait()
}

// note keeps what a store said, and logs it when it changed.
func (s *Service) note(policy string, st *openStore, h store.Health) {
	was := st.health.Load()
	now := &status.Store{Kind: was.Kind, Reachable: h.Err == nil, Safety: string(h.Safety), Reason: h.Reason}
	up := 1.0
	if h.Err != nil {
		now.Error, up = h.Err.Error(), 0
	}
	if now.Safety == "" {
		now.Safety = string(store.SafetyUnknown)
	}
	st.health.Store(now)
	s.Metrics.storeUp.WithLabelValues(policy).Set(up)
	switch log := s.Log.With("policy", policy, "store", now.Kind, "safety", now.Safety, "reason", now.Reason); {
	case was.Reachable == now.Reachable && was.Safety == now.Safety && (was.Error != status.NotAsked || now.Reachable):
	case now.Reachable:
		log.Info("the store answers")
	default:
		log.Warn("the store does not answer", "error", now.Error)
	}
}
