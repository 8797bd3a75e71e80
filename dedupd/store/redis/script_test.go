package redis_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
	"github.com/dedupd/dedup-operator/dedupd/store/storetest"
)

func TestTheScriptCacheMayBeEmptiedAtAnyTime(t *testing.T) {
	server := redistest.Start(t)
	s := newStore(t, server.Addr)
	for round := range 3 {
		k := func(name string) string { return fmt.Sprint(name, round) }
		want(t, s, []store.Op{op(store.Claim, k("a"), "x"), op(store.Claim, k("b"), "x")}, store.Granted, store.Granted)
		server.Must("script", "flush")
		// Both pipelines meet the empty cache, with native commands beside the scripts and
		// several operations on one key.
		want(t, s, []store.Op{
			op(store.Mark, k("new"), "x"),
			held(op(store.Complete, k("a"), "x"), 1), op(store.Claim, k("a"), "y"), op(store.Forget, k("a"), ""), op(store.Claim, k("a"), "y"),
			op(store.Claim, k("b"), "y"), held(op(store.Release, k("b"), "x"), 1), op(store.Claim, k("b"), "y"),
			op(store.Mark, k("new"), "y"), op(store.Lookup, k("new"), ""),
		},
			store.Granted,
			store.Granted, store.Seen, store.Granted, store.Granted,
			store.Held, store.Granted, store.Granted,
			store.Seen, store.Granted)
	}
	if evals := server.Calls("eval"); evals == 0 {
		t.Error("the source was never sent: the cache was not empty, and this test shows nothing")
	}
	server.Must("config", "resetstat")
	want(t, s, []store.Op{op(store.Lookup, "new0", ""), op(store.Lookup, "a0", "")}, store.Granted, store.Granted)
	if evals := server.Calls("eval"); evals != 0 {
		t.Errorf("%d EVAL with a filled cache, want none", evals)
	}
}

// TestTheScriptReadsEveryRecord puts records into the server that would take ages to come
// about, and compares what becomes of them with store.Transition.
func TestTheScriptReadsEveryRecord(t *testing.T) {
	server := redistest.Start(t)
	s := newStore(t, server.Addr)
	// Not redistest's Do, which makes a connection for each command.
	raw := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer func() { _ = raw.Close() }()
	const window = 100 * time.Hour
	a, one := record.OwnerOf("a"), record.DigestOf([]byte("one"))
	seen := time.UnixMilli(1_700_000_000_123).UTC()
	var records []record.Record
	for _, digest := range []record.Digest{{}, one} {
		records = append(records, record.Record{State: record.Marked, Owner: a, FirstSeen: seen, Digest: digest})
		for _, state := range []record.State{record.Claimed, record.Completed, record.Released} {
			for _, fence := range []uint64{1, 255, 256, 65535, 1<<53 - 1, 1 << 53, 1<<53 + 1, 1<<63 - 1, 1<<64 - 2} {
				for _, lease := range []time.Duration{time.Millisecond, 24 * time.Hour, record.MaxLease} {
					if state != record.Claimed {
						lease = 0
					}
					records = append(records, record.Record{
						State: state, Owner: a, FirstSeen: seen, Fence: fence, Lease: lease, Window: window, Digest: digest,
					})
				}
			}
		}
	}
	// How long ago the records were written, as their expiry has it.
	const elapsed = time.Minute
	check := func(o store.Op, rec record.Record, scripted bool) {
		t.Helper()
		if err := raw.Set(t.Context(), o.Key, rec.Append(nil), window-elapsed).Err(); err != nil {
			t.Fatal(err)
		}
		entry := &store.Entry{Record: rec, ExpiresAt: time.UnixMilli(0).Add(window - elapsed)}
		_, wanted := store.Transition(entry, o, time.UnixMilli(0))
		batch := []store.Op{o}
		if scripted {
			// After a lookup of its key, an operation goes to the script from the start.
			batch = []store.Op{op(store.Lookup, o.Key, ""), o}
		}
		results := apply(s, batch...)
		got := results[len(results)-1]
		if got.Outcome != wanted.Outcome || got.Record != wanted.Record || got.Err != nil ||
			(got.RetryAfter-wanted.RetryAfter).Abs() > time.Minute || (got.Remaining-wanted.Remaining).Abs() > time.Minute {
			t.Fatalf("verb %d, scripted %t, on %+v:\n got %+v\nwant %+v", o.Verb, scripted, rec, got, wanted)
		}
	}
	for n, rec := range records {
		for verb := store.Mark; verb <= store.Forget; verb++ {
			for _, attempt := range []string{"a", "b"} {
				o := held(op(verb, fmt.Sprintf("k%d:%d%s", n, verb, attempt), attempt), rec.Fence)
				o.Digest = record.DigestOf([]byte("two"))
				check(o, rec, false)
				check(o, rec, true)
			}
		}
	}
}

