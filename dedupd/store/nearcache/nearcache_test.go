package nearcache_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/memory"
	"github.com/dedupd/dedup-operator/dedupd/store/nearcache"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
	"github.com/dedupd/dedup-operator/dedupd/store/storetest"
)

const maxAge = 10 * time.Second

// Trusted for an hour: whatever the suite does, only what this process knows makes the answers right.
func TestConformanceOverMemory(t *testing.T) {
	storetest.Run(t, func(testing.TB) storetest.Fixture {
		c := storetest.NewClock()
		return storetest.Fixture{
			Store: nearcache.New(memory.New(memory.Options{MaxEntries: 1_000_000, Now: c.Now}),
				nearcache.Options{MaxEntries: 1000, MaxAge: time.Hour, Now: c.Now}),
			Advance: c.Advance,
		}
	})
}

func TestConformanceOverRedis(t *testing.T) {
	server := redistest.Start(t)
	storetest.Run(t, func(tb testing.TB) storetest.Fixture {
		tb.Helper()
		return storetest.Fixture{
			Store:  nearcache.New(newRedis(tb, server), nearcache.Options{MaxEntries: 1000, MaxAge: time.Hour, Now: time.Now}),
			Stalls: true,
		}
	})
}

// hashed gives a store keys that end in IDs, as keyFormat Dense wants them.
type hashed struct{ store.Store }

func (h hashed) Apply(ctx context.Context, ops []store.Op, results []store.Result) {
	own := slices.Clone(ops)
	for i := range own {
		id := key.IDOf(own[i].Key)
		own[i].Key = "dedup:shop:orders:" + string(id[:])
	}
	h.Store.Apply(ctx, own, results)
}

func TestConformanceOverDenseRedis(t *testing.T) {
	server := redistest.Start(t)
	storetest.Run(t, func(tb testing.TB) storetest.Fixture {
		tb.Helper()
		return storetest.Fixture{
			Store: nearcache.New(hashed{newRedis(tb, server, func(spec *v1alpha1.RedisStore) {
				spec.KeyFormat, spec.Dense = v1alpha1.KeyDense, &v1alpha1.RedisDense{ExpectedMessages: 1000}
			})}, nearcache.Options{MaxEntries: 1000, MaxAge: time.Hour, Now: time.Now}),
			MarksOnly: true,
			Late:      250 * time.Millisecond,
			Keeps: func(r record.Record) record.Record {
				kept := record.Record{State: r.State}
				copy(kept.Owner[:8], r.Owner[:])
				return kept
			},
		}
	})
}

// Two replicas: the attempt's mark is made through the other one, and its answer is lost.
func TestADenseMarkThatWasSeenIsStillTheAttemptsOwn(t *testing.T) {
	server := redistest.Start(t)
	dense := func(spec *v1alpha1.RedisStore) { spec.KeyFormat = v1alpha1.KeyDense }
	other := hashed{newRedis(t, server, dense)}
	s := nearcache.New(hashed{newRedis(t, server, dense)}, nearcache.Options{MaxEntries: 100, MaxAge: time.Hour, Now: time.Now})
	for _, step := range []struct {
		store   store.Store
		attempt string
		want    store.Outcome
	}{{other, "a", store.Granted}, {s, "b", store.Seen}, {s, "a", store.Granted}, {s, "b", store.Seen}} {
		if r := apply(step.store, op(store.Mark, "k", step.attempt))[0]; r.Err != nil || r.Outcome != step.want {
			t.Errorf("%s: %+v, want outcome %d", step.attempt, r, step.want)
		}
	}
}

