package storetest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// fake is a store over a map whose every part can be made wrong.
type fake struct {
	mu         sync.Mutex
	now        time.Time
	entries    map[string]*store.Entry
	transition func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result)
	apply      func(f *fake, ops []store.Op, results []store.Result)
}

func newFake() *fake {
	return &fake{
		now:        time.UnixMilli(1_700_000_000_000),
		entries:    map[string]*store.Entry{},
		transition: store.Transition,
		apply:      (*fake).inOrder,
	}
}

func (f *fake) Apply(_ context.Context, ops []store.Op, results []store.Result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.apply(f, ops, results)
}

func (f *fake) inOrder(ops []store.Op, results []store.Result) {
	for i, op := range ops {
		results[i] = f.one(op)
	}
}

func (f *fake) one(op store.Op) store.Result {
	next, r := f.transition(f.entries[op.Key], op, f.now)
	f.entries[strings.Clone(op.Key)] = next
	return r
}

func (f *fake) Health(context.Context) store.Health { return store.Health{} }
func (f *fake) Close() error                        { return nil }

func (f *fake) fixture() Fixture {
	return Fixture{Store: f, Advance: func(d time.Duration) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.now = f.now.Add(d)
	}}
}

func TestSuiteAcceptsAStoreThatRunsTransition(t *testing.T) {
	Run(t, func(testing.TB) Fixture { return newFake().fixture() })
}

func live(prev *store.Entry, now time.Time) bool {
	return prev != nil && now.Before(prev.ExpiresAt)
}

