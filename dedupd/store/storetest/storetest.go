// Package storetest is the conformance suite that every store passes: the guarantees of the
// design and store.Transition, as named checks against a running store.
package storetest

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Fixture is a store to be checked. It may be shared with other checks: each uses keys of its own.
type Fixture struct {
	// Store is what is checked. The fixture's maker closes it.
	Store store.Store

	// Advance moves the store's clock forward. Nil if the store runs on a clock that cannot
	// be moved: the suite then waits for short leases and expiries to pass.
	Advance func(d time.Duration)

	// Faulty returns the same store over a link of its own that fails as the seed says, and
	// that closes with the test. repeats is how often so far something went wrong that may
	// have had an operation carried out once more than it was asked for, now or later: a
	// driver that sends again what was not answered. Nil: the suite loses answers by itself,
	// above the driver, and the driver's own repeats are not put to the test.
	Faulty func(seed uint64) (s store.Store, repeats func() int)

	// Early says that an operation decides, and reckons leases and ttls, by the time at some moment
	// of its call, and not by the time at which it takes effect: a transaction cannot know
	// when it will be committed. So of two that meet, the later may have the earlier time.
	Early bool

	// Stalls says that an operation finds what was there when it began, in the server, and reckons
	// leases and ttls by the time when it ends. Nothing comes in between but time, if the
	// server is suspended meanwhile.
	Stalls bool

	// MarksOnly says that the store takes no claims and holds no digests. What is about those
	// is not checked then.
	MarksOnly bool

	// Keeps is what the store keeps of a record. Nil: all of it.
	Keeps func(record.Record) record.Record

	// Late is by how much the store may forget a record too late. It never may too early.
	Late time.Duration
}

// Run runs every check against a fixture of its own.
func Run(t *testing.T, newFixture func(t testing.TB) Fixture) {
	t.Helper()
	for _, c := range checks() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			if !c.concerns(f) {
				t.Skip("the store takes marks only")
			}
			if err := c.run(f); err != nil {
				t.Error(err)
			}
		})
	}
}

// Failures runs every check as Run does, and returns what is wrong, by the check's name: for
// controls, which show that a store that breaks a promise is found out.
func Failures(tb testing.TB, newFixture func(tb testing.TB) Fixture) map[string]error {
	tb.Helper()
	var mu sync.Mutex
	failures := map[string]error{}
	var group sync.WaitGroup
	for _, c := range checks() {
		f := newFixture(tb)
		group.Go(func() {
			if !c.concerns(f) {
				return
			}
			if err := c.run(f); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failures[c.name] = err
			}
		})
	}
	group.Wait()
	return failures
}

// check is one promise of a store, as a sentence, and the steps that find it broken.
type check struct {
	name   string
	steps  func(*session)
	claims bool // it needs claims or digests
}

// concerns says whether a check is about what the store does.
func (c check) concerns(f Fixture) bool { return !c.claims || !f.MarksOnly }

// entry is a check as the tables have it.
type entry struct {
	name  string
	steps func(*session)
}

func checks() []check {
	var all []check
	add := func(claims bool, groups ...[]entry) {
		for _, e := range slices.Concat(groups...) {
			all = append(all, check{name: e.name, steps: e.steps, claims: claims})
		}
	}
	add(false, markChecks, batchChecks, raceChecks, modelChecks, linearChecks)
	add(true, contentChecks, claimChecks, settleChecks, modeChecks, claimBatchChecks, claimRaceChecks)
	return all
}

// deadline bounds a check, so that a store that never forgets fails and does not hang.
const deadline = 60 * time.Second

// run returns the first broken expectation.
func (c check) run(f Fixture) error {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	s := &session{Fixture: f, ctx: ctx, prefix: rand.Text() + ":"}
	c.steps(s)
	return s.err
}

// session is one check at work. Its first broken expectation is kept; the steps after it do
// nothing, so that checks read as straight lines.
type session struct {
	Fixture
	ctx    context.Context
	prefix string
	err    error
}

// Durations that no check outlives, so that they mean the same on every clock, and those that
// checks wait for.
const (
	ttl   = time.Hour
	lease = 10 * time.Minute

	shortTTL   = 200 * time.Millisecond
	shortLease = 100 * time.Millisecond
)

// slack is by how much a clock that counts whole milliseconds may differ from ours.
const slack = 5 * time.Millisecond

func (s *session) failf(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf(format, args...)
	}
}

func (s *session) op(verb store.Verb, key, attempt string) store.Op {
	op := store.Op{Verb: verb, Key: s.prefix + key, Token: record.Token{Owner: record.OwnerOf(attempt)}, TTL: ttl}
	if verb == store.Claim {
		op.Lease = lease
	}
	return op
}

func (s *session) mark(key, attempt string) store.Op  { return s.op(store.Mark, key, attempt) }
func (s *session) claim(key, attempt string) store.Op { return s.op(store.Claim, key, attempt) }
func (s *session) lookup(key string) store.Op         { return s.op(store.Lookup, key, "") }
func (s *session) forget(key string) store.Op         { return s.op(store.Forget, key, "") }

