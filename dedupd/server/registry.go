package server

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	"github.com/dedupd/dedup-operator/dedupd/status"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Registry is what runs: for each policy an engine over a store. Policies come and go with
// Apply while requests are answered.
type Registry struct {
	open      func(*policy.Policy) (store.Store, error)
	newEngine func(*policy.Policy, store.Store) *engine.Engine

	mu      sync.Mutex // serialises Apply and Close
	current atomic.Pointer[generation]
}

// generation is an immutable set of what runs, by the policy's name.
type generation map[string]*running

// running is a policy at work. Several generations may share one.
type running struct {
	engine *engine.Engine
	store  *openStore
}

// openStore is a store and who needs it: one reference of the current generation and one of
// each request on its way. Who lets go of the last one closes it, so that a replaced store
// answers what it was asked before it goes.
type openStore struct {
	store.Store
	hash   string
	refs   atomic.Int64
	health atomic.Pointer[status.Store]
}

// NewRegistry returns an empty registry. open opens the store of a policy; it need not be
// reachable. newEngine builds the engine over it.
func NewRegistry(
	open func(*policy.Policy) (store.Store, error),
	newEngine func(*policy.Policy, store.Store) *engine.Engine,
) *Registry {
	r := &Registry{open: open, newEngine: newEngine}
	r.current.Store(&generation{})
	return r
}

// Apply makes policies the ones that run. A policy whose configuration is the same goes on as
// it is; one whose store is the same keeps it, and with it everything remembered and every
// connection. On an error everything stays as it was; else begin is called just before they run.
func (r *Registry) Apply(policies []*policy.Policy, begin func()) error {
	if len(policies) == 0 {
		return errors.New("no policy: want at least one DedupPolicy")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := *r.current.Load()
	next := make(generation, len(policies))
	var opened []*openStore
	for _, p := range policies {
		run, isNew, err := r.run(p, old[p.Name])
		if err == nil && next[p.Name] != nil {
			err = errors.New("two policies of this name; requests could not tell them apart")
		}
		if isNew {
			opened = append(opened, run.store)
		}
		if err != nil {
			for _, s := range opened {
				s.release()
			}
			return fmt.Errorf("policy %s: %w", p.Name, err)
		}
		next[p.Name] = run
	}
	begin()
	r.current.Store(&next)
	letGo(old, next)
	return nil
}

// run returns the policy at work, with as much as possible of what runs already, and whether
// its store was opened for it.
func (r *Registry) run(p *policy.Policy, old *running) (*running, bool, error) {
	if old != nil && old.store.hash == p.StoreHash {
		was := old.engine.Policy()
		if was.ConfigHash == p.ConfigHash && was.Namespace == p.Namespace {
			return old, false, nil
		}
		return &running{engine: r.newEngine(p, old.store.Store), store: old.store}, false, nil
	}
	s, err := r.open(p)
	if err != nil {
		return nil, false, fmt.Errorf("opening the store: %w", err)
	}
	opened := &openStore{Store: s, hash: p.StoreHash}
	opened.refs.Store(1)
	opened.health.Store(&status.Store{
		Kind: p.StoreSpec.Kind(), Error: status.NotAsked, Safety: string(store.SafetyUnknown), Reason: status.NotAsked,
	})
	return &running{engine: r.newEngine(p, s), store: opened}, true, nil
}

// letGo drops the old generation's references to the stores that next has not.
func letGo(old, next generation) {
	kept := map[*openStore]bool{}
	for _, run := range next {
		kept[run.store] = true
	}
	for _, run := range old {
		if !kept[run.store] {
			run.store.release()
		}
	}
}

// Close stops everything. Stores are closed when the last request over them is answered.
func (r *Registry) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	letGo(*r.current.Swap(&generation{}), nil)
}

// acquire returns the policy of that name at work. The caller releases its store when it is done.
func (r *Registry) acquire(name string) (*running, error) {
	for {
		run := (*r.current.Load())[name]
		if run == nil {
			return nil, &engine.Error{
				Code: engine.NotFound, Field: "policy",
				Message: fmt.Sprintf("policy: no policy %q here; there is %s", name, r.names()),
			}
		}
		// A store that cannot be had any more was replaced after the generation was read:
		// the next read sees another generation.
		if run.store.retain() {
			return run, nil
		}
	}
}

// policy is the policy of that name that runs, nil if there is none.
func (r *Registry) policy(name string) *policy.Policy {
	if run := (*r.current.Load())[name]; run != nil {
		return run.engine.Policy()
	}
	return nil
}

// Names are the names of the policies that run, sorted.
func (r *Registry) Names() []string {
	return slices.Sorted(maps.Keys(*r.current.Load()))
}

func (r *Registry) names() string {
	names := r.Names()
	switch len(names) {
	case 0:
		return "none"
	case 1, 2, 3, 4, 5:
		return fmt.Sprintf("%q", names)
	default:
		return fmt.Sprintf("%q and %d more", names[:5], len(names)-5)
	}
}

// Status is the state of every policy, sorted by name.
func (r *Registry) Status() []status.Policy {
	current := *r.current.Load()
	policies := make([]status.Policy, 0, len(current))
	for _, name := range slices.Sorted(maps.Keys(current)) {
		p := current[name].engine.Policy()
		policies = append(policies, status.Policy{
			Name:          p.Name,
			Namespace:     p.Namespace,
			ConfigHash:    p.ConfigHash,
			Mode:          string(p.Mode),
			UnknownFields: append([]string{}, p.UnknownFields...),
			Store:         *current[name].store.health.Load(),
		})
	}
	return policies
}

// retain takes a reference, unless the last one is gone.
func (s *openStore) retain() bool {
	for {
		n := s.refs.Load()
		if n == 0 {
			return false
		}
		if s.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release lets go of a reference.
func (s *openStore) release() {
	if s.refs.Add(-1) == 0 {
		// What a store could not close in an orderly way, the server at its other end will.
		_ = s.Close()
	}
}