func newRedis(tb testing.TB, server *redistest.Server, edits ...func(*v1alpha1.RedisStore)) store.Store {
	tb.Helper()
	spec := v1alpha1.RedisStore{Mode: v1alpha1.RedisStandalone, Addresses: []string{server.Addr}}
	for _, edit := range edits {
		edit(&spec)
	}
	s, err := redis.New(redis.Options{
		Spec:    spec,
		Timeout: 10 * time.Second,
		Now:     time.Now,
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

// naive is a cache as it is easily written.
type naive struct {
	store.Store
	claims bool // remembers what is held as well
	forget bool // notices a Forget

	mu   sync.Mutex
	seen map[string]store.Result // guarded by mu
}

func (n *naive) Apply(ctx context.Context, ops []store.Op, results []store.Result) {
	for i, op := range ops {
		n.mu.Lock()
		known, ok := n.seen[op.Key]
		n.mu.Unlock()
		if ok && (op.Verb == store.Mark || op.Verb == store.Claim) && op.Token.Owner != known.Record.Owner {
			results[i] = known
			continue
		}
		n.Store.Apply(ctx, ops[i:i+1], results[i:i+1])
		n.mu.Lock()
		switch r := results[i]; {
		case r.Outcome == store.Seen, n.claims && r.Outcome == store.Held:
			n.seen[op.Key] = r
		case op.Verb == store.Forget && n.forget:
			delete(n.seen, op.Key)
		}
		n.mu.Unlock()
	}
}

// The suite that the cache passes is one that others do not pass.
func TestTheSuiteFindsNaiveCaches(t *testing.T) {
	for name, test := range map[string]struct {
		claims, forget bool
		foundBy        string
	}{
		"one that remembers claims":     {true, true, "a claim is taken over when its lease has run out and not before, with a higher fence"},
		"one that ignores a Forget":     {false, false, "operations on one claimed key take effect in their order, whatever they meet"},
		"one that knows of no contents": {false, true, "the same message with other content is a mismatch where both contents are known"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			failures := storetest.Failures(t, func(testing.TB) storetest.Fixture {
				c := storetest.NewClock()
				return storetest.Fixture{
					Store: &naive{
						Store: memory.New(memory.Options{MaxEntries: 1_000_000, Now: c.Now}), claims: test.claims, forget: test.forget,
						seen: map[string]store.Result{},
					},
					Advance: c.Advance,
				}
			})
			if failures[test.foundBy] == nil {
				t.Errorf("found by %q", slices.Collect(maps.Keys(failures)))
			}
		})
	}
}

// bench is a cache over a memory store that counts what it is asked, and can be held.
type bench struct {
	*nearcache.Store
	clock *storetest.Clock
	under *counted
	hits  int
}

type counted struct {
	store.Store
	mu   sync.Mutex
	ops  int                               // guarded by mu
	hold func(ops []store.Op) <-chan error // guarded by mu: nil, or what a call that is decided waits for
}

func (c *counted) Apply(ctx context.Context, ops []store.Op, results []store.Result) {
	c.Store.Apply(ctx, ops, results)
	c.mu.Lock()
	c.ops += len(ops)
	hold := c.hold
	c.mu.Unlock()
	if hold == nil {
		return
	}
	if err := <-hold(ops); err != nil {
		for i := range results {
			results[i] = store.Result{Err: err}
		}
	}
}

func (c *counted) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ops
}

func (c *counted) holding(hold func(ops []store.Op) <-chan error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold = hold
}

func newBench(maxEntries int) *bench {
	c := storetest.NewClock()
	b := &bench{clock: c, under: &counted{Store: memory.New(memory.Options{MaxEntries: 1_000_000, Now: c.Now})}}
	b.Store = nearcache.New(b.under, nearcache.Options{MaxEntries: maxEntries, MaxAge: maxAge, Now: c.Now, Hits: func(n int) { b.hits += n }})
	return b
}

func op(verb store.Verb, key, attempt string) store.Op {
	o := store.Op{Verb: verb, Key: key, Token: record.Token{Owner: record.OwnerOf(attempt)}, TTL: time.Hour}
	if verb == store.Claim || verb == store.Renew {
		o.Lease = time.Minute
	}
	return o
}

func lasting(o store.Op, ttl time.Duration) store.Op {
	o.TTL = ttl
	return o
}

func of(o store.Op, content string) store.Op {
	o.Digest = record.DigestOf([]byte(content))
	return o
}

func held(o store.Op, fence uint64) store.Op {
	o.Token.Fence = fence
	return o
}

func apply(s store.Store, ops ...store.Op) []store.Result {
	results := make([]store.Result, len(ops))
	s.Apply(context.Background(), ops, results)
	return results
}

// want expects an outcome, and whether the store is asked for it.
func (b *bench) want(t *testing.T, o store.Op, outcome store.Outcome, asked bool) store.Result {
	t.Helper()
	before := b.under.count()
	r := apply(b, o)[0]
	if r.Err != nil || r.Outcome != outcome {
		t.Errorf("verb %d on %s: %+v, want outcome %d", o.Verb, o.Key, r, outcome)
	}
	if got := b.under.count() > before; got != asked {
		t.Errorf("verb %d on %s: the store was asked: %v, want %v", o.Verb, o.Key, got, asked)
	}
	return r
}

func TestARepeatOfWhatIsFinalIsAnsweredFromMemory(t *testing.T) {
	b := newBench(100)
	first := b.want(t, of(op(store.Mark, "m", "a"), "x"), store.Granted, true)
	again := b.want(t, of(op(store.Mark, "m", "b"), "x"), store.Seen, false)
	if again.Record != first.Record {
		t.Errorf("%+v, want the record of the mark", again.Record)
	}
	b.want(t, of(op(store.Mark, "m", "b"), "y"), store.Mismatch, false)
	b.want(t, op(store.Mark, "m", "b"), store.Seen, false)
	b.want(t, op(store.Claim, "m", "b"), store.Seen, false)

	b.want(t, op(store.Claim, "c", "a"), store.Granted, true)
	b.want(t, held(op(store.Complete, "c", "a"), 1), store.Granted, true)
	b.want(t, op(store.Claim, "c", "b"), store.Seen, false)
	b.want(t, op(store.Claim, "c", "a"), store.Seen, false) // completed is completed

	// Learnt from a repeat, a look-up, or a refusal of what another process has written.
	for i, ask := range []store.Op{op(store.Mark, "", "b"), op(store.Lookup, "", ""), held(op(store.Complete, "", "b"), 1)} {
		ask.Key = fmt.Sprint("elsewhere", i)
		apply(b.under.Store, op(store.Mark, ask.Key, "a"))
		apply(b, ask)
		b.want(t, op(store.Mark, ask.Key, "c"), store.Seen, false)
	}
	if b.hits != 9 {
		t.Errorf("%d hits counted, want 9", b.hits)
	}
}

func TestWhatIsNotFinalIsAlwaysAsked(t *testing.T) {
	b := newBench(100)
	b.want(t, op(store.Claim, "k", "a"), store.Granted, true)
	for range 2 {
		b.want(t, op(store.Claim, "k", "b"), store.Held, true)
		b.want(t, op(store.Mark, "k", "b"), store.Held, true)
	}
	b.want(t, held(op(store.Release, "k", "a"), 1), store.Granted, true)
	b.want(t, op(store.Claim, "k", "b"), store.Granted, true)
	for range 2 {
		b.want(t, op(store.Lookup, "nothing", ""), store.Absent, true)
	}
}

func TestAnAttemptsOwnMarkIsAskedFor(t *testing.T) {
	b := newBench(100)
	b.want(t, op(store.Mark, "k", "a"), store.Granted, true)
	b.want(t, op(store.Mark, "k", "a"), store.Granted, true)
	b.want(t, op(store.Mark, "k", "b"), store.Seen, false)
	// The policy's mode has changed, and the attempt claims what it had marked.
	b.want(t, op(store.Claim, "k", "a"), store.Granted, true)
	b.want(t, op(store.Claim, "k", "b"), store.Held, true)
	// The same in one batch.
	b.want(t, op(store.Mark, "batch", "a"), store.Granted, true)
	r := apply(b, op(store.Mark, "batch", "b"), op(store.Claim, "batch", "a"), op(store.Claim, "batch", "b"))
	if r[0].Outcome != store.Seen || r[1].Outcome != store.Granted || r[2].Outcome != store.Held {
		t.Errorf("%+v, want Seen, Granted, Held", r)
	}
}

func TestABatchIsAskedForInPart(t *testing.T) {
	b := newBench(100)
	apply(b, op(store.Mark, "0", "a"), op(store.Mark, "2", "a"))
	before := b.under.count()
	for i, r := range apply(b, op(store.Mark, "0", "b"), op(store.Mark, "1", "b"), op(store.Mark, "2", "b"), op(store.Mark, "3", "b")) {
		want := []store.Outcome{store.Seen, store.Granted}[i%2]
		if r.Outcome != want || want == store.Granted && r.Record.Owner != record.OwnerOf("b") {
			t.Errorf("operation %d: %+v, want outcome %d", i, r, want)
		}
	}
	if n := b.under.count() - before; n != 2 {
		t.Errorf("the store was asked for %d operations, want 2", n)
	}
}

func TestAForgetThroughThisProcessIsNoticedAtOnce(t *testing.T) {
	b := newBench(100)
	b.want(t, op(store.Mark, "k", "a"), store.Granted, true)
	b.want(t, op(store.Mark, "k", "b"), store.Seen, false)
	b.want(t, op(store.Forget, "k", ""), store.Granted, true)
	b.want(t, op(store.Mark, "k", "b"), store.Granted, true)
	r := apply(b, op(store.Forget, "k", ""), op(store.Mark, "k", "c"))
	if r[1].Outcome != store.Granted {
		t.Errorf("%+v, want that the mark after the Forget is granted", r[1])
	}
}

func TestWhatHappensElsewhereIsNoticedAfterMaxAge(t *testing.T) {
	b := newBench(100)
	b.want(t, op(store.Mark, "k", "a"), store.Granted, true)
	apply(b.under.Store, op(store.Forget, "k", ""))
	b.clock.Advance(maxAge - time.Millisecond)
	b.want(t, op(store.Mark, "k", "b"), store.Seen, false)
	b.clock.Advance(time.Millisecond)
	b.want(t, op(store.Mark, "k", "b"), store.Granted, true)
}

func TestATTLEndsToTheMillisecond(t *testing.T) {
	b := newBench(100)
	b.want(t, lasting(op(store.Mark, "k", "a"), 3*time.Second), store.Granted, true)
	b.clock.Advance(2 * time.Second)
	b.want(t, lasting(op(store.Mark, "k", "a"), 3*time.Second), store.Granted, true) // which lengthens nothing
	b.clock.Advance(time.Second - time.Millisecond)
	b.want(t, op(store.Mark, "k", "b"), store.Seen, false)
	b.clock.Advance(time.Millisecond)
	b.want(t, op(store.Mark, "k", "b"), store.Granted, true)

	// What another process has written, by when it was first seen.
	apply(b.under.Store, lasting(op(store.Mark, "seen", "a"), 3*time.Second))
	b.clock.Advance(2 * time.Second)
	b.want(t, lasting(op(store.Mark, "seen", "b"), 3*time.Second), store.Seen, true)
	b.clock.Advance(time.Second - time.Millisecond)
	b.want(t, op(store.Mark, "seen", "b"), store.Seen, false)
	b.clock.Advance(time.Millisecond)
	b.want(t, op(store.Mark, "seen", "b"), store.Granted, true)

	// Or as soon as somebody has looked it up.
	apply(b.under.Store, lasting(op(store.Mark, "theirs", "a"), 3*time.Second))
	b.clock.Advance(time.Second)
	b.want(t, op(store.Lookup, "theirs", ""), store.Granted, true)
	b.clock.Advance(2*time.Second - time.Millisecond)
	b.want(t, op(store.Mark, "theirs", "b"), store.Seen, false)
	b.clock.Advance(time.Millisecond)
	b.want(t, op(store.Mark, "theirs", "b"), store.Granted, true)
}

// An answer that was on its way while a Forget came and went is of before it. Whatever it was
// an answer to, it is told to who asked, and to nobody else.
func TestAnAnswerThatAForgetHasOvertakenIsNotRemembered(t *testing.T) {
	for name, first := range map[string]store.Op{
		"a repeat":     op(store.Mark, "marked", "b"),
		"a mark":       op(store.Mark, "new", "b"),
		"a completion": held(op(store.Complete, "claimed", "b"), 1),
		"a look-up":    op(store.Lookup, "marked", ""),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(100)
			apply(b.under.Store, op(store.Mark, "marked", "a"), op(store.Claim, "claimed", "b"))
			decided, release := make(chan struct{}), make(chan error)
			b.under.holding(func(ops []store.Op) <-chan error {
				if ops[0].Verb != first.Verb {
					done := make(chan error, 1)
					done <- nil
					return done
				}
				close(decided)
				return release
			})
			answered := make(chan store.Result)
			go func() { answered <- apply(b, first)[0] }()
			<-decided
			b.want(t, op(store.Forget, first.Key, ""), store.Granted, true)
			release <- nil
			if r := <-answered; r.Err != nil || r.Record.State == 0 {
				t.Errorf("the answer that was on its way: %+v", r)
			}
			b.under.holding(nil)
			b.want(t, op(store.Mark, first.Key, "c"), store.Granted, true)
		})
	}
}

