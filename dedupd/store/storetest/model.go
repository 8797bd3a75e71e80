package storetest

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

var modelChecks = []entry{
	{"random operations have the outcomes of store.Transition", func(s *session) {
		for seed := range uint64(24) {
			newModel(s, seed).compare(60)
		}
	}},
}

// model is store.Transition over a map and a clock of its own, beside the store that is checked.
type model struct {
	*session
	seed    uint64
	rand    *rand.Rand
	entries map[string]*store.Entry
	now     time.Time

	// seen is what the store called first seen, by what the model did. The clocks differ, but
	// what is one moment to the model is one moment to the store.
	seen map[time.Time]time.Time
}

func newModel(s *session, seed uint64) *model {
	return &model{
		session: s, seed: seed,
		rand:    rand.New(rand.NewPCG(seed, 1)),
		entries: map[string]*store.Entry{},
		now:     time.UnixMilli(1_000_000).UTC(),
		seen:    map[time.Time]time.Time{},
	}
}

// compare applies random batches to both.
func (m *model) compare(steps int) {
	for step := 0; step < steps && m.err == nil; step++ {
		n := 1
		if m.rand.IntN(3) == 0 {
			n += m.rand.IntN(8)
		}
		ops := make([]store.Op, n)
		for i := range ops {
			ops[i] = m.random(n == 1)
		}
		got := m.apply(ops...)
		for i, op := range ops {
			next, want := store.Transition(m.entries[op.Key], op, m.now)
			m.entries[op.Key] = next
			if m.Advance == nil {
				// The store's clock has moved on by itself.
				m.now = m.now.Add(time.Millisecond)
			}
			if err := m.differ(got[i], want); err != nil {
				m.failf("seed %d, step %d, operation %d of %d (%s): %w", m.seed, step, i, n, describe(op), err)
			}
		}
		m.pass(ops[n-1])
	}
}

// random is an operation on one of few keys by one of few attempts, with a token that is
// right more often than not.
func (m *model) random(alone bool) store.Op {
	key := fmt.Sprintf("%d:%d", m.seed, m.rand.IntN(3))
	attempt := string(rune('a' + m.rand.IntN(3)))
	verb := store.Verb(1 + m.rand.IntN(int(store.Forget)))
	op := m.settle(verb, key, attempt, uint64(m.rand.IntN(4)))
	if e := m.entries[op.Key]; e != nil && m.rand.IntN(4) > 0 {
		op.Token.Fence = e.Record.Fence
		if m.rand.IntN(2) == 0 {
			op.Token.Owner = e.Record.Owner
		}
	}
	op.Lease = lease * time.Duration(1+m.rand.IntN(2))
	op.TTL = 2 * ttl * time.Duration(1+m.rand.IntN(2))
	if m.MarksOnly && op.Verb == store.Claim {
		op.Verb = store.Mark
	}
	if m.rand.IntN(3) == 0 && !m.MarksOnly {
		op.Digest = record.DigestOf([]byte{byte(m.rand.IntN(2))})
	}
	// What is short runs out before the next step, and so only the last operation of a step may be.
	if alone && m.rand.IntN(3) == 0 {
		op.Lease = 2 * time.Millisecond
	}
	if alone && m.rand.IntN(8) == 0 {
		op.TTL, op.Lease = 10*time.Millisecond, 2*time.Millisecond
	}
	return op
}

// pass lets time go by: at random where the clock can be moved, else until what the last
// operation made short-lived is over.
func (m *model) pass(last store.Op) {
	if m.Advance != nil {
		if m.rand.IntN(2) == 0 {
			d := []time.Duration{time.Millisecond, 2 * time.Millisecond, 10 * time.Millisecond, lease, ttl}[m.rand.IntN(5)]
			m.Advance(d)
			m.now = m.now.Add(d)
		}
		return
	}
	e := m.entries[last.Key]
	if e == nil || e.ExpiresAt.Before(m.now) {
		return
	}
	key := last.Key[len(m.prefix):]
	switch {
	case e.ExpiresAt.Sub(m.now) < time.Second:
		m.expire(key, e.ExpiresAt.Sub(m.now))
		m.now = e.ExpiresAt
	case e.Record.State == record.Claimed && e.Record.Lease < time.Second:
		m.lapse(key, e.Record.Lease)
		m.now = m.now.Add(e.Record.Lease)
	}
}

// differ says how the store's result differs from the model's.
func (m *model) differ(got, want store.Result) error {
	tolerance := time.Duration(0)
	if m.Advance == nil {
		tolerance = deadline
	}
	switch {
	case got.Outcome != want.Outcome:
		return fmt.Errorf("%s, want %s\n got %+v\nwant %+v", name(got.Outcome), name(want.Outcome), got, want)
	case (got.RetryAfter - want.RetryAfter).Abs() > tolerance:
		return fmt.Errorf("retry after %s, want %s", got.RetryAfter, want.RetryAfter)
	case (got.Remaining - want.Remaining).Abs() > tolerance:
		return fmt.Errorf("remaining %s, want %s", got.Remaining, want.Remaining)
	}
	g, w := m.kept(got.Record), m.kept(want.Record)
	if first, known := m.seen[w.FirstSeen]; known && !first.Equal(g.FirstSeen) {
		return fmt.Errorf("first seen %s, want %s as before", g.FirstSeen, first)
	}
	m.seen[w.FirstSeen] = g.FirstSeen
	g.FirstSeen, w.FirstSeen = time.Time{}, time.Time{}
	if g != w {
		return fmt.Errorf("record\n got %+v\nwant %+v", g, w)
	}
	return nil
}
