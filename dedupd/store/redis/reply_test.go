package redis_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// TestALostReplyMakesNoDuplicate drops one reply after the server has carried out its
// command, as a failing network does. go-redis sends the command again. What people write
// today, a bare SETNX, then takes the message for a duplicate, and it is lost; that is the
// control, in each of the ways in which a check may travel.
func TestALostReplyMakesNoDuplicate(t *testing.T) {
	const batch = 16
	ways := map[string]struct {
		n int // messages
		k int // the reply that is dropped
		// bare is the control: it says for each key whether SETNX calls it fresh.
		bare func(ctx context.Context, c *goredis.Client, keys []string) ([]bool, error)
	}{
		"a single check": {n: 1, k: 1, bare: func(ctx context.Context, c *goredis.Client, keys []string) ([]bool, error) {
			fresh, err := c.SetNX(ctx, keys[0], 1, time.Hour).Result()
			return []bool{fresh}, err
		}},
		"a batch, its first reply":  {n: batch, k: 1, bare: bareBatch},
		"a batch, a reply amid it":  {n: batch, k: batch / 2, bare: bareBatch},
		"a batch, its last reply":   {n: batch, k: batch, bare: bareBatch},
		"pipelined single messages": {n: 2, k: 2, bare: bareBatch},
	}
	server := redistest.Start(t)
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			for verbName, verb := range map[string]store.Verb{"Mark": store.Mark, "Claim": store.Claim} {
				t.Run(verbName, func(t *testing.T) {
					proxy := redistest.StartProxy(t, server.Addr)
					s := newStore(t, proxy.Addr)
					var ops []store.Op
					var granted []store.Outcome
					for i := range way.n {
						ops = append(ops, op(verb, fmt.Sprintf("%s:%d", t.Name(), i), fmt.Sprint("attempt", i)))
						granted = append(granted, store.Granted)
					}
					rule, dropped := redistest.DropOnce("set", way.k)
					proxy.Set(rule)
					results := want(t, s, ops, granted...)
					if !dropped() {
						t.Fatal("no reply was dropped: the test shows nothing")
					}
					for i, r := range results {
						if verb == store.Claim && r.Record.Fence != 1 {
							t.Errorf("message %d: fence %d, want 1: the same holder", i, r.Record.Fence)
						}
					}
				})
			}
			t.Run("bare SETNX, the control", func(t *testing.T) {
				proxy := redistest.StartProxy(t, server.Addr)
				client := goredis.NewClient(&goredis.Options{Addr: proxy.Addr})
				defer func() { _ = client.Close() }()
				var keys []string
				for i := range way.n {
					keys = append(keys, fmt.Sprintf("%s:%d", t.Name(), i))
				}
				rule, dropped := redistest.DropOnce("set", way.k)
				proxy.Set(rule)
				fresh, err := way.bare(t.Context(), client, keys)
				if err != nil || !dropped() {
					t.Fatalf("error %v, dropped %t; want the retry to succeed", err, dropped())
				}
				if fresh[way.k-1] {
					t.Error("the control calls the message fresh: this test could not fail")
				}
			})
		})
	}
}

func bareBatch(ctx context.Context, c *goredis.Client, keys []string) ([]bool, error) {
	pipe := c.Pipeline()
	var cmds []*goredis.BoolCmd
	for _, k := range keys {
		cmds = append(cmds, pipe.SetNX(ctx, k, 1, time.Hour))
	}
	_, err := pipe.Exec(ctx)
	var fresh []bool
	for _, c := range cmds {
		fresh = append(fresh, c.Val())
	}
	return fresh, err
}

func TestALostReplyToAScriptIsAskedAgain(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server.Addr)
	s := newStore(t, proxy.Addr)
	tests := map[string]struct {
		before []store.Op
		op     store.Op
		fence  uint64
	}{
		"a takeover": {
			before: []store.Op{op(store.Claim, "takeover", "x"), held(op(store.Release, "takeover", "x"), 1)},
			op:     op(store.Claim, "takeover", "a"), fence: 2,
		},
		"a completion": {before: []store.Op{op(store.Claim, "complete", "a")}, op: held(op(store.Complete, "complete", "a"), 1), fence: 1},
		"a release":    {before: []store.Op{op(store.Claim, "release", "a")}, op: held(op(store.Release, "release", "a"), 1), fence: 1},
		"a renewal":    {before: []store.Op{op(store.Claim, "renew", "a")}, op: held(op(store.Renew, "renew", "a"), 1), fence: 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			proxy.Set(nil)
			for _, o := range test.before {
				want(t, s, []store.Op{o}, store.Granted)
			}
			rule, dropped := redistest.DropOnce("evalsha", 1)
			proxy.Set(rule)
			r := want(t, s, []store.Op{test.op}, store.Granted)[0]
			if !dropped() {
				t.Fatal("no reply was dropped: the test shows nothing")
			}
			if r.Record.Fence != test.fence {
				t.Errorf("fence %d, want %d", r.Record.Fence, test.fence)
			}
		})
	}
}