// A completion, a Forget and a mark are done, and none of their answers is there, when somebody is
// shown the mark. From then on nobody may be shown the completion, whichever answer comes first.
func TestAnAnswerThatOthersHaveOvertakenIsNotRemembered(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			b := newBench(100)
			apply(b.under.Store, op(store.Claim, "k", "a"))
			var releases, answered []chan error
			for _, o := range []store.Op{held(op(store.Complete, "k", "a"), 1), op(store.Forget, "k", ""), op(store.Mark, "k", "b")} {
				decided, release, answer := make(chan struct{}), make(chan error), make(chan error, 1)
				b.under.holding(func([]store.Op) <-chan error { close(decided); return release })
				go func() { answer <- apply(b, o)[0].Err }()
				<-decided
				releases, answered = append(releases, release), append(answered, answer)
			}
			b.under.holding(nil)
			b.want(t, op(store.Lookup, "k", ""), store.Granted, true)
			show := func() {
				t.Helper()
				if r := apply(b, op(store.Mark, "k", "c"))[0]; r.Outcome != store.Seen || r.Record.Owner != record.OwnerOf("b") {
					t.Errorf("%+v, want the mark of b", r)
				}
			}
			show()
			for _, n := range order {
				releases[n] <- nil
				if err := <-answered[n]; err != nil {
					t.Error(err)
				}
				show()
			}
		})
	}
}

