// Package memory is a bounded store in the memory of one process: for trying out, and the
// reference that the other stores are compared with. It runs store.Transition and nothing else.
package memory

import (
	"container/heap"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Options are the settings of a Store.
type Options struct {
	// MaxEntries is how many records are kept at most. At least one.
	MaxEntries int

	// Now is the store's clock.
	Now func() time.Time
}

// Store remembers in memory. A restart forgets everything.
type Store struct {
	maxEntries int
	now        func() time.Time
	born       time.Time

	mu       sync.Mutex
	items    map[string]*item // guarded by mu
	expiries expiryHeap       // guarded by mu; holds every item exactly once
}

var _ store.Store = (*Store)(nil)

// item is a record under its key, and its place in the heap.
type item struct {
	key   string
	entry store.Entry
	place int
}

// New returns an empty store.
func New(o Options) *Store {
	return &Store{maxEntries: o.MaxEntries, now: o.Now, born: o.Now(), items: map[string]*item{}}
}

// sweepPerOp is how many expired records an operation removes on its way. An operation adds
// one record at most, so two are enough to catch up with any backlog, and no operation ever
// pays for a backlog alone.
const sweepPerOp = 2

// Apply implements store.Store.
func (s *Store) Apply(_ context.Context, ops []store.Op, results []store.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range ops {
		results[i] = s.apply(ops[i])
	}
}

// apply requires mu.
func (s *Store) apply(op store.Op) store.Result {
	now := s.now()
	s.sweep(now, sweepPerOp)
	var prev *store.Entry
	it := s.items[op.Key]
	if it != nil {
		prev = &it.entry
	}
	next, result := store.Transition(prev, op, now)
	switch {
	case next == prev:
	case next == nil:
		heap.Remove(&s.expiries, it.place)
		delete(s.items, op.Key)
	case it != nil:
		it.entry = *next
		heap.Fix(&s.expiries, it.place)
	case len(s.items) >= s.maxEntries:
		// The sweep above found nothing more to remove: every record is still owed.
		return store.Result{Err: fmt.Errorf("%w: %w: store.memory.maxEntries %d are in use; raise it, or shorten ttl so that they expire sooner",
			store.ErrUnavailable, store.ErrFull, s.maxEntries)}
	default:
		// The caller's key may be a part of a larger buffer.
		it = &item{key: strings.Clone(op.Key), entry: *next}
		s.items[it.key] = it
		heap.Push(&s.expiries, it)
	}
	return result
}

// sweep removes up to limit expired records. It requires mu.
func (s *Store) sweep(now time.Time, limit int) {
	for ; limit > 0 && len(s.expiries) > 0; limit-- {
		first := s.expiries[0]
		if now.Before(first.entry.ExpiresAt) {
			return
		}
		heap.Pop(&s.expiries)
		delete(s.items, first.key)
	}
}

// Health implements store.Store. The store can always be used, and is never safe;
// its history begins with the process.
func (s *Store) Health(context.Context) store.Health {
	s.mu.Lock()
	defer s.mu.Unlock()
	reason := "store.memory: a restart forgets everything; use store.redis or store.postgres to keep marks"
	if len(s.items) >= s.maxEntries {
		reason = fmt.Sprintf("%s; and it is full with %d of maxEntries %d: new messages are refused", reason, len(s.items), s.maxEntries)
	}
	return store.Health{Safety: store.Unsafe, Reason: reason, HistorySince: s.born}
}

// Close implements store.Store.
func (s *Store) Close() error {
	return nil
}

// expiryHeap orders items by when they expire.
type expiryHeap []*item

func (h expiryHeap) Len() int           { return len(h) }
func (h expiryHeap) Less(i, j int) bool { return h[i].entry.ExpiresAt.Before(h[j].entry.ExpiresAt) }

func (h expiryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

// Push implements heap.Interface.
func (h *expiryHeap) Push(x any) {
	it := x.(*item)
	it.place = len(*h)
	*h = append(*h, it)
}

// Pop implements heap.Interface.
func (h *expiryHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return last
}
