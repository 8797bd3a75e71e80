package redis_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
	"github.com/dedupd/dedup-operator/dedupd/store/storetest"
)

func compactly(o *redis.Options) { o.Spec.KeyFormat = v1alpha1.KeyCompact }

// newCompact is a store with keyFormat Compact that takes keys of any form.
func newCompact(tb testing.TB, addr string, edit ...func(*redis.Options)) hashed {
	tb.Helper()
	return hashed{newStore(tb, addr, append(edit, compactly)...)}
}

func compactFixtures(addr string, edit ...func(*redis.Options)) func(testing.TB) storetest.Fixture {
	return func(tb testing.TB) storetest.Fixture {
		tb.Helper()
		return storetest.Fixture{Store: newCompact(tb, addr, edit...)}
	}
}

func TestCompactConforms(t *testing.T) {
	server := redistest.Start(t)
	storetest.Run(t, func(tb testing.TB) storetest.Fixture {
		tb.Helper()
		f := compactFixtures(server.Addr)(tb)
		f.Faulty = func(seed uint64) (store.Store, func() int) {
			s, repeats := overFaults(tb, server.Addr, compactly)(seed)
			return hashed{s}, repeats
		}
		return f
	})
}

func TestCompactConformsInHashTables(t *testing.T) {
	server := redistest.Start(t, "--hash-max-listpack-entries", "0")
	storetest.Run(t, compactFixtures(server.Addr))
}

// TestCompactRefusesWhatItDidNotWrite, and goes on with the rest of the batch.
func TestCompactRefusesWhatItDidNotWrite(t *testing.T) {
	server := redistest.Start(t)
	s := newCompact(t, server.Addr)
	for _, o := range []store.Op{op(store.Mark, "short", "a"), op(store.Mark, "long", "a"), op(store.Mark, "string", "a")} {
		want(t, s, []store.Op{o}, store.Granted)
	}
	names := hashes(server)
	if len(names) != 3 {
		t.Fatalf("hashes %q, want three", names)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, prefix+"~c15:") {
			t.Errorf("a hash is called %q", name)
		}
	}
	id := key.IDOf("short")
	for _, name := range names {
		fields, _ := server.Must("hkeys", name).([]any)
		switch field := fields[0].(string); field {
		case string(id[1:]):
			server.Must("hset", name, field, "no")
		default:
			if id := key.IDOf("long"); field == string(id[1:]) {
				server.Must("hset", name, field, strings.Repeat("\xff", 6)+"no record")
				continue
			}
			server.Must("set", name, "a string")
		}
	}
	for _, verb := range []store.Verb{store.Mark, store.Claim, store.Complete, store.Lookup} {
		results := apply(s, op(verb, "short", "b"), op(store.Mark, "fine"+string('0'+rune(verb)), "a"), op(verb, "long", "b"), op(verb, "string", "b"))
		for i, r := range results {
			if i == 1 {
				if r.Outcome != store.Granted {
					t.Errorf("the rest of the batch: %+v", r)
				}
				continue
			}
			if !errors.Is(r.Err, store.ErrCorrupt) || !strings.Contains(r.Err.Error(), "~c15:") {
				t.Errorf("verb %d, operation %d: %+v, want an error that names the hash", verb, i, r)
			}
		}
	}
	want(t, s, []store.Op{op(store.Forget, "short", ""), op(store.Forget, "long", "")}, store.Granted, store.Granted)
	if r := apply(s, op(store.Forget, "string", ""))[0]; !errors.Is(r.Err, store.ErrCorrupt) {
		t.Errorf("%+v, want ErrCorrupt", r)
	}
}
