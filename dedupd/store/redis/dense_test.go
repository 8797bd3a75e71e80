package redis_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
	"github.com/dedupd/dedup-operator/dedupd/store/storetest"
)

// densely is keyFormat Dense for so many messages.
func densely(expected int64) func(*redis.Options) {
	return func(o *redis.Options) {
		o.Spec.KeyFormat = v1alpha1.KeyDense
		o.Spec.Dense = &v1alpha1.RedisDense{ExpectedMessages: expected}
	}
}

// prefix is that of the keys in these tests.
const prefix = "dedup:shop:orders:"

// hashed gives a store keys as policy.StoreKey forms them.
type hashed struct{ store.Store }

func (h hashed) Apply(ctx context.Context, ops []store.Op, results []store.Result) {
	own := make([]store.Op, len(ops))
	for i, o := range ops {
		id := key.IDOf(o.Key)
		o.Key = prefix + string(id[:])
		own[i] = o
	}
	h.Store.Apply(ctx, own, results)
}

// newDense is a store with keyFormat Dense that takes keys of any form.
func newDense(tb testing.TB, addr string, expected int64, edit ...func(*redis.Options)) hashed {
	tb.Helper()
	return hashed{newStore(tb, addr, append(edit, densely(expected))...)}
}

// tick is by how much a message may be remembered too long.
const tick = 250 * time.Millisecond

// denseFixtures makes a store of its own for each check, all on the same few hashes.
func denseFixtures(addr string, edit ...func(*redis.Options)) func(testing.TB) storetest.Fixture {
	return func(tb testing.TB) storetest.Fixture {
		tb.Helper()
		return storetest.Fixture{Store: newDense(tb, addr, 1000, edit...), MarksOnly: true, Late: tick, Keeps: denselyKept}
	}
}

// denselyKept is what is left of a record: half of its owner, and no time by itself.
func denselyKept(r record.Record) record.Record {
	kept := record.Record{State: r.State}
	copy(kept.Owner[:8], r.Owner[:])
	return kept
}

func TestDenseConforms(t *testing.T) {
	server := redistest.Start(t)
	storetest.Run(t, func(tb testing.TB) storetest.Fixture {
		tb.Helper()
		f := denseFixtures(server.Addr)(tb)
		f.Faulty = func(seed uint64) (store.Store, func() int) {
			s, repeats := overFaults(tb, server.Addr, densely(1000))(seed)
			return hashed{s}, repeats
		}
		return f
	})
}

// marks are marks of n messages by an attempt.
func marks(n int, name, attempt string) []store.Op {
	ops := make([]store.Op, n)
	for i := range ops {
		ops[i] = op(store.Mark, fmt.Sprint(name, i), attempt)
	}
	return ops
}

// all is an outcome for each of n operations.
func all(n int, o store.Outcome) []store.Outcome {
	return slices.Repeat([]store.Outcome{o}, n)
}

func shortly(ops []store.Op, ttl time.Duration) []store.Op {
	for i := range ops {
		ops[i].TTL = ttl
	}
	return ops
}

// hashes are the names of the server's keys.
func hashes(server *redistest.Server) []string {
	var names []string
	for _, name := range server.Must("keys", "*").([]any) {
		names = append(names, name.(string))
	}
	return names
}

// TestDenseRemembersForTheTTLAndNotForLong marks messages at all times within a tick, and for
// longer than the first of them are remembered, and looks at them all the while.
func TestDenseRemembersForTheTTLAndNotForLong(t *testing.T) {
	server := redistest.Start(t)
	s := newDense(t, server.Addr, 1000)
	const n, ttl = 60, 700 * time.Millisecond
	lives := make([]life, 0, n)
	next := time.Now()
	eventually(t, "every message is forgotten", func() bool {
		if len(lives) < n && !time.Now().Before(next) {
			next = next.Add(2 * ttl / n)
			asked := time.Now()
			want(t, s, shortly([]store.Op{op(store.Mark, fmt.Sprint("m", len(lives)), "a")}, ttl), store.Granted)
			lives = append(lives, life{asked: asked, marked: time.Now()})
		}
		return look(t, s, lives, ttl) == 0 && len(lives) == n
	})
}

// life is when a message was marked, between asking and being told, and when it was found to
// be forgotten.
type life struct{ asked, marked, gone time.Time }

// look says how many of the messages are still remembered, and whether any should not be, or should.
func look(t *testing.T, s store.Store, lives []life, ttl time.Duration) (left int) {
	t.Helper()
	lookups := make([]store.Op, len(lives))
	for i := range lookups {
		lookups[i] = op(store.Lookup, fmt.Sprint("m", i), "")
	}
	asked := time.Now()
	results := apply(s, lookups...)
	answered := time.Now()
	for i, r := range results {
		l := &lives[i]
		switch {
		case r.Err != nil:
			t.Fatal(r.Err)
		case r.Outcome == store.Granted && asked.Sub(l.marked) > ttl+tick:
			t.Fatalf("message %d is remembered after %s, longer than %s and a tick", i, asked.Sub(l.marked), ttl)
		case r.Outcome == store.Granted && !l.gone.IsZero():
			t.Fatalf("message %d was forgotten, and is remembered again", i)
		case r.Outcome == store.Granted:
			left++
		case l.gone.IsZero() && answered.Sub(l.asked) < ttl:
			t.Fatalf("message %d is forgotten after %s, sooner than %s", i, answered.Sub(l.asked), ttl)
		case l.gone.IsZero():
			l.gone = answered
		}
	}
	return left
}