// settle is Complete, Release or Renew by the holder of a claim.
func (s *session) settle(verb store.Verb, key, attempt string, fence uint64) store.Op {
	op := s.op(verb, key, attempt)
	op.Token.Fence = fence
	if verb == store.Renew {
		op.Lease = lease
	}
	return op
}

func lasting(op store.Op, ttl, lease time.Duration) store.Op {
	op.TTL, op.Lease = ttl, lease
	return op
}

func of(op store.Op, content string) store.Op {
	op.Digest = record.DigestOf([]byte(content))
	return op
}

// apply applies a batch and expects that every operation has an outcome.
func (s *session) apply(ops ...store.Op) []store.Result {
	results := make([]store.Result, len(ops))
	if s.err != nil {
		return results
	}
	s.Store.Apply(s.ctx, ops, results)
	for i, r := range results {
		switch {
		case r.Err != nil:
			s.failf("operation %d of %d (%s): %w", i, len(ops), describe(ops[i]), r.Err)
		case r.Outcome == 0:
			s.failf("operation %d of %d (%s): neither outcome nor error", i, len(ops), describe(ops[i]))
		}
	}
	return results
}

// want applies one operation and expects its outcome.
func (s *session) want(op store.Op, outcome store.Outcome) store.Result {
	r := s.apply(op)[0]
	if s.err == nil && r.Outcome != outcome {
		s.failf("%s: %s, want %s (%+v)", describe(op), name(r.Outcome), name(outcome), r)
	}
	return r
}

// wantAll applies one batch and expects its outcomes.
func (s *session) wantAll(ops []store.Op, outcomes ...store.Outcome) []store.Result {
	results := s.apply(ops...)
	for i, r := range results {
		if s.err == nil && r.Outcome != outcomes[i] {
			s.failf("operation %d of %d (%s): %s, want %s (%+v)", i, len(ops), describe(ops[i]), name(r.Outcome), name(outcomes[i]), r)
		}
	}
	return results
}

func (s *session) equal(what string, got, want any) {
	if diff := cmp.Diff(want, got); diff != "" {
		s.failf("%s (-want +got):\n%s", what, diff)
	}
}

// kept is what the store keeps of a record.
func (f *Fixture) kept(r record.Record) record.Record {
	if f.Keeps == nil {
		return r
	}
	return f.Keeps(r)
}

// equalRecord compares what the store keeps of two records.
func (s *session) equalRecord(what string, got, want record.Record) {
	s.equal(what, s.kept(got), s.kept(want))
}

// between expects low < got <= high: durations that began a moment ago.
func (s *session) between(what string, got, low, high time.Duration) {
	if got <= low || got > high {
		s.failf("%s: %s, want more than %s and at most %s", what, got, low, high)
	}
}

// turns expects that an operation has the outcome before for exactly d after the moment since
// which d is counted, and the outcome after from then on. It returns the first such result.
// On a clock that cannot be moved, "not earlier than d" is what is checked.
func (s *session) turns(op store.Op, d time.Duration, before, after store.Outcome) store.Result {
	if s.Advance != nil {
		s.Advance(d - time.Millisecond)
		s.want(op, before)
		s.Advance(time.Millisecond)
		return s.want(op, after)
	}
	begun := time.Now()
	for s.err == nil {
		r := s.apply(op)[0]
		switch r.Outcome {
		case after:
			return r
		case before:
		default:
			s.failf("%s: %s, want %s and then %s", describe(op), name(r.Outcome), name(before), name(after))
		}
		s.pause(begun, d)
	}
	return store.Result{}
}

// lapse lets the lease of the claim under key run out.
func (s *session) lapse(key string, lease time.Duration) {
	s.await(s.lookup(key), lease, func(r store.Result) bool { return r.RetryAfter == 0 })
}

// expire lets the record under key be forgotten.
func (s *session) expire(key string, ttl time.Duration) {
	s.await(s.lookup(key), ttl, func(r store.Result) bool { return r.Outcome == store.Absent })
}

func (s *session) await(op store.Op, d time.Duration, done func(store.Result) bool) {
	if s.Advance != nil {
		s.Advance(d)
	}
	begun := time.Now()
	for s.err == nil {
		r := s.apply(op)[0]
		if done(r) {
			return
		}
		if s.Advance != nil {
			s.failf("%s: %s after it has passed: %+v", describe(op), d, r)
		}
		s.pause(begun, d)
	}
}

// pause waits a moment before the next look, unless what is waited for is far overdue.
func (s *session) pause(begun time.Time, d time.Duration) {
	if time.Since(begun) > d+deadline/4 {
		s.failf("%s have passed without a change", time.Since(begun))
		return
	}
	select {
	case <-time.After(slack):
	case <-s.ctx.Done():
		s.failf("the check took longer than %s", deadline)
	}
}

func name(o store.Outcome) string {
	names := [...]string{"no outcome", "Granted", "Seen", "Held", "Mismatch", "Stale", "Absent"}
	if int(o) < len(names) {
		return names[o]
	}
	return fmt.Sprintf("Outcome(%d)", o)
}

func describe(op store.Op) string {
	names := [...]string{"", "Mark", "Claim", "Complete", "Release", "Renew", "Lookup", "Forget"}
	return fmt.Sprintf("%s %q by %x", names[op.Verb], op.Key, op.Token.Owner[:4])
}