// TestSuiteRejectsWrongStores is the control of the suite: each of these mistakes has been
// made somewhere, and the check that is about it has to find it.
func TestSuiteRejectsWrongStores(t *testing.T) {
	tests := map[string]struct {
		breakIt func(f *fake)
		foundBy string
	}{
		"a bare set-if-absent, which does not know its own attempt": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					if live(prev, now) && (op.Verb == store.Mark || op.Verb == store.Claim) {
						return prev, store.Result{Outcome: store.Seen, Record: prev.Record}
					}
					return store.Transition(prev, op, now)
				}
			},
			"an attempt that marks again, because its answer was lost, is granted again",
		},
		"an owner that is not compared on completion": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					if op.Verb == store.Complete && live(prev, now) {
						op.Token = record.Token{Owner: prev.Record.Owner, Fence: prev.Record.Fence}
					}
					return store.Transition(prev, op, now)
				}
			},
			"the token of a holder that was taken over is stale",
		},
		"an owner that is not compared on release and renewal": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					if (op.Verb == store.Release || op.Verb == store.Renew) && live(prev, now) {
						op.Token = record.Token{Owner: prev.Record.Owner, Fence: prev.Record.Fence}
					}
					return store.Transition(prev, op, now)
				}
			},
			"only the holder settles: another owner or another fence is stale and changes nothing",
		},
		"an owner that is not compared by any settlement": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					if op.Verb != store.Mark && op.Verb != store.Claim && live(prev, now) {
						op.Token = record.Token{Owner: prev.Record.Owner, Fence: prev.Record.Fence}
					}
					return store.Transition(prev, op, now)
				}
			},
			"concurrent histories are linearizable, each key by store.Transition",
		},
		"a fence that is not compared": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					if live(prev, now) && op.Verb != store.Mark && op.Verb != store.Claim {
						op.Token.Fence = prev.Record.Fence
					}
					return store.Transition(prev, op, now)
				}
			},
			"only the holder settles: another owner or another fence is stale and changes nothing",
		},
		"leases by a caller's clock that is an hour ahead": {
			func(f *fake) { f.transition = byClock(func(now time.Time) time.Time { return now.Add(time.Hour) }) },
			"the first claim is granted and any other attempt is held for what is left of its lease",
		},
		"leases by a caller's clock that is an hour behind": {
			func(f *fake) { f.transition = byClock(func(now time.Time) time.Time { return now.Add(-time.Hour) }) },
			"a claim is taken over when its lease has run out and not before, with a higher fence",
		},
		"leases by the clocks of callers, of which some are ahead": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					ahead := time.Duration(op.Token.Owner[0]%2) * lapsing / 2
					return byClock(func(now time.Time) time.Time { return now.Add(ahead) })(prev, op, now)
				}
			},
			"concurrent histories are linearizable while leases and records run out",
		},
		"a takeover a quarter of the lease too early": {
			func(f *fake) { f.transition = shorter(func(r *record.Record) time.Duration { return r.Lease / 4 }) },
			"concurrent histories are linearizable while leases and records run out",
		},
		"a takeover a quarter of the lease too late": {
			func(f *fake) { f.transition = shorter(func(r *record.Record) time.Duration { return -r.Lease / 4 }) },
			"concurrent histories are linearizable while leases and records run out",
		},
		"a record that is forgotten before its time": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					next, r := store.Transition(prev, op, now)
					if next != nil && next != prev {
						next.ExpiresAt = next.ExpiresAt.Add(-op.TTL / 4)
					}
					return next, r
				}
			},
			"concurrent histories are linearizable while leases and records run out",
		},
		"a set-if-absent that takes its own record for another's": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					if op.Verb == store.Mark && live(prev, now) && prev.Record.State == record.Marked {
						return prev, store.Result{Outcome: store.Seen, Record: prev.Record}
					}
					return store.Transition(prev, op, now)
				}
			},
			"concurrent histories are linearizable although answers get lost and operations are repeated",
		},
		"a repeated claim that is another holder": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					next, r := store.Transition(prev, op, now)
					if op.Verb == store.Claim && r.Outcome == store.Granted && live(prev, now) {
						next.Record.Fence = prev.Record.Fence + 1
						r.Record = next.Record
					}
					return next, r
				}
			},
			"concurrent histories are linearizable although answers get lost and operations are repeated",
		},
		"a lease that starts when it is asked for": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					next, r := store.Transition(prev, op, now)
					if r.Outcome == store.Held {
						moved := *next
						moved.ExpiresAt = now.Add(moved.Record.Window)
						next = &moved
					}
					return next, r
				}
			},
			"being asked for neither lengthens nor shortens a claim",
		},
		"a release that deletes, so that the fence begins again": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					next, r := store.Transition(prev, op, now)
					if op.Verb == store.Release && r.Outcome == store.Granted {
						next = nil
					}
					return next, r
				}
			},
			"a released message is granted at once, with a higher fence, to its own attempt too",
		},
		"a takeover that keeps the fence": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					next, r := store.Transition(prev, op, now)
					if op.Verb == store.Claim && r.Outcome == store.Granted {
						next.Record.Fence = 1
						r.Record.Fence = 1
					}
					return next, r
				}
			},
			"of 64 attempts at once on a lapsed claim exactly one takes over",
		},
		"a claim that blocks until its ttl": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					if op.Verb == store.Claim {
						op.Lease = op.TTL
					}
					return store.Transition(prev, op, now)
				}
			},
			"a claim is taken over when its lease has run out and not before, with a higher fence",
		},
		"a completion called stale when it is repeated": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					next, r := store.Transition(prev, op, now)
					if next == prev && r.Outcome == store.Granted && op.Verb == store.Complete {
						r.Outcome = store.Stale
					}
					return next, r
				}
			},
			"each settling may be repeated, because its answer was lost",
		},
		"a busy key called a duplicate": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					next, r := store.Transition(prev, op, now)
					if r.Outcome == store.Held {
						r.Outcome = store.Seen
					}
					return next, r
				}
			},
			"the first claim is granted and any other attempt is held for what is left of its lease",
		},
		"a ttl that every duplicate renews": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					next, r := store.Transition(prev, op, now)
					if r.Outcome == store.Seen {
						moved := *next
						moved.ExpiresAt = now.Add(op.TTL)
						next = &moved
					}
					return next, r
				}
			},
			"a mark does not live longer for being asked for",
		},
		"marks that are never forgotten": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					op.TTL = 1000 * time.Hour
					return store.Transition(prev, op, now)
				}
			},
			"a mark is forgotten after its ttl and not before",
		},
		"contents that are not compared": {
			func(f *fake) {
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					op.Digest = record.Digest{}
					return store.Transition(prev, op, now)
				}
			},
			"the same message with other content is a mismatch where both contents are known",
		},
		"a batch that runs backwards": {
			func(f *fake) {
				f.apply = func(f *fake, ops []store.Op, results []store.Result) {
					for i := len(ops) - 1; i >= 0; i-- {
						results[i] = f.one(ops[i])
					}
				}
			},
			"operations on one claimed key take effect in their order, whatever they meet",
		},
		"a batch in two passes of which the second forgets what it overtook": {
			func(f *fake) {
				f.apply = func(f *fake, ops []store.Op, results []store.Result) {
					var late []int
					for i, op := range ops {
						if e := f.entries[op.Key]; op.Verb == store.Claim && live(e, f.now) && e.Record.State == record.Claimed {
							late = append(late, i)
							continue
						}
						results[i] = f.one(op)
					}
					for _, i := range late {
						results[i] = f.one(ops[i])
					}
				}
			},
			"operations on one claimed key take effect in their order, whatever they meet",
		},
		"a lost operation": {
			func(f *fake) {
				f.apply = func(f *fake, ops []store.Op, results []store.Result) {
					f.inOrder(ops[:len(ops)/2], results)
				}
			},
			"each operation of a large batch gets the answer to its own key",
		},
		"an error": {
			func(f *fake) {
				f.apply = func(_ *fake, _ []store.Op, results []store.Result) {
					for i := range results {
						results[i] = store.Result{Err: errors.New("no")}
					}
				}
			},
			"a forgotten message is new again",
		},
		"keys that end at a zero byte": {
			func(f *fake) {
				f.apply = func(f *fake, ops []store.Op, results []store.Result) {
					for i, op := range ops {
						op.Key, _, _ = strings.Cut(op.Key, "\x00")
						results[i] = f.one(op)
					}
				}
			},
			"keys are any bytes, and no two of them are one",
		},
		"read, decide and write without a lock": {
			func(f *fake) {
				f.apply = func(f *fake, ops []store.Op, results []store.Result) {
					for i, op := range ops {
						next, r := f.transition(f.entries[op.Key], op, f.now)
						f.mu.Unlock()
						time.Sleep(time.Millisecond)
						f.mu.Lock()
						f.entries[op.Key] = next
						results[i] = r
					}
				}
			},
			"of 64 attempts at once on a new key exactly one is granted",
		},
		"a replica that answers from a copy until somebody writes": {
			func(f *fake) {
				copies, asked := map[string]*store.Entry{}, 0
				f.apply = func(f *fake, ops []store.Op, results []store.Result) {
					for i, op := range ops {
						if asked++; asked%5 != 0 || op.Verb != store.Lookup {
							copies[op.Key] = f.entries[op.Key]
							results[i] = f.one(op)
							continue
						}
						_, results[i] = f.transition(copies[op.Key], op, f.now)
					}
				}
			},
			"concurrent histories are linearizable, each key by store.Transition",
		},
		"a settlement that is acknowledged and lost, once in a while": {
			func(f *fake) {
				settled := 0
				f.transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
					next, r := store.Transition(prev, op, now)
					if next != prev && (op.Verb == store.Complete || op.Verb == store.Release) {
						if settled++; settled%8 == 0 {
							return prev, r
						}
					}
					return next, r
				}
			},
			"concurrent histories are linearizable, each key by store.Transition",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var found []string
			for _, c := range checks() {
				f := newFake()
				test.breakIt(f)
				if err := c.run(f.fixture()); err != nil {
					found = append(found, c.name)
					if c.name == test.foundBy {
						return
					}
				}
			}
			t.Errorf("not found by %q; found by %q", test.foundBy, found)
		})
	}
}

