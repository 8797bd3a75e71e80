package redis_test

import (
	"context"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
	"github.com/dedupd/dedup-operator/dedupd/store/storetest"
)

// newStore returns a store on addr; edit changes its options.
func newStore(tb testing.TB, addr string, edit ...func(*redis.Options)) *redis.Store {
	tb.Helper()
	o := redis.Options{
		Spec:    v1alpha1.RedisStore{Mode: v1alpha1.RedisStandalone, Addresses: []string{addr}},
		Timeout: 10 * time.Second,
		Now:     time.Now,
	}
	for _, e := range edit {
		e(&o)
	}
	s, err := redis.New(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func within(d time.Duration) func(*redis.Options) {
	return func(o *redis.Options) { o.Timeout = d }
}

func op(verb store.Verb, key, attempt string) store.Op {
	o := store.Op{Verb: verb, Key: key, Token: record.Token{Owner: record.OwnerOf(attempt)}, TTL: time.Hour}
	if verb == store.Claim || verb == store.Renew {
		o.Lease = time.Minute
	}
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

// want applies a batch and compares the outcomes.
func want(t *testing.T, s store.Store, ops []store.Op, outcomes ...store.Outcome) []store.Result {
	t.Helper()
	results := apply(s, ops...)
	for i, r := range results {
		if r.Err != nil || r.Outcome != outcomes[i] {
			t.Fatalf("operation %d of %d: outcome %d, error %v; want outcome %d", i, len(ops), r.Outcome, r.Err, outcomes[i])
		}
	}
	return results
}

// fixtures makes a store of its own for each check, all on addr. Up to Redis 7.0 a script sees what has not
// expired when it began, and lets what it writes expire by the time when it writes; since 7.2
// a command has one time.
func fixtures(addr string, edit ...func(*redis.Options)) func(testing.TB) storetest.Fixture {
	return func(tb testing.TB) storetest.Fixture {
		tb.Helper()
		return storetest.Fixture{Store: newStore(tb, addr, edit...), Stalls: true}
	}
}

func TestConformance(t *testing.T) {
	server := redistest.Start(t)
	storetest.Run(t, func(tb testing.TB) storetest.Fixture {
		tb.Helper()
		f := fixtures(server.Addr)(tb)
		f.Faulty = overFaults(tb, server.Addr)
		return f
	})
}
