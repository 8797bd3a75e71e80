package redis_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// scripts is how often a server has run the script.
func scripts(s *redistest.Server) int { return s.Calls("evalsha") + s.Calls("eval") }

// informed is a store that knows what its server can do.
func informed(t *testing.T, addr string, edit ...func(*redis.Options)) *redis.Store {
	t.Helper()
	s := newStore(t, addr, edit...)
	if h := s.Health(t.Context()); h.Err != nil {
		t.Fatal(h.Err)
	}
	return s
}

func TestAHolderSettlesByOneNativeCommandWhereTheServerCompares(t *testing.T) {
	const n = 100
	for program, native := range map[string]bool{redistest.Valkey8: true, redistest.Redis8: false} {
		t.Run(program, func(t *testing.T) {
			server := redistest.Config{Program: redistest.Program(t, program)}.Start(t)
			s := informed(t, server.Addr)
			var claims, renewals, completions []store.Op
			var granted []store.Outcome
			for i := range n {
				key := fmt.Sprint("k", i)
				claims = append(claims, op(store.Claim, key, "a"))
				renewals = append(renewals, held(op(store.Renew, key, "a"), 1))
				completions = append(completions, held(op(store.Complete, key, "a"), 1))
				granted = append(granted, store.Granted)
			}
			want(t, s, claims, granted...)
			want(t, s, renewals, granted...)
			want(t, s, completions, granted...)
			if got := scripts(server); (got == 0) != native {
				t.Errorf("%d calls of the script, native %t", got, native)
			}
			if sets := server.Calls("set"); sets != 3*n {
				t.Errorf("%d SET, want %d: one for each operation", sets, 3*n)
			}
		})
	}
}

func TestAComparisonThatFailsGoesToTheScript(t *testing.T) {
	server := redistest.Config{Program: redistest.Program(t, redistest.Valkey8)}.Start(t)
	proxy := redistest.StartProxy(t, server.Addr)
	s, other := informed(t, proxy.Addr), newStore(t, server.Addr)
	tests := map[string]struct {
		meanwhile func(key string)
		want      store.Outcome
	}{
		"another has taken over": {func(k string) {
			want(t, other, []store.Op{held(op(store.Release, k, "a"), 1), op(store.Claim, k, "b")}, store.Granted, store.Granted)
		}, store.Stale},
		"it was completed through another process": {func(k string) {
			want(t, other, []store.Op{held(op(store.Complete, k, "a"), 1)}, store.Granted)
		}, store.Granted},
		"it was forgotten": {func(k string) { want(t, other, []store.Op{op(store.Forget, k, "")}, store.Granted) }, store.Absent},
		"the reply is lost": {func(string) {
			rule, _ := redistest.DropOnce("set", 1)
			proxy.Set(rule)
		}, store.Granted},
		"the server is out of memory": {func(string) {
			server.Must("config", "set", "maxmemory", "1")
		}, store.Granted},
		"an older server has taken its place": {func(string) {
			proxy.Set(func(request []string) redistest.Fate {
				if request[0] == "set" && len(request) > 4 && request[3] == "ifeq" {
					return redistest.Fate{Say: "-ERR syntax error\r\n"}
				}
				return redistest.Fate{}
			})
		}, store.Granted},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			defer func() {
				proxy.Set(nil)
				server.Must("config", "set", "maxmemory", "0")
			}()
			if h := s.Health(t.Context()); h.Err != nil {
				t.Fatal(h.Err)
			}
			key := "key of " + name
			want(t, s, []store.Op{op(store.Claim, key, "a")}, store.Granted)
			before := scripts(server)
			test.meanwhile(key)
			want(t, s, []store.Op{held(op(store.Complete, key, "a"), 1)}, test.want)
			if name != "it was forgotten" && scripts(server) == before {
				t.Error("the script was not asked")
			}
		})
	}
}

// A sentinel that knows no primary answers nil, as does a server that has nothing under a key.
func TestWhatNoServerWasAskedIsNotSettled(t *testing.T) {
	top := redistest.Config{Program: redistest.Program(t, redistest.Valkey8)}.StartSentinel(t, 0, 1, time.Hour)
	s := informed(t, "", on(top), within(2*time.Second))
	want(t, s, []store.Op{op(store.Claim, "k", "a")}, store.Granted)
	top.Sentinels[0].Must("sentinel", "remove", redistest.MasterName)
	top.Servers[0].Must("client", "kill", "type", "normal")
	if r := apply(s, held(op(store.Complete, "k", "a"), 1))[0]; !errors.Is(r.Err, store.ErrUnavailable) {
		t.Errorf("%+v, want that it is not known", r)
	}
}

func TestASettledRecordIsTheSameByEitherWay(t *testing.T) {
	server := redistest.Config{Program: redistest.Program(t, redistest.Valkey8)}.Start(t)
	native, script := informed(t, server.Addr), newStore(t, server.Addr)
	for _, verb := range []store.Verb{store.Complete, store.Release, store.Renew} {
		var ends []store.Result
		for i, s := range []*redis.Store{native, script} {
			key := fmt.Sprint(verb, i)
			r := want(t, s, []store.Op{op(store.Claim, key, "a")}, store.Granted)[0]
			o := held(op(verb, key, "a"), r.Record.Fence)
			o.TTL, o.Lease = 2*time.Hour, o.Lease*2
			said := want(t, s, []store.Op{o}, store.Granted)[0]
			stands := want(t, script, []store.Op{op(store.Lookup, key, "")}, store.Granted)[0]
			if said.Record != stands.Record {
				t.Errorf("verb %d, way %d: said %+v, stands %+v", verb, i, said.Record, stands.Record)
			}
			if stands.Remaining > 2*time.Hour || stands.Remaining < 119*time.Minute {
				t.Errorf("verb %d, way %d: remaining %s", verb, i, stands.Remaining)
			}
			stands.Record.FirstSeen, stands.Remaining, stands.RetryAfter = time.Time{}, 0, 0
			ends = append(ends, stands)
		}
		if ends[0] != ends[1] {
			t.Errorf("verb %d: natively %+v, by the script %+v", verb, ends[0], ends[1])
		}
	}
}