// shorter is Transition with a lease that counts for less than was granted.
func shorter(by func(r *record.Record) time.Duration) func(*store.Entry, store.Op, time.Time) (*store.Entry, store.Result) {
	return func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
		if !live(prev, now) || prev.Record.State != record.Claimed {
			return store.Transition(prev, op, now)
		}
		counted := *prev
		counted.Record.Lease -= by(&prev.Record)
		next, r := store.Transition(&counted, op, now)
		if r.Record == counted.Record {
			r.Record = prev.Record
		}
		if next == &counted {
			next = prev
		}
		return next, r
	}
}

const runningOut = "concurrent histories are linearizable while leases and records run out"

// runsOut runs the check of what the suite can tell of a store whose clock it cannot move.
func runsOut(f Fixture) error {
	all := checks()
	return all[slices.IndexFunc(all, func(c check) bool { return c.name == runningOut })].run(f)
}

func TestTakeoversThatComeEarlyAreFoundOnARunningClock(t *testing.T) {
	t.Parallel()
	for _, early := range []time.Duration{0, lapsing / 2} {
		for _, stalls := range []bool{false, true} {
			f := newFake()
			f.transition = func(prev *store.Entry, op store.Op, _ time.Time) (*store.Entry, store.Result) {
				return shorter(func(*record.Record) time.Duration { return early })(prev, op, time.Now().Truncate(time.Millisecond))
			}
			if err := runsOut(Fixture{Store: f, Stalls: stalls}); (err != nil) != (early > 0) {
				t.Errorf("takeovers %s early, stalls %v: %v", early, stalls, err)
			}
		}
	}
}