// TestDenseNeverTakesOneMessageForAnother puts 6,000 messages into each hash, which is far
// more than it is meant for.
func TestDenseNeverTakesOneMessageForAnother(t *testing.T) {
	server := redistest.Start(t)
	s := newDense(t, server.Addr, 1000)
	const n, batch = 100_000, 1000
	for i := range n / batch {
		want(t, s, marks(batch, fmt.Sprint(i, "/"), "a"), all(batch, store.Granted)...)
	}
	if names := hashes(server); len(names) > 16 {
		t.Fatalf("%d hashes, want few: this test is about many messages in one", len(names))
	}
	for i := range n / batch {
		want(t, s, marks(batch, fmt.Sprint(i, "/"), "b"), all(batch, store.Seen)...)
	}
}

// TestDenseDeletesWhatIsForgotten, whether a hash is a listpack or has outgrown one, and the
// hash itself when nobody writes to it any more.
func TestDenseDeletesWhatIsForgotten(t *testing.T) {
	for name, with := range map[string]struct {
		program  string
		listpack int
	}{
		"listpacks":               {"", 512},
		"hash tables":             {"", 8},
		"hash tables of Redis 8":  {redistest.Redis8, 8},
		"hash tables of Valkey 8": {redistest.Valkey8, 8},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := redistest.Config{}
			if with.program != "" {
				config.Program = redistest.Program(t, with.program)
			}
			server := config.Start(t, "--hash-max-listpack-entries", fmt.Sprint(with.listpack))
			s := newDense(t, server.Addr, 1000)
			const n, ttl = 400, 500 * time.Millisecond
			fields := func() (sum int) {
				for _, name := range hashes(server) {
					n, _ := server.Must("hlen", name).(int64)
					sum += int(n)
				}
				return sum
			}
			want(t, s, shortly(marks(n, "first", "a"), 4*ttl), all(n, store.Granted)...)
			if got := fields(); got != n {
				t.Fatalf("%d fields, want %d", got, n)
			}
			var round int
			eventually(t, "nearly all of the first messages are deleted while others come", func() bool {
				round++
				want(t, s, shortly(marks(32, fmt.Sprint("round", round, "/"), "a"), ttl), all(32, store.Granted)...)
				got := 0
				for _, name := range hashes(server) {
					values, _ := server.Must(slices.Concat([]any{"hmget", name}, fieldsOf("first", n))...).([]any)
					for _, v := range values {
						if v != nil {
							got++
						}
					}
				}
				return got < n/10 // of a large hash by chance, and so the last ones late
			})
			eventually(t, "nothing is left when nobody writes", func() bool { return len(hashes(server)) == 0 })
		})
	}
}

// fieldsOf are the fields of the messages of marks in the hashes for 1000 messages.
func fieldsOf(name string, n int) []any {
	fields := make([]any, n)
	for i := range fields {
		id := key.IDOf(fmt.Sprint(name, i))
		fields[i] = string(id[:])
	}
	return fields
}

// TestDenseTellsTimeByDistance puts marks into a hash as if they had been made at any time.
func TestDenseTellsTimeByDistance(t *testing.T) {
	server := redistest.Start(t)
	s := newDense(t, server.Addr, 1000)
	const years = 365 * 24 * time.Hour
	for left, outcome := range map[time.Duration]store.Outcome{
		-16 * years: store.Granted, -time.Hour: store.Granted, -2 * tick: store.Granted,
		time.Minute: store.Seen, 10 * years: store.Seen, 16 * years: store.Seen,
	} {
		name := left.String()
		want(t, s, []store.Op{op(store.Mark, name, "a")}, store.Granted)
		hash, field := placed(t, server, name)
		at := time.Now().Add(left).UnixMilli() / tick.Milliseconds()
		value := binary.BigEndian.AppendUint32([]byte("12345678"), uint32(at))
		server.Must("hset", hash, field, value)
		if outcome == store.Seen {
			r := want(t, s, []store.Op{op(store.Lookup, name, "")}, store.Granted)[0]
			if (r.Remaining - left).Abs() > time.Minute {
				t.Errorf("%s: remaining %s", name, r.Remaining)
			}
			if off := r.Record.FirstSeen.Sub(time.Now().Add(left - time.Hour)); off.Abs() > time.Minute {
				t.Errorf("%s: first seen %s, %s off", name, r.Record.FirstSeen, off)
			}
		}
		want(t, s, []store.Op{op(store.Mark, name, "b")}, outcome)
	}
}

// placed finds the hash that holds a message.
func placed(t *testing.T, server *redistest.Server, name string) (hash, field string) {
	t.Helper()
	id := key.IDOf(name)
	field = string(id[:])
	for _, hash := range hashes(server) {
		if server.Must("hexists", hash, field) == int64(1) {
			return hash, field
		}
	}
	t.Fatalf("no hash holds %q", name)
	return "", ""
}
