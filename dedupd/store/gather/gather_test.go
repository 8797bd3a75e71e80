package gather_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/gather"
	"github.com/dedupd/dedup-operator/dedupd/store/memory"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
	"github.com/dedupd/dedup-operator/dedupd/store/storetest"
)

// One flight at a time, so that the suite's races and histories share them.
var one = gather.Options{MaxPending: 100_000, Flights: 1}

func TestConformanceOverMemory(t *testing.T) {
	storetest.Run(t, func(testing.TB) storetest.Fixture {
		return storetest.Fixture{Store: gather.New(memory.New(memory.Options{MaxEntries: 1_000_000, Now: time.Now}), one)}
	})
}

func TestConformanceOverRedis(t *testing.T) {
	server := redistest.Start(t)
	for _, flights := range []int{1, 3} {
		t.Run(fmt.Sprint(flights), func(t *testing.T) {
			storetest.Run(t, func(tb testing.TB) storetest.Fixture {
				tb.Helper()
				s, err := redis.New(redis.Options{
					Spec:    v1alpha1.RedisStore{Mode: v1alpha1.RedisStandalone, Addresses: []string{server.Addr}},
					Timeout: 10 * time.Second,
					Now:     time.Now,
				})
				if err != nil {
					tb.Fatal(err)
				}
				shared := gather.New(s, gather.Options{MaxPending: 100_000, Flights: flights})
				tb.Cleanup(func() {
					if err := shared.Close(); err != nil {
						tb.Error(err)
					}
				})
				return storetest.Fixture{Store: shared, Stalls: true} // its Redis may be 7.0
			})
		})
	}
}

// gate is a memory store whose calls wait until they are let pass, or until their time is over.
type gate struct {
	store.Store
	pass chan struct{} // one of each call; closed: all

	mu      sync.Mutex
	flights [][]string // guarded by mu: the keys of each call, in the order in which they came
	closed  bool       // guarded by mu
}

func newGate() *gate {
	return &gate{Store: memory.New(memory.Options{MaxEntries: 1_000_000, Now: time.Now}), pass: make(chan struct{})}
}

func (g *gate) Apply(ctx context.Context, ops []store.Op, results []store.Result) {
	var keys []string
	for _, op := range ops {
		keys = append(keys, strings.Clone(op.Key))
	}
	g.mu.Lock()
	g.flights = append(g.flights, keys)
	g.mu.Unlock()
	select {
	case <-g.pass:
		g.Store.Apply(ctx, ops, results)
	case <-ctx.Done():
		for i := range results {
			results[i].Err = fmt.Errorf("%w: no answer", store.ErrUnavailable)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		panic("a flight after Close")
	}
}

func (g *gate) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	return nil
}

// sizes are the numbers of operations of the flights so far.
func (g *gate) sizes() []int {
	g.mu.Lock()
	defer g.mu.Unlock()
	var sizes []int
	for _, f := range g.flights {
		sizes = append(sizes, len(f))
	}
	return sizes
}

// caller is an Apply in a goroutine of its own.
type caller struct {
	results []store.Result
	done    chan struct{}
}

func (c *caller) err() error {
	<-c.done
	return c.results[0].Err
}

func marks(name string, n int) []store.Op {
	var ops []store.Op
	for i := range n {
		ops = append(ops, store.Op{
			Verb: store.Mark, Key: fmt.Sprintf("%s-%d", name, i), Token: record.Token{Owner: record.OwnerOf(name)}, TTL: time.Hour,
		})
	}
	return ops
}

