package postgres_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/postgres"
	"github.com/dedupd/dedup-operator/dedupd/store/postgres/postgrestest"
)

// TestALostAnswerChangesNoAnswer: the server has carried out the call and the connection ends. What comes
// back is what would have come back.
func TestALostAnswerChangesNoAnswer(t *testing.T) {
	server := postgrestest.Shared(t)
	database := server.Database()
	tests := map[string]struct {
		before []store.Op
		op     store.Op
		want   store.Outcome
		after  store.Op // what it meets by another attempt
		then   store.Outcome
	}{
		"Mark":                        {nil, op(store.Mark, "k", "a"), store.Granted, op(store.Mark, "k", "b"), store.Seen},
		"Claim":                       {nil, op(store.Claim, "k", "a"), store.Granted, op(store.Claim, "k", "b"), store.Held},
		"Complete":                    {[]store.Op{op(store.Claim, "k", "a")}, held(op(store.Complete, "k", "a"), 1), store.Granted, op(store.Claim, "k", "b"), store.Seen},
		"Release":                     {[]store.Op{op(store.Claim, "k", "a")}, held(op(store.Release, "k", "a"), 1), store.Granted, op(store.Claim, "k", "b"), store.Granted},
		"Renew":                       {[]store.Op{op(store.Claim, "k", "a")}, held(op(store.Renew, "k", "a"), 1), store.Granted, op(store.Claim, "k", "b"), store.Held},
		"Lookup":                      {[]store.Op{op(store.Mark, "k", "a")}, op(store.Lookup, "k", ""), store.Granted, op(store.Mark, "k", "b"), store.Seen},
		"a Mark that is refused":      {[]store.Op{op(store.Mark, "k", "x")}, op(store.Mark, "k", "a"), store.Seen, op(store.Mark, "k", "b"), store.Seen},
		"a takeover of what was left": {[]store.Op{op(store.Claim, "k", "x"), held(op(store.Release, "k", "x"), 1)}, op(store.Claim, "k", "a"), store.Granted, op(store.Claim, "k", "b"), store.Held},
	}
	for name, test := range tests {
		for lost := 1; lost <= 3; lost++ {
			t.Run(fmt.Sprintf("%s, lost %d times", name, lost), func(t *testing.T) {
				t.Parallel()
				proxy := postgrestest.StartProxy(t, server.Addr)
				s := newStore(t, proxy.Addr, database)
				own := func(o store.Op) store.Op { o.Key = t.Name() + o.Key; return o }
				for _, o := range test.before {
					want(t, s, []store.Op{own(o)}, store.Granted)
				}
				// Each function is prepared on the connection before it is called.
				want(t, s, []store.Op{own(op(store.Mark, "warm", "a")), own(op(store.Lookup, "warmer", "")), own(op(store.Forget, "warmest", ""))},
					store.Granted, store.Absent, store.Absent)
				proxy.Drop(lost, 0)
				want(t, s, []store.Op{own(test.op)}, test.want)
				if proxy.Left() > 0 {
					t.Fatal("no answer was dropped: this shows nothing")
				}
				want(t, newStore(t, server.Addr, database), []store.Op{own(test.after)}, test.then)
			})
		}
	}
}

// TestAForgetIsNotRepeated: what came under the key meanwhile would be forgotten as well.
func TestAForgetIsNotRepeated(t *testing.T) {
	server := postgrestest.Shared(t)
	database := server.Database()
	proxy := postgrestest.StartProxy(t, server.Addr)
	s := newStore(t, proxy.Addr, database)
	want(t, s, []store.Op{op(store.Mark, "k", "a"), op(store.Forget, "warm", "")}, store.Granted, store.Absent)
	proxy.Drop(1, 0)
	results := apply(s, op(store.Forget, "k", ""), op(store.Forget, "l", ""), op(store.Mark, "l", "b"))
	for i, r := range results[:2] {
		if !errors.Is(r.Err, store.ErrUnavailable) {
			t.Errorf("Forget %d: %+v, want ErrUnavailable", i, r)
		}
	}
	if r := results[2]; r.Err != nil || r.Outcome != store.Granted {
		t.Errorf("the Mark beside it: %+v, want Granted", r)
	}
	if proxy.Left() > 0 {
		t.Error("no answer was dropped: this shows nothing")
	}
	want(t, s, []store.Op{op(store.Lookup, "k", ""), op(store.Mark, "l", "c")}, store.Absent, store.Seen)
}

