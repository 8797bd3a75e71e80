package server

import (
	"context"
	"slices"
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
		s.forgetGone()
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

// gone are the policies that have left, and when. Their series are forgotten here and not as they leave: a store
// that is being asked then, and a request that is being answered, are counted yet.
type gone struct {
	mu    sync.Mutex
	since map[string]time.Time // guarded by mu
}

// untilAnswered is longer than a request that was received is on its way.
const untilAnswered = time.Minute

// forgetGone removes the series of policies that run no longer, also those that have come since it last did.
func (s *Service) forgetGone() {
	s.gone.mu.Lock()
	defer s.gone.mu.Unlock()
	running := s.Registry.Names()
	for name, since := range s.gone.since {
		if slices.Contains(running, name) {
			delete(s.gone.since, name)
			continue
		}
		s.Metrics.forget(name)
		if s.Now().Sub(since) > untilAnswered {
			delete(s.gone.since, name)
		}
	}
}

// note keeps what a store said, and logs it when it changed.
func (s *Service) note(policy string, st *openStore, h store.Health) {
	was := st.health.Load()
	now := &status.Store{
		Kind: was.Kind, Reachable: h.Err == nil, Safety: string(h.Safety), Reason: h.Reason,
		HistorySince: h.HistorySince.UTC().Truncate(time.Millisecond),
	}
	up := 1.0
	if h.Err != nil {
		now.Error, up = h.Err.Error(), 0
	}
	if now.Safety == "" {
		now.Safety = string(store.SafetyUnknown)
	}
	lost := s.noteHistory(policy, was, now)
	st.health.Store(now)
	s.Metrics.storeUp.WithLabelValues(policy).Set(up)
	if lost {
		s.Log.Warn("the store has lost what it remembered: messages from before may pass once more",
			"policy", policy, "store", now.Kind, "historySince", now.HistorySince, "before", was.HistorySince)
	}
	switch log := s.Log.With("policy", policy, "store", now.Kind, "safety", now.Safety, "reason", now.Reason); {
	case was.Reachable == now.Reachable && was.Safety == now.Safety && (was.Error != status.NotAsked || now.Reachable):
	case now.Reachable:
		log.Info("the store answers")
	default:
		log.Warn("the store does not answer", "error", now.Error)
	}
}

// noteHistory keeps in now when the store's history begins, which one that does not answer has not
// said, and says whether it begins anew.
func (s *Service) noteHistory(policy string, was, now *status.Store) (lost bool) {
	if now.HistorySince.IsZero() {
		now.HistorySince = was.HistorySince
	}
	lost = !was.HistorySince.IsZero() && now.HistorySince.After(was.HistorySince)
	losses := s.Metrics.historyLost.WithLabelValues(policy) // there from the first look on, at zero
	if lost {
		losses.Inc()
	}
	if !now.HistorySince.IsZero() {
		s.Metrics.historySince.WithLabelValues(policy).Set(float64(now.HistorySince.UnixMilli()) / 1000)
	}
	return lost
}