func TestOneCommandPerMessage(t *testing.T) {
	const n = 50
	batch := func(verb store.Verb, keys, attempt string) []store.Op {
		var ops []store.Op
		for i := range n {
			ops = append(ops, op(verb, fmt.Sprint(keys, i), fmt.Sprint(attempt, i)))
		}
		return ops
	}
	server := redistest.Start(t)
	s := newStore(t, server.Addr)
	apply(s, batch(store.Claim, "done", "a")...)
	for _, o := range batch(store.Complete, "done", "a") {
		apply(s, held(o, 1))
	}
	tests := []struct {
		name string
		ops  []store.Op
	}{
		{"new messages, Mark", batch(store.Mark, "marked", "a")},
		{"duplicates, Mark", batch(store.Mark, "marked", "b")},
		{"attempts that ask again, Mark", batch(store.Mark, "marked", "a")},
		{"new messages, Claim", batch(store.Claim, "claimed", "a")},
		{"duplicates of completed messages, Claim", batch(store.Claim, "done", "b")},
		{"a key repeated in its batch, Mark", append(batch(store.Mark, "twice", "a"), batch(store.Mark, "twice", "b")...)},
		{"a completed key repeated in its batch, Claim", append(batch(store.Claim, "done", "a"), batch(store.Claim, "done", "b")...)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			server.Must("config", "resetstat")
			for _, o := range test.ops[:n/2] {
				apply(s, o)
			}
			apply(s, test.ops[n/2:]...)
			if sets := server.Calls("set"); sets != len(test.ops) {
				t.Errorf("%d SET for %d messages, want one each", sets, len(test.ops))
			}
			for _, other := range []string{"get", "pttl", "evalsha", "eval", "setnx", "multi", "time"} {
				if calls := server.Calls(other); calls != 0 {
					t.Errorf("%d %s, want none", calls, other)
				}
			}
		})
	}
}

// TestAForgetIsNotRepeated: what came under the key meanwhile would be forgotten as well. What is asked beside it is.
func TestAForgetIsNotRepeated(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server.Addr)
	for name, test := range map[string]struct {
		command string // that carries the Forget
		open    func() store.Store
	}{
		"Readable": {"del", func() store.Store { return newStore(t, proxy.Addr) }},
		"Compact":  {"evalsha", func() store.Store { return newCompact(t, proxy.Addr) }},
		"Dense":    {"evalsha", func() store.Store { return newDense(t, proxy.Addr, 1000) }},
	} {
		t.Run(name, func(t *testing.T) {
			s := test.open()
			key, beside := name+":k", name+":beside"
			want(t, s, []store.Op{op(store.Mark, key, "a"), op(store.Forget, "warm", "")}, store.Granted, store.Absent)
			var carried atomic.Int64
			proxy.Set(func(request []string) redistest.Fate {
				return redistest.Fate{Drop: request[0] == test.command && carried.Add(1) == 1}
			})
			defer proxy.Set(nil)
			if r := apply(s, op(store.Forget, key, ""))[0]; !errors.Is(r.Err, store.ErrUnavailable) || carried.Load() != 1 {
				t.Errorf("%+v, carried out %d times; want ErrUnavailable, and once", r, carried.Load())
			}
			want(t, s, []store.Op{op(store.Lookup, key, ""), op(store.Mark, beside, "a")}, store.Absent, store.Granted)
		})
	}
	t.Run("beside a Mark", func(t *testing.T) {
		s := newStore(t, proxy.Addr)
		rule, dropped := redistest.DropOnce("set", 1)
		proxy.Set(rule)
		defer proxy.Set(nil)
		want(t, s, []store.Op{op(store.Forget, "nothing", ""), op(store.Mark, "new", "a")}, store.Absent, store.Granted)
		if !dropped() {
			t.Error("no reply was dropped: this shows nothing")
		}
	})
}