// A claim that takes over finds a record that has run out by the time when the claim is reckoned from: right for a server
// that was suspended in between, if the suite is told that there is such a one, and if its call lasted that long.
func TestASuspendedServerIsWrongUnlessTheSuiteIsToldOfIt(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for _, test := range []struct {
		stalls   bool
		returned time.Duration
		right    bool
	}{{false, ms(300), false}, {true, ms(300), true}, {true, ms(122), false}} {
		r := &run{session: &session{Fixture: Fixture{Stalls: test.stalls}}}
		claim := func(attempt string) store.Op { return lasting(r.claim("k", attempt), expiring, lapsing) }
		held := func(o store.Op, fence uint64) record.Record {
			return record.Record{State: record.Claimed, Owner: o.Token.Owner, Fence: fence, Lease: lapsing, Window: expiring}
		}
		var history []porcupine.Operation
		add := func(op store.Op, called, returned time.Duration, answer store.Result) {
			history = append(history, porcupine.Operation{
				Input: asked{op, span{called, returned}, &r.Fixture}, Call: int64(called), Output: answer, Return: int64(returned),
			})
		}
		first, second := claim("a"), claim("b")
		add(first, 0, ms(1), store.Result{Outcome: store.Granted, Record: held(first, 1)})
		add(second, ms(50), test.returned, store.Result{Outcome: store.Granted, Record: held(second, 2)})
		add(lasting(r.lookup("k"), expiring, 0), ms(301), ms(302), store.Result{
			Outcome: store.Granted, Record: held(second, 2), Remaining: expiring - ms(1), RetryAfter: lapsing - ms(1),
		})
		var judged, undecided int
		if err := r.judge(history, &judged, &undecided); (err == nil) != test.right || judged != 1 || undecided != 0 {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

// byClock is Transition by the clock of a caller, over records that expire by the store's.
func byClock(caller func(time.Time) time.Time) func(*store.Entry, store.Op, time.Time) (*store.Entry, store.Result) {
	return func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
		if prev == nil || !live(prev, now) || prev.Record.State != record.Claimed || op.Verb == store.Lookup {
			return store.Transition(prev, op, now)
		}
		at := caller(now)
		moved := *prev
		if !at.Before(moved.ExpiresAt) {
			// Where only the lease is wrong, the record itself still lives.
			moved.ExpiresAt = moved.ExpiresAt.Add(2 * time.Hour)
			moved.Record.Window += 2 * time.Hour
		}
		next, r := store.Transition(&moved, op, at)
		if next == &moved {
			return prev, r
		}
		if next != nil {
			next.ExpiresAt = now.Add(op.TTL)
		}
		return next, r
	}
}