// TestASettlementWhoseAnswerWasLostIsNeverCalledStale: it may have been done, and another may have the key since.
func TestASettlementWhoseAnswerWasLostIsNeverCalledStale(t *testing.T) {
	server := postgrestest.Shared(t)
	database := server.Database()
	proxy := postgrestest.StartProxy(t, server.Addr)
	s := newStore(t, proxy.Addr, database)
	want(t, s, []store.Op{op(store.Claim, "k", "a"), op(store.Lookup, "warm", "")}, store.Granted, store.Absent)
	// Stale from the beginning; but who asks after a lost answer cannot know that.
	proxy.Drop(1, 0)
	if r := apply(s, held(op(store.Release, "k", "b"), 1))[0]; !errors.Is(r.Err, store.ErrUnavailable) || !strings.Contains(r.Err.Error(), "ask again") {
		t.Errorf("%+v, want an error that says that it is not known", r)
	}
	want(t, s, []store.Op{held(op(store.Release, "k", "b"), 1)}, store.Stale)
}

// TestOverlappingBatchesDoNotDeadlock: many clients, few keys, every verb, any order.
func TestOverlappingBatchesDoNotDeadlock(t *testing.T) {
	server := postgrestest.Shared(t)
	database := server.Database()
	const clients, batches, size, keys = 8, 40, 30, 40
	var group sync.WaitGroup
	for client := range clients {
		s := newStore(t, server.Addr, database)
		group.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(client)))
			for range batches {
				ops := make([]store.Op, size)
				for i := range ops {
					o := op(store.Verb(1+random.IntN(int(store.Forget))), fmt.Sprint(random.IntN(keys)), fmt.Sprint(random.IntN(4)))
					o.Lease = time.Minute
					if random.IntN(2) == 0 {
						// Runs out at once: takeovers.
						o.Lease = time.Millisecond
					}
					ops[i] = held(o, uint64(1+random.IntN(3)))
				}
				for i, r := range apply(s, ops...) {
					if r.Err != nil {
						t.Errorf("client %d, operation %d: %v", client, i, r.Err)
						return
					}
				}
			}
		})
	}
	group.Wait()
	var deadlocks int
	eventually(t, "the sessions' statistics are there", func() bool {
		var commits int
		server.Value(database, "SELECT xact_commit, pg_stat_force_next_flush() FROM pg_stat_database WHERE datname = current_database()", &commits, nil)
		return commits > clients*batches
	})
	server.Value(database, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()", &deadlocks)
	if deadlocks > 0 {
		t.Errorf("%d deadlocks", deadlocks)
	}
}

// TestARestartForgetsNothingThatWasAcknowledged: the server crashes during load, and recovers.
func TestARestartForgetsNothingThatWasAcknowledged(t *testing.T) {
	server := postgrestest.Start(t, "fsync=on", "full_page_writes=on")
	s := newStore(t, server.Addr, "postgres", within(2*time.Second))
	want(t, s, []store.Op{op(store.Mark, "k", "a")}, store.Granted)

	type claim struct {
		key   string
		token record.Token
	}
	var mu sync.Mutex
	var completed []claim // acknowledged
	stop := make(chan struct{})
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				var ops []store.Op
				for i := range 20 {
					ops = append(ops, op(store.Claim, fmt.Sprintf("%d:%d:%d", worker, n, i), "holder"))
				}
				if rs := apply(s, ops...); rs[0].Outcome != store.Granted {
					continue
				}
				for i := range ops {
					ops[i] = held(op(store.Complete, ops[i].Key, "holder"), 1)
				}
				for i, r := range apply(s, ops...) {
					if r.Outcome == store.Granted {
						mu.Lock()
						completed = append(completed, claim{ops[i].Key, ops[i].Token})
						mu.Unlock()
					}
				}
			}
		})
	}
	acknowledged := func() int { mu.Lock(); defer mu.Unlock(); return len(completed) }
	for range 3 {
		before := acknowledged()
		eventually(t, "there is load", func() bool { return acknowledged() > before+100 })
		server.Restart()
	}
	before := acknowledged()
	eventually(t, "there is load again", func() bool { return acknowledged() > before+100 })
	close(stop)
	group.Wait()
	for _, c := range completed {
		if r := apply(s, op(store.Claim, c.key, "another"))[0]; r.Outcome != store.Seen || r.Record.Owner != c.token.Owner {
			t.Fatalf("%s was completed, and now: %+v", c.key, r)
		}
	}
	t.Logf("%d completions acknowledged over three crashes", len(completed))
}

