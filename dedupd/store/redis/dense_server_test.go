package redis_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

func TestDenseLaysOutForWhatIsExpected(t *testing.T) {
	for expected, wanted := range map[int64]struct {
		name  string // of each hash
		field int64  // its length
	}{
		1000:           {prefix + "~d3:", 16},
		1024:           {prefix + "~d3:", 16},
		1025:           {prefix + "~d4:", 16},
		1_000_000:      {prefix + "~d13:", 15},
		10_000_000_000: {prefix + "~d27:", 13},
	} {
		t.Run(fmt.Sprint(expected), func(t *testing.T) {
			server := redistest.Start(t)
			s := newDense(t, server.Addr, expected)
			want(t, s, marks(300, "m", "a"), all(300, store.Granted)...)
			for _, name := range hashes(server) {
				if !strings.HasPrefix(name, wanted.name) {
					t.Errorf("a hash is called %q, want %q and a number", name, wanted.name)
				}
				fields, _ := server.Must("hkeys", name).([]any)
				for _, f := range fields {
					if n := int64(len(f.(string))); n != wanted.field {
						t.Errorf("%s has a field of %d bytes, want %d", name, n, wanted.field)
					}
				}
				if ttl, ok := server.Must("pttl", name).(int64); !ok || ttl <= time.Hour.Milliseconds() || ttl > 2*time.Hour.Milliseconds() {
					t.Errorf("%s expires in %v ms, want a little over an hour", name, ttl)
				}
			}
			want(t, s, marks(300, "m", "b"), all(300, store.Seen)...)
		})
	}
}

func TestDenseSendsManyMessagesInACall(t *testing.T) {
	server := redistest.Start(t)
	s := newDense(t, server.Addr, 1_000_000)
	want(t, s, marks(1, "warm", "a"), store.Granted)
	server.Must("config", "resetstat")
	const n = 256
	want(t, s, marks(n, "m", "a"), all(n, store.Granted)...)
	want(t, s, marks(n, "m", "b"), all(n, store.Seen)...)
	if calls := server.Calls("evalsha"); calls > 2*(n/64+1) {
		t.Errorf("%d calls for %d messages", calls, 2*n)
	}
	for _, command := range []string{"eval", "set", "get"} {
		if calls := server.Calls(command); calls != 0 {
			t.Errorf("%d %s, want none", calls, command)
		}
	}
}

func TestDenseSurvivesAnEmptyScriptCache(t *testing.T) {
	server := redistest.Start(t)
	s := newDense(t, server.Addr, 1000)
	for round := range 3 {
		server.Must("script", "flush")
		name := fmt.Sprint("round", round, "/")
		want(t, s, marks(200, name, "a"), all(200, store.Granted)...)
		server.Must("script", "flush")
		want(t, s, []store.Op{op(store.Forget, name+"0", ""), op(store.Lookup, name+"0", "")}, store.Granted, store.Absent)
	}
	if server.Calls("eval") == 0 {
		t.Error("the source was never sent: the cache was not empty, and this test shows nothing")
	}
}

func TestDenseTakesALostReplyForWhatItWas(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server.Addr)
	s := newDense(t, proxy.Addr, 1_000_000)
	want(t, s, marks(1, "warm", "a"), store.Granted)
	for _, n := range []int{1, 200} {
		rule, dropped := redistest.DropOnce("evalsha", 1)
		proxy.Set(rule)
		name := fmt.Sprint("of", n, "/")
		want(t, s, marks(n, name, "a"), all(n, store.Granted)...)
		if !dropped() {
			t.Error("no reply was dropped: the test shows nothing")
		}
		want(t, s, marks(n, name, "b"), all(n, store.Seen)...)
	}
}