// apply starts an Apply, and returns when it waits for something.
func apply(ctx context.Context, s store.Store, ops []store.Op) *caller {
	c := &caller{results: make([]store.Result, len(ops)), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		s.Apply(ctx, ops, c.results)
	}()
	synctest.Wait()
	return c
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func wantSizes(t *testing.T, g *gate, want ...int) {
	t.Helper()
	synctest.Wait()
	if got := g.sizes(); !slices.Equal(got, want) {
		t.Errorf("flights of %v operations, want %v", got, want)
	}
}

func TestWhatWaitsGoesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := gather.New(g, gather.Options{MaxPending: 10_000, Flights: 2})
		callers := []*caller{apply(t.Context(), s, marks("a", 1)), apply(t.Context(), s, marks("b", 1))}
		wantSizes(t, g, 1, 1)
		for i := range 10 {
			callers = append(callers, apply(t.Context(), s, marks(fmt.Sprint("waiting", i), 1)))
		}
		wantSizes(t, g, 1, 1)
		g.pass <- struct{}{}
		wantSizes(t, g, 1, 1, 10)
		close(g.pass)
		for _, c := range callers {
			if c.err() != nil || c.results[0].Outcome != store.Granted {
				t.Errorf("%+v, want Granted", c.results[0])
			}
		}
		again := apply(t.Context(), s, marks("waiting3", 1))
		wantSizes(t, g, 1, 1, 10, 1)
		if again.err() != nil || again.results[0].Outcome != store.Granted || again.results[0].Record.Owner != record.OwnerOf("waiting3") {
			t.Errorf("the mark of waiting3: %+v, want that it is its own", again.results[0])
		}
	})
}

func TestAFlightIsBoundedAndALargeCallFliesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := gather.New(g, gather.Options{MaxPending: 10_000, Flights: 1})
		var callers []*caller
		sizes := []int{1, 60, 60, 60, 60, 60, 1, 700, 1, 0, 1}
		for i, n := range sizes {
			callers = append(callers, apply(t.Context(), s, marks(fmt.Sprint(i), n)))
		}
		close(g.pass)
		wantSizes(t, g, 1, 240, 61, 700, 2)
		for i, c := range callers {
			<-c.done
			for n, r := range c.results {
				if r.Outcome != store.Granted || r.Record.Owner != record.OwnerOf(fmt.Sprint(i)) {
					t.Fatalf("call %d of %d operations, operation %d: %+v", i, sizes[i], n, r)
				}
			}
		}
	})
}

func TestALargeCallIsNotCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold, ops := make(chan struct{}), marks("large", 100)
		var seen []*store.Op
		s := gather.New(storeFunc(func(got []store.Op) {
			seen = append(seen, &got[0])
			<-hold
		}), gather.Options{MaxPending: 1000, Flights: 1})
		first, second := apply(t.Context(), s, marks("first", 1)), apply(t.Context(), s, ops)
		close(hold)
		<-first.done
		<-second.done
		if seen[1] != &ops[0] {
			t.Error("the store got a copy")
		}
	})
}

// storeFunc is a store that only applies.
type storeFunc func(ops []store.Op)

func (f storeFunc) Apply(_ context.Context, ops []store.Op, _ []store.Result) { f(ops) }
func (f storeFunc) Health(context.Context) store.Health                       { return store.Health{} }
func (f storeFunc) Close() error                                              { return nil }

func TestAnIdleStoreIsCalledWithoutAnAllocation(t *testing.T) {
	s := gather.New(storeFunc(func([]store.Op) {}), gather.Options{MaxPending: 10, Flights: 1})
	ops, results := marks("a", 1), make([]store.Result, 1)
	if n := testing.AllocsPerRun(100, func() { s.Apply(t.Context(), ops, results) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func TestMoreThanMayWaitIsRefusedAtOnceAndHasNoEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		pending, refused := 0, 0
		s := gather.New(g, gather.Options{MaxPending: 10, Flights: 1, Observe: gather.Observer{
			Pending: func(delta int) { pending += delta },
			Refused: func(ops int) { refused += ops },
		}})
		callers := []*caller{apply(t.Context(), s, marks("a", 4)), apply(t.Context(), s, marks("b", 5)), apply(t.Context(), s, marks("c", 1))}
		begun := time.Now()
		over := apply(t.Context(), s, marks("over", 2))
		if err := over.err(); !errors.Is(err, store.ErrOverloaded) || errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "--max-pending") {
			t.Errorf("%v, want ErrOverloaded alone", err)
		}
		if over.results[1].Err == nil || time.Since(begun) != 0 {
			t.Errorf("%+v after %s, want an error at once", over.results[1], time.Since(begun))
		}
		if pending != 10 || refused != 2 {
			t.Errorf("%d pending, %d refused; want 10 and 2", pending, refused)
		}
		close(g.pass)
		for _, c := range callers {
			if c.err() != nil {
				t.Error(c.err())
			}
		}
		if pending != 0 {
			t.Errorf("%d pending when everything is answered", pending)
		}
		if c := apply(t.Context(), s, marks("over", 2)); c.err() != nil || c.results[0].Outcome != store.Granted {
			t.Errorf("what was refused is not new: %+v", c.results[0])
		}
		if c := apply(t.Context(), s, marks("huge", 11)); !errors.Is(c.err(), store.ErrOverloaded) {
			t.Errorf("a call over the bound: %v", c.err())
		}
	})
}

