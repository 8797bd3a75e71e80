// Package gather lets many small calls of a store share its round trips, and bounds how many
// operations wait for it. A call that finds the store idle goes to it at once. What arrives
// while flights are under way goes together when one of them returns: so nothing ever waits
// for a timer, and the busier the store is, the fuller its round trips are.
package gather

import (
	"context"
	"fmt"
	"sync"

	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Options are the settings of a Store.
type Options struct {
	// MaxPending is how many operations may be on their way, waiting or in flight. A call
	// that would exceed it is answered store.ErrOverloaded at once, and so is every call that
	// is larger than it. At least one.
	MaxPending int

	// Flights is how many calls of the store beneath run at once. At least one. With two, one
	// is made up while the other is under way.
	Flights int

	// Observe is told what happens. Optional.
	Observe Observer
}

// Observer is told of the queue, for metrics. Functions are called synchronously, from many
// goroutines; one that is nil is not called.
type Observer struct {
	// Pending is called with by how many the operations on their way have become more or fewer.
	Pending func(delta int)

	// Refused is called with the number of operations of a call that was not accepted.
	Refused func(ops int)
}

// maxFlight is how many operations share a flight at most. A larger call is one by itself:
// beyond some hundreds a round trip costs no less per operation, and everybody in it waits for
// the last.
const maxFlight = 256

// large is from how many operations on a call flies alone: it would gain little by company,
// which costs a copy of it.
const large = 64

// Store shares the round trips of the store beneath it.
//
// A call is never divided, so its operations keep their order. Calls that are made at once
// have none between them, and one that begins after another has returned begins after that
// one's flight has landed. (Unless its time was over. But then its outcome is not known, and
// may come to be at any later time, as with a command that is lost in the network for a while.)
type Store struct {
	beneath store.Store
	options Options
	refused error

	// landing is for Close: flights may outlast the callers that left them.
	landing sync.WaitGroup

	mu      sync.Mutex
	pending int  // guarded by mu: operations waiting or in flight
	flying  int  // guarded by mu: flights under way; all of them whenever somebody waits
	waiting line // guarded by mu
}

var _ store.Store = (*Store)(nil)

// New returns a store over beneath, which it closes when it is closed.
func New(beneath store.Store, o Options) *Store {
	if o.Observe.Pending == nil {
		o.Observe.Pending = func(int) {}
	}
	if o.Observe.Refused == nil {
		o.Observe.Refused = func(int) {}
	}
	return &Store{
		beneath: beneath,
		options: o,
		refused: fmt.Errorf("%w: %d operations may be on their way to it (--max-pending); ask again later", store.ErrOverloaded, o.MaxPending),
	}
}

// Why an operation has no answer although the store was not refused.
var (
	errWaited = fmt.Errorf("%w: too slow for what is asked of it: the operation was not sent in its time, and has had no effect", store.ErrUnavailable)
	errLeft   = fmt.Errorf("%w: no answer in time: the operation may or may not have taken effect", store.ErrUnavailable)
)

// Apply implements store.Store.
func (s *Store) Apply(ctx context.Context, ops []store.Op, results []store.Result) {
	s.mu.Lock()
	switch {
	case s.pending+len(ops) > s.options.MaxPending:
		s.mu.Unlock()
		s.options.Observe.Refused(len(ops))
		fail(results, s.refused)
	case s.flying < s.options.Flights:
		s.flying++
		s.accept(len(ops))
		s.mu.Unlock()
		defer s.landed(len(ops)) // also if the store panics
		s.beneath.Apply(ctx, ops, results)
	default:
		s.accept(len(ops))
		c := &call{ctx: ctx, ops: ops, results: results, done: make(chan struct{})}
		s.waiting.push(c)
		s.mu.Unlock()
		s.await(c)
	}
}

// accept requires mu.
func (s *Store) accept(ops int) {
	s.pending += ops
	s.options.Observe.Pending(ops)
}

// answered requires mu.
func (s *Store) answered(ops int) {
	s.pending -= ops
	s.options.Observe.Pending(-ops)
}

// landed ends a flight that its only caller has flown itself. Who has come to wait meanwhile
// gets a goroutine that flies until nobody waits.
func (s *Store) landed(ops int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered(ops)
	if s.waiting.first == nil {
		s.flying--
		return
	}
	s.landing.Go(s.fly)
}

// await waits for the answer to a call that stands in line, and for no longer than its time.
func (s *Store) await(c *call) {
	select {
	case <-c.done:
		c.landed()
		return
	case <-c.ctx.Done():
	}
	s.mu.Lock()
	switch c.state {
	case inLine:
		s.waiting.remove(c)
		s.answered(len(c.ops))
		c.state = left
		s.mu.Unlock()
		fail(c.results, errWaited)
	case inCompany:
		// Its operations are under way with those of others, who may have more time. The
		// flight has copies of everything, and lands without this call.
		c.state = left
		results := c.results // which the flight forgets when it lands
		s.mu.Unlock()
		fail(results, errLeft)
	case alone, answering, left:
		// The flight has this call's own context and so ends now, or has ended.
		s.mu.Unlock()
		c.landed()
	}
}

// Health implements store.Store.
func (s *Store) Health(ctx context.Context) store.Health { return s.beneath.Health(ctx) }

// Close implements store.Store. It waits for the flights that their callers have left.
func (s *Store) Close() error {
	s.landing.Wait()
	return s.beneath.Close()
}

func fail(results []store.Result, err error) {
	for i := range results {
		results[i] = store.Result{Err: err}
	}
}