// TestNothingIsDecidedByTheCallersClock runs the conformance suite on clocks that are wrong.
func TestNothingIsDecidedByTheCallersClock(t *testing.T) {
	server := redistest.Start(t)
	for name, wrong := range map[string]time.Duration{"an hour ahead": time.Hour, "a day behind": -24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, fixtures(server.Addr, func(o *redis.Options) {
				o.Now = func() time.Time { return time.Now().Add(wrong) }
			}))
		})
	}
}

func TestFirstSeenIsTheServersTime(t *testing.T) {
	server := redistest.Start(t)
	wrong := 5 * time.Hour
	s := newStore(t, server.Addr, func(o *redis.Options) {
		o.Now = func() time.Time { return time.Now().Add(wrong) }
	})
	// The first call is stamped before there is a connection to ask.
	want(t, s, []store.Op{op(store.Mark, "before", "a")}, store.Granted)
	near := func(key string) {
		t.Helper()
		r := want(t, s, []store.Op{op(store.Mark, key, "a")}, store.Granted)[0]
		if off := time.Since(r.Record.FirstSeen); off.Abs() > time.Minute {
			t.Errorf("first seen %s, which is %s off the server's time", r.Record.FirstSeen, off)
		}
	}
	near("connected")
	wrong = -time.Hour
	if h := s.Health(t.Context()); h.Err != nil {
		t.Fatal(h.Err)
	}
	near("asked again")
}

func TestRecordsAreTheSizeOfTheirForm(t *testing.T) {
	server := redistest.Start(t)
	s := newStore(t, server.Addr)
	want(t, s, []store.Op{op(store.Mark, "m", "a"), op(store.Claim, "c", "a")}, store.Granted, store.Granted)
	for key, size := range map[string]int64{"m": 23, "c": 41} {
		if n := server.Must("strlen", key); n != size {
			t.Errorf("%s has %d bytes, want %d", key, n, size)
		}
		if ttl, ok := server.Must("pttl", key).(int64); !ok || ttl <= 0 || ttl > time.Hour.Milliseconds() {
			t.Errorf("%s expires in %v ms", key, ttl)
		}
	}
	if keys := fmt.Sprint(server.Must("keys", "*")); strings.Count(keys, " ") != 1 {
		t.Errorf("the server holds %s, want the two keys only", keys)
	}
}

func TestOneCallOfTheScriptSettlesManyKeys(t *testing.T) {
	server := redistest.Start(t)
	s := newStore(t, server.Addr)
	var claims, completions []store.Op
	var granted []store.Outcome
	for i := range 150 {
		k := fmt.Sprint("k", i)
		claims = append(claims, op(store.Claim, k, "a"))
		completions = append(completions, held(op(store.Complete, k, "a"), 1))
		granted = append(granted, store.Granted)
	}
	want(t, s, claims, granted...)
	// What stands under one key is no matter of the others'.
	server.Must("del", "k70")
	server.Must("rpush", "k70", "a list")
	server.Must("set", "k71", "no record")
	server.Must("config", "resetstat")
	results := apply(s, completions...)
	for i, r := range results {
		wrong := i == 70 || i == 71
		if wrong != errors.Is(r.Err, store.ErrCorrupt) || !wrong && (r.Outcome != store.Granted || r.Record.State != record.Completed) {
			t.Errorf("completion %d: %+v", i, r)
		}
	}
	if n := server.Calls("evalsha"); n < 2 || n > 3 {
		t.Errorf("%d calls of the script for 150 keys, want 3 at most, and not all in one", n)
	}
}
