// Package nearcache answers repeats from the process's memory, without a command to the store.
// It keeps what is final only: a mark, a completion. What another holds may change hands at
// any time, and is always asked for.
//
// What is remembered here is what some answer of the store said. It is trusted until the record
// expires, as far as that is known, and never longer than MaxAge after it was learnt. So what
// happens behind this process's back is noticed after MaxAge at most: a Forget or a flush
// elsewhere, and the end of a ttl where all that is known of it is when the message was first
// seen, by a clock that differs from this one. What goes through this process is noticed at once:
//
//   - After an operation that found or made something else than what is remembered, that is
//     gone, or is the new record, before the operation returns. While none has returned, answers of
//     before and of after are both right: nobody can tell the order of operations that overlap.
//   - An answer that was on its way meanwhile may be older than what is known by now, or newer:
//     that cannot be told either, so it must not come to be remembered. So each key has a version
//     (shared with a few others), which is read before an operation is sent and counted up by
//     each answer. An answer is remembered only if it is the first since it was asked for.
package nearcache

import (
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Options are the settings of a Store.
type Options struct {
	// MaxEntries is how many records are remembered at most, about 300 bytes each. At least one.
	MaxEntries int

	// MaxAge is how long a record is trusted after it was learnt. Positive.
	MaxAge time.Duration

	// Now is this process's clock. It should be monotonic.
	Now func() time.Time

	// Hits is called with how many operations of a call were answered from memory, if any.
	// Optional.
	Hits func(n int)
}

// versions is how many versions there are. Two keys that share one only cost each other a
// lookup now and then.
const versions = 1 << 16

// Store answers repeats from memory and everything else from the store beneath it.
type Store struct {
	beneath  store.Store
	options  Options
	seed     maphash.Seed
	shards   []shard
	versions [versions]atomic.Uint32
	scratch  sync.Pool // of *misses
}

var _ store.Store = (*Store)(nil)

// New returns a store over beneath, which it closes when it is closed.
func New(beneath store.Store, o Options) *Store {
	if o.Hits == nil {
		o.Hits = func(int) {}
	}
	s := &Store{beneath: beneath, options: o, seed: maphash.MakeSeed()}
	s.scratch.New = func() any { return &misses{} }
	s.shards = make([]shard, min(max(o.MaxEntries/minShard, 1), maxShards))
	for i := range s.shards {
		// The first few take the remainder.
		limit := o.MaxEntries / len(s.shards)
		if i < o.MaxEntries%len(s.shards) {
			limit++
		}
		s.shards[i].init(limit)
	}
	return s
}

// misses are the operations of a call that the store is asked about.
type misses struct {
	asked   []asked
	ops     []store.Op
	results []store.Result
}

// asked is an operation before it is sent.
type asked struct {
	index   int // its place in the call
	hash    uint64
	version uint32
}

// Apply implements store.Store.
func (s *Store) Apply(ctx context.Context, ops []store.Op, results []store.Result) {
	m := s.scratch.Get().(*misses)
	defer s.put(m)
	now := s.options.Now()
	s.look(m, now, ops, results)
	hits := len(ops) - len(m.asked)
	switch {
	case hits == 0:
		s.beneath.Apply(ctx, ops, results)
	case len(m.asked) > 0:
		for _, a := range m.asked {
			m.ops = append(m.ops, ops[a.index])
		}
		m.results = slices.Grow(m.results, len(m.ops))[:len(m.ops)]
		s.beneath.Apply(ctx, m.ops, m.results)
		for n, a := range m.asked {
			results[a.index] = m.results[n]
		}
	}
	if hits > 0 {
		s.options.Hits(hits)
	}
	for _, a := range m.asked {
		s.learn(&ops[a.index], &results[a.index], a, now)
	}
}

// look answers what it can, and lists in m what it cannot.
//
// Only a batch of Mark and Claim alone is answered from memory: those change no record that is
// remembered here but the attempt's own, and find stops trusting such a one. So operations of
// a batch on one key keep their order: whatever comes before a repeat that is answered here
// would not have changed what is answered.
func (s *Store) look(m *misses, now time.Time, ops []store.Op, results []store.Result) {
	acquires := true
	for i := range ops {
		acquires = acquires && (ops[i].Verb == store.Mark || ops[i].Verb == store.Claim)
	}
	for i := range ops {
		hash := maphash.String(s.seed, ops[i].Key)
		version := s.version(hash).Load() // before it is sent
		if acquires && s.shard(hash).find(&ops[i], &results[i], now) {
			continue
		}
		m.asked = append(m.asked, asked{index: i, hash: hash, version: version})
	}
}

// learn remembers, or forgets, by what an operation's answer says.
func (s *Store) learn(op *store.Op, r *store.Result, a asked, sent time.Time) {
	version, shard := s.version(a.hash), s.shard(a.hash)
	// Counted first, and the shard's lock taken then: what others remember in between is dropped
	// here, or replaced, and what they learn later they find not to be the first.
	answers := version.Add(1)
	if !final(r) {
		shard.drop(op.Key)
		return
	}
	e := entry{record: r.Record, until: sent.Add(s.options.MaxAge)}
	switch {
	case op.Verb == store.Lookup:
		e.expires = sent.Add(r.Remaining)
	case r.Outcome == store.Granted:
		// Not earlier than that, unless the attempt had marked the message, or completed it,
		// before: put knows, if that was here.
		e.expires = sent.Add(op.TTL)
	default:
		// It was written when the message was first seen, or later. Where clocks differ, this is
		// too early, and the store is asked, or too late, by at most MaxAge.
		e.until = earlier(e.until, r.Record.FirstSeen.Add(op.TTL))
	}
	shard.put(op.Key, e, func() bool { return answers == a.version+1 && answers == version.Load() })
}

// final says whether an answer names a record that no other attempt changes. One without an
// owner could not be told from the attempt's own.
func final(r *store.Result) bool {
	rec := &r.Record
	return r.Err == nil && (rec.State == record.Marked || rec.State == record.Completed) && rec.Owner != (record.Owner{})
}

func (s *Store) version(hash uint64) *atomic.Uint32 { return &s.versions[hash%versions] }

// shard goes by other bits of the hash than version does.
func (s *Store) shard(hash uint64) *shard { return &s.shards[(hash>>32)%uint64(len(s.shards))] }

// put makes the memory of a call ready for the next one, and forgets what it refers to.
func (s *Store) put(m *misses) {
	clear(m.ops)
	clear(m.results)
	m.asked, m.ops, m.results = m.asked[:0], m.ops[:0], m.results[:0]
	s.scratch.Put(m)
}

// Health implements store.Store.
func (s *Store) Health(ctx context.Context) store.Health { return s.beneath.Health(ctx) }

// Close implements store.Store.
func (s *Store) Close() error { return s.beneath.Close() }
