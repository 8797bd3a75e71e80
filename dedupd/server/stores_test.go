package server

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/policy"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/memory"
)

// gatedStore is a memory store whose Apply says that it was entered, with how many
// operations, and waits for pass.
type gatedStore struct {
	store.Store
	entered chan int
	pass    chan struct{}
}

func (g *gatedStore) open(*policy.Policy) (store.Store, error) {
	return &gatedStore{memory.New(memory.Options{MaxEntries: 1000, Now: time.Now}), g.entered, g.pass}, nil
}

func (g *gatedStore) Apply(ctx context.Context, ops []store.Op, results []store.Result) {
	g.entered <- len(ops)
	<-g.pass
	g.Store.Apply(ctx, ops, results)
}

// askedStore is a memory store whose Health says that it was entered, and waits for pass.
type askedStore struct {
	store.Store
	entered, pass chan struct{}
}

func (a *askedStore) Health(ctx context.Context) store.Health {
	select {
	case a.entered <- struct{}{}:
		<-a.pass
	case <-ctx.Done():
	}
	return a.Store.Health(ctx)
}

// watchedStore is a memory store that fails when it is used after it was closed.
type watchedStore struct {
	store.Store
	closed atomic.Bool
	fail   *atomic.Bool
	late   *atomic.Int64
}

func (w *watchedStore) Apply(ctx context.Context, ops []store.Op, results []store.Result) {
	if w.closed.Load() {
		w.late.Add(1)
	}
	if w.fail.Load() {
		for i := range results {
			results[i].Err = fmt.Errorf("%w: connection refused", store.ErrUnavailable)
		}
		return
	}
	w.Store.Apply(ctx, ops, results)
	if w.closed.Load() {
		w.late.Add(1)
	}
}

func (w *watchedStore) Health(ctx context.Context) store.Health {
	if w.fail.Load() {
		return store.Health{Err: fmt.Errorf("%w: connection refused", store.ErrUnavailable), Safety: store.SafetyUnknown}
	}
	return w.Store.Health(ctx)
}

func (w *watchedStore) Close() error {
	w.closed.Store(true)
	return w.Store.Close()
}

// stores opens watched stores and keeps them.
type stores struct {
	fail atomic.Bool
	late atomic.Int64

	mu     sync.Mutex
	opened []*watchedStore
}

func (s *stores) open(*policy.Policy) (store.Store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &watchedStore{Store: memory.New(memory.Options{MaxEntries: 100_000, Now: time.Now}), fail: &s.fail, late: &s.late}
	s.opened = append(s.opened, w)
	return w, nil
}

func (s *stores) count() (opened, closed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.opened {
		if w.closed.Load() {
			closed++
		}
	}
	return len(s.opened), closed
}