func TestWhoWaitsInLineIsAnsweredInItsTimeAndNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		pending := 0
		s := gather.New(g, gather.Options{MaxPending: 100, Flights: 1, Observe: gather.Observer{Pending: func(d int) { pending += d }}})
		first := apply(within(t, time.Hour), s, marks("first", 1))
		begun := time.Now()
		short, long := apply(within(t, time.Second), s, marks("short", 1)), apply(within(t, time.Minute), s, marks("long", 2))
		if err := short.err(); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "no effect") || time.Since(begun) != time.Second {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
		if pending != 3 {
			t.Errorf("%d pending, want the first and the two that wait", pending)
		}
		close(g.pass)
		if first.err() != nil || long.err() != nil {
			t.Errorf("%v, %v", first.err(), long.err())
		}
		wantSizes(t, g, 1, 2)
	})
}

// A flight lasts as long as its latest caller has time; the others leave it, and whatever they
// then do with their memory does not reach the store.
func TestWhoIsInCompanyLeavesInItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		pending := 0
		s := gather.New(g, gather.Options{MaxPending: 100, Flights: 1, Observe: gather.Observer{Pending: func(d int) { pending += d }}})
		apply(within(t, time.Hour), s, marks("first", 1))
		key := []byte("short-key")
		ops := marks("short", 1)
		ops[0].Key = unsafe.String(&key[0], len(key))
		short, long := apply(within(t, time.Second), s, ops), apply(within(t, time.Minute), s, marks("long", 1))
		g.pass <- struct{}{}
		wantSizes(t, g, 1, 2)
		begun := time.Now()
		if err := short.err(); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "may or may not") || time.Since(begun) != time.Second {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
		for i := range key {
			key[i] = '!'
		}
		if pending != 2 {
			t.Errorf("%d pending, want both of the flight: it has them still", pending)
		}
		g.pass <- struct{}{}
		if long.err() != nil || short.results[0].Outcome != 0 {
			t.Errorf("%v; and who left was given %+v", long.err(), short.results[0])
		}
		close(g.pass)
		if r := apply(t.Context(), s, []store.Op{{Verb: store.Lookup, Key: "short-key"}}); r.err() != nil || r.results[0].Outcome != store.Granted {
			t.Errorf("%+v, want the mark of the one that left", r.results[0])
		}
	})
}

// Those who leave use their memory for other messages: what the store gets must be what was asked for.
func TestWhoLeavesTakesItsMemoryAlong(t *testing.T) {
	var wrong, left atomic.Int64
	s := gather.New(storeFunc(func(ops []store.Op) {
		for i := range ops {
			if ops[i].Key == "another's" {
				wrong.Add(1)
			}
		}
		time.Sleep(200 * time.Microsecond)
	}), gather.Options{MaxPending: 100_000, Flights: 2})
	var callers sync.WaitGroup
	for n := range 100 {
		callers.Go(func() {
			for i := range 100 {
				ops, results := marks(fmt.Sprint(n, "-", i), 8), make([]store.Result, 8)
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(1500*time.Microsecond))
				s.Apply(ctx, ops, results)
				cancel()
				if results[0].Err != nil {
					left.Add(1)
				}
				for i := range ops {
					ops[i].Key = "another's"
				}
			}
		})
	}
	callers.Wait()
	if wrong.Load() > 0 || left.Load() == 0 {
		t.Errorf("%d calls were left; %d operations that the store got were others", left.Load(), wrong.Load())
	}
}

func TestWhoFliesAloneHasItsOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := gather.New(g, gather.Options{MaxPending: 100, Flights: 1})
		apply(within(t, time.Second), s, marks("first", 1))
		second := apply(within(t, 2*time.Second), s, marks("second", 1))
		begun := time.Now()
		if err := second.err(); !errors.Is(err, store.ErrUnavailable) || time.Since(begun) != 2*time.Second {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
		wantSizes(t, g, 1, 1)
	})
}

func TestCloseWaitsForFlightsThatWereLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := gather.New(g, gather.Options{MaxPending: 100, Flights: 1})
		first := apply(within(t, time.Hour), s, marks("first", 1))
		ctx, leave := context.WithCancel(t.Context())
		a, b := apply(ctx, s, marks("a", 1)), apply(ctx, s, marks("b", 1))
		g.pass <- struct{}{}
		<-first.done
		wantSizes(t, g, 1, 2)
		leave()
		if a.err() == nil || b.err() == nil {
			t.Error("answered, although nothing has passed")
		}
		closed := make(chan error)
		go func() { closed <- s.Close() }()
		synctest.Wait()
		select {
		case err := <-closed:
			t.Fatalf("closed over a flight: %v", err) // which would panic
		default:
		}
		g.pass <- struct{}{}
		if err := <-closed; err != nil {
			t.Error(err)
		}
	})
}

// A bug of the store is its callers' to report, in whoever's goroutine it shows, and costs no flight.
func TestAPanicReachesEveryCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold, broken := make(chan struct{}), true
		s := gather.New(storeFunc(func([]store.Op) {
			<-hold
			if broken {
				panic("a bug")
			}
		}), gather.Options{MaxPending: 100, Flights: 1})
		panics := make(chan any, 3)
		for range 3 {
			go func() {
				defer func() { panics <- recover() }()
				s.Apply(t.Context(), marks("a", 1), make([]store.Result, 1))
			}()
			synctest.Wait()
		}
		close(hold)
		for range 3 {
			if cause := <-panics; !strings.Contains(fmt.Sprint(cause), "a bug") {
				t.Errorf("panicked with %v", cause)
			}
		}
		broken = false
		<-apply(t.Context(), s, marks("a", 1)).done
		<-apply(t.Context(), s, marks("b", 1)).done
	})
}

// Many callers at once, each with keys of its own, some of which leave: whoever has an answer
// has its own.
func TestAnswersReachTheirCallers(t *testing.T) {
	s := gather.New(memory.New(memory.Options{MaxEntries: 1_000_000, Now: time.Now}), gather.Options{MaxPending: 1000, Flights: 2})
	var group sync.WaitGroup
	for c := range 64 {
		group.Go(func() {
			for i := range 200 {
				name := fmt.Sprintf("%d-%d", c, i)
				ops := marks(name, 1+(c+i)%5)
				results := make([]store.Result, len(ops))
				ctx, cancel := context.WithCancel(t.Context())
				if i%7 == 0 {
					go cancel()
				}
				s.Apply(ctx, ops, results)
				cancel()
				for _, r := range results {
					if r.Err != nil && i%7 == 0 && errors.Is(r.Err, store.ErrUnavailable) {
						continue
					}
					if r.Err != nil || r.Outcome != store.Granted || r.Record.Owner != record.OwnerOf(name) {
						t.Errorf("%s: %+v", name, r)
						return
					}
				}
			}
		})
	}
	group.Wait()
}