// TestDenseRefusesWhatItDidNotWrite, and goes on with the rest of the batch.
func TestDenseRefusesWhatItDidNotWrite(t *testing.T) {
	server := redistest.Start(t)
	s := newDense(t, server.Addr, 1000)
	want(t, s, []store.Op{op(store.Mark, "short", "a"), op(store.Mark, "fine", "a")}, store.Granted, store.Granted)
	hash, field := placed(t, server, "short")
	server.Must("hset", hash, field, "elevenbytes")
	const n = 64
	batch := marks(n, "m", "a")
	batch = append(batch, op(store.Mark, "short", "b"), op(store.Lookup, "short", ""), op(store.Mark, "fine", "b"))
	other := prefix + "~d3:0"
	if hash == other {
		other = prefix + "~d3:1"
	}
	server.Must("set", other, "a string")
	var granted, foreign int
	for i, r := range apply(s, batch...) {
		key := fmt.Sprintf("%q", hash)
		switch {
		case r.Outcome == store.Granted && i < n:
			granted++
		case i == n || i == n+1:
		case r.Err != nil:
			foreign++
			key = fmt.Sprintf("%q", other)
		}
		if r.Err != nil && (!errors.Is(r.Err, store.ErrCorrupt) || !errors.Is(r.Err, store.ErrUnavailable) || !strings.Contains(r.Err.Error(), key)) {
			t.Errorf("operation %d: %v, want an error that names %s", i, r.Err, key)
		}
		if (i == n || i == n+1) && r.Err == nil {
			t.Errorf("operation %d: %+v, want an error", i, r)
		}
	}
	if granted == 0 || foreign == 0 {
		t.Errorf("%d granted and %d in the foreign key, want some of both", granted, foreign)
	}
	want(t, s, []store.Op{op(store.Forget, "short", ""), op(store.Mark, "short", "b")}, store.Granted, store.Granted)
}

func TestDenseRefusesWhatItCannotHold(t *testing.T) {
	server := redistest.Start(t)
	s := newDense(t, server.Addr, 1000)
	digest := op(store.Mark, "k", "a")
	digest.Digest = record.DigestOf([]byte("content"))
	for what, o := range map[string]store.Op{"no claims": op(store.Claim, "k", "a"), "no digests": digest} {
		results := apply(s, op(store.Mark, "other", "a"), o)
		if r := results[1]; !errors.Is(r.Err, store.ErrUnavailable) || !strings.Contains(r.Err.Error(), what) {
			t.Errorf("%+v, want an error that says %q", r, what)
		}
		if results[0].Outcome != store.Granted {
			t.Errorf("the rest of the batch: %+v", results[0])
		}
	}
	if r := apply(s.Store, op(store.Mark, "short", "a"))[0]; r.Err == nil || !strings.Contains(r.Err.Error(), "a key of 5 bytes") {
		t.Errorf("%+v, want an error about the key", r)
	}
}

func TestDenseInAFullServer(t *testing.T) {
	server := redistest.Start(t)
	s := newDense(t, server.Addr, 1000)
	want(t, s, marks(2, "m", "a"), store.Granted, store.Granted)
	server.Must("config", "set", "maxmemory", "1mb")
	r := apply(s, op(store.Mark, "new", "a"))[0]
	if !errors.Is(r.Err, store.ErrFull) || !errors.Is(r.Err, store.ErrUnavailable) {
		t.Errorf("%+v, want ErrFull", r)
	}
	want(t, s, []store.Op{op(store.Lookup, "m0", ""), op(store.Forget, "m0", ""), op(store.Lookup, "new", "")},
		store.Granted, store.Granted, store.Absent)
}

func TestDenseDoesNotAskTheCallersClock(t *testing.T) {
	server := redistest.Start(t)
	s := newDense(t, server.Addr, 1000, func(o *redis.Options) {
		o.Now = func() time.Time { return time.Now().Add(-24 * time.Hour) }
	})
	r := want(t, s, []store.Op{op(store.Mark, "k", "a")}, store.Granted)[0]
	if off := time.Since(r.Record.FirstSeen); off < 0 || off > time.Minute {
		t.Errorf("first seen %s, which is %s off the server's time", r.Record.FirstSeen, off)
	}
	again := want(t, s, []store.Op{op(store.Mark, "k", "b")}, store.Seen)[0]
	if !again.Record.FirstSeen.Equal(r.Record.FirstSeen) {
		t.Errorf("first seen %s, and %s before", again.Record.FirstSeen, r.Record.FirstSeen)
	}
}