func TestAForgetOfUnknownOutcomeEndsTheTrust(t *testing.T) {
	b := newBench(100)
	b.want(t, op(store.Mark, "k", "a"), store.Granted, true)
	b.under.holding(func([]store.Op) <-chan error {
		lost := make(chan error, 1)
		lost <- store.ErrUnavailable
		return lost
	})
	if r := apply(b, op(store.Forget, "k", ""))[0]; !errors.Is(r.Err, store.ErrUnavailable) {
		t.Errorf("%+v, want an error", r)
	}
	// Known repeats are answered without the store; this one is known no longer.
	if r := apply(b, op(store.Mark, "k", "b"))[0]; !errors.Is(r.Err, store.ErrUnavailable) {
		t.Errorf("%+v, want an error", r)
	}
	b.under.holding(nil)
	b.want(t, op(store.Mark, "k", "c"), store.Seen, true)
}

func TestEntriesAreBounded(t *testing.T) {
	b := newBench(100)
	for i := range 1000 {
		b.want(t, op(store.Mark, fmt.Sprint(i), "a"), store.Granted, true)
	}
	for i := range 1000 {
		b.want(t, op(store.Forget, fmt.Sprint("never", i), ""), store.Absent, true)
	}
	before := b.hits
	for i := range 1000 {
		apply(b, op(store.Mark, fmt.Sprint(999-i), "b"))
	}
	if n := b.hits - before; n < 50 || n > 100 {
		t.Errorf("%d hits of 1000 after 1000 marks, want about the 100 that may be remembered", n)
	}
}