func TestTheServerMayComeAndGo(t *testing.T) {
	server := postgrestest.Start(t)
	s := newStore(t, server.Addr, "postgres", within(2*time.Second))
	want(t, s, []store.Op{op(store.Claim, "k", "a")}, store.Granted)
	server.Stop()
	if r := apply(s, op(store.Mark, "k", "b"))[0]; !errors.Is(r.Err, store.ErrUnavailable) || !strings.Contains(r.Err.Error(), "connection refused") {
		t.Fatalf("a mark while the server is down: %+v, want ErrUnavailable", r)
	}
	if h := s.Health(t.Context()); !errors.Is(h.Err, store.ErrUnavailable) || !strings.Contains(h.Err.Error(), "connection refused") {
		t.Errorf("health while the server is down: %+v", h)
	}
	server.Restart()
	want(t, s, []store.Op{op(store.Claim, "k", "b")}, store.Held)
	// A restart that no call has noticed costs no call.
	server.Restart()
	want(t, s, []store.Op{op(store.Claim, "k", "b"), held(op(store.Complete, "k", "a"), 1)}, store.Held, store.Granted)
}

// TestAFailoverIsFollowed: of several addresses the one that takes writes is used.
func TestAFailoverIsFollowed(t *testing.T) {
	primary := postgrestest.Start(t, "fsync=on", "full_page_writes=on")
	standby := primary.Standby()
	s := newStore(t, standby.Addr, "postgres", within(3*time.Second), func(o *postgres.Options) {
		o.Spec.Addresses = []string{standby.Addr, primary.Addr}
	})
	want(t, s, []store.Op{op(store.Claim, "k", "a")}, store.Granted)
	alone := newStore(t, standby.Addr, "postgres", within(3*time.Second))
	if r := apply(alone, op(store.Mark, "x", "a"))[0]; !errors.Is(r.Err, store.ErrUnavailable) || !strings.Contains(r.Err.Error(), "takes no writes") {
		t.Errorf("a standby: %+v, want an error that says so", r)
	}
	if h := s.Health(t.Context()); h.Err != nil || !strings.Contains(h.Reason, "asynchronous") {
		t.Errorf("health %+v, want one that tells of the standby", h)
	}
	eventually(t, "the standby has it", func() bool {
		var replayed bool
		primary.Value("postgres", "SELECT coalesce(bool_and(replay_lsn = pg_current_wal_lsn()), false) FROM pg_stat_replication", &replayed)
		return replayed
	})
	primary.Stop()
	standby.Must("SELECT pg_promote()")
	eventually(t, "the promoted server is found", func() bool {
		r := apply(s, op(store.Claim, "k", "b"))[0]
		if r.Err != nil && !errors.Is(r.Err, store.ErrUnavailable) || r.Outcome == store.Granted {
			t.Fatalf("during the failover: %+v", r)
		}
		return r.Outcome == store.Held
	})
	want(t, s, []store.Op{held(op(store.Complete, "k", "a"), 1)}, store.Granted)
}

// TestAServerThatTurnsReadOnlyIsLeft: its connections live on, as after an orderly switchover.
func TestAServerThatTurnsReadOnlyIsLeft(t *testing.T) {
	first, second := postgrestest.Start(t), postgrestest.Start(t)
	s := newStore(t, first.Addr, "postgres", func(o *postgres.Options) { o.Spec.Addresses = append(o.Spec.Addresses, second.Addr) })
	want(t, s, []store.Op{op(store.Mark, "k", "a")}, store.Granted)
	first.Must("ALTER SYSTEM SET default_transaction_read_only = on")
	first.Must("SELECT pg_reload_conf()")
	eventually(t, "the first server takes no writes", func() bool {
		var value string
		first.Value("postgres", "SHOW transaction_read_only", &value)
		return value == "on"
	})
	eventually(t, "the second server is used", func() bool {
		r := apply(s, op(store.Mark, "k", "b"))[0]
		if r.Err != nil {
			t.Fatalf("during the switchover: %v", r.Err)
		}
		return r.Outcome == store.Granted
	})
}

func TestAServerThatStartsUp(t *testing.T) {
	primary := postgrestest.Start(t)
	standby := primary.Standby("hot_standby=off")
	s := newStore(t, standby.Addr, "postgres", within(time.Second))
	if r := apply(s, op(store.Mark, "k", "a"))[0]; !errors.Is(r.Err, store.ErrUnavailable) || !strings.Contains(r.Err.Error(), "starting up") {
		t.Errorf("%+v, want an error that says that it is starting up", r)
	}
}