// The point of it all: a repeat costs the server nothing.
func TestAHitSendsNoCommand(t *testing.T) {
	server := redistest.Start(t)
	s := nearcache.New(newRedis(t, server), nearcache.Options{MaxEntries: 100, MaxAge: time.Minute, Now: time.Now})
	var ops []store.Op
	for i := range 50 {
		ops = append(ops, op(store.Mark, fmt.Sprint(i), "a"))
	}
	apply(s, ops...)
	for i := range ops {
		ops[i].Token.Owner = record.OwnerOf("b")
	}
	repeats := func(rounds int) {
		t.Helper()
		for range rounds {
			for i, r := range apply(s, ops...) {
				if r.Outcome != store.Seen {
					t.Fatalf("repeat %d: %+v", i, r)
				}
			}
		}
	}
	// Of two keys of a batch that share a version only one mark is remembered, and the first repeat
	// of the other asks: by chance that is one pair in a dozen runs, and never many.
	repeats(1)
	before := server.Calls("set")
	repeats(100)
	if n := server.Calls("set") - before; n != 0 || before < 50 || before > 55 {
		t.Errorf("%d commands for 50 marks and their first repeats, and %d for 5000 repeats more", before, n)
	}
}

// BenchmarkRepeats is repeats in batches over a real Redis, with and without the cache, per message.
func BenchmarkRepeats(b *testing.B) {
	server := redistest.Start(b)
	under := newRedis(b, server)
	for name, s := range map[string]store.Store{
		"with":    nearcache.New(under, nearcache.Options{MaxEntries: 10_000, MaxAge: time.Hour, Now: time.Now}),
		"without": under,
	} {
		for _, n := range []int{1, 256} {
			b.Run(fmt.Sprintf("%s, batch of %d", name, n), func(b *testing.B) {
				ops, results := make([]store.Op, n), make([]store.Result, n)
				for i := range ops {
					ops[i] = op(store.Mark, fmt.Sprintf("dedup:shop:orders:billing:%d", i), "a")
				}
				s.Apply(b.Context(), ops, results)
				for i := range ops {
					ops[i].Token.Owner = record.OwnerOf("b")
				}
				b.ReportAllocs()
				for b.Loop() {
					s.Apply(b.Context(), ops, results)
				}
				if results[n-1].Outcome != store.Seen {
					b.Fatalf("%+v", results[n-1])
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/message")
			})
		}
	}
}
