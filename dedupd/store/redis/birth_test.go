package redis_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

const birthKey = "dedup:~birth"

func born(o *redis.Options) { o.BirthKey = birthKey }

// since is when a store says that its history begins.
func since(t *testing.T, s *redis.Store) time.Time {
	t.Helper()
	h := s.Health(t.Context())
	if h.Err != nil {
		t.Fatal(h.Err)
	}
	return h.HistorySince
}

// moves expects that every store sees one and the same later beginning of history, and that it stays.
func moves(t *testing.T, before time.Time, stores ...*redis.Store) {
	t.Helper()
	after := since(t, stores[0])
	if !after.After(before) {
		t.Fatalf("history since %s, want a later time than %s", after, before)
	}
	stays(t, after, stores...)
}

func stays(t *testing.T, at time.Time, stores ...*redis.Store) {
	t.Helper()
	for range 2 {
		for i, s := range stores {
			if got := since(t, s); !got.Equal(at) {
				t.Errorf("store %d: history since %s, want %s", i, got, at)
			}
		}
	}
}

func TestALossOfHistoryIsNoticed(t *testing.T) {
	tests := map[string]func(server *redistest.Server, beat func(), saved any){
		"by a flush": func(server *redistest.Server, _ func(), _ any) { server.Must("flushall") },
		"by a restart without persistence": func(server *redistest.Server, _ func(), _ any) {
			server.Restart()
		},
		"by a restore of a backup": func(server *redistest.Server, _ func(), saved any) {
			server.Must("set", birthKey, saved)
		},
		"by a restore, where others have beaten since": func(server *redistest.Server, beat func(), saved any) {
			server.Must("set", birthKey, saved)
			// It has the number that the first store's own last beat had.
			beat()
			beat()
		},
		"by a value of another's": func(server *redistest.Server, _ func(), _ any) {
			server.Must("del", birthKey)
			server.Must("rpush", birthKey, "x")
		},
	}
	for name, lose := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			a, b, c := newStore(t, server.Addr, born), newStore(t, server.Addr, born), newStore(t, server.Addr, born)
			stores := []*redis.Store{a, b, c}
			first := since(t, a)
			if off := time.Since(first); off.Abs() > time.Minute {
				t.Fatalf("history since %s, which is %s ago", first, off)
			}
			stays(t, first, stores...)
			saved := server.Must("get", birthKey)
			stays(t, first, a)
			lose(server, func() { stays(t, first, newStore(t, server.Addr, born)) }, saved)
			moves(t, first, stores...)
		})
	}
}

func TestHistoryGoesOnWhereNothingIsLost(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes")
	proxy := redistest.StartProxy(t, server.Addr)
	first := since(t, newStore(t, proxy.Addr, born))
	lost := 0
	var mu sync.Mutex
	proxy.Set(func(request []string) redistest.Fate {
		mu.Lock()
		defer mu.Unlock()
		if request[0] == "eval" {
			lost++
		}
		return redistest.Fate{Drop: request[0] == "eval" && lost%5 == 0}
	})
	var wg sync.WaitGroup
	for range 4 {
		s := newStore(t, proxy.Addr, born)
		for range 2 { // a slow answer and the next question
			wg.Go(func() {
				for range 50 {
					if h := s.Health(t.Context()); h.Err == nil && !h.HistorySince.Equal(first) {
						t.Errorf("history since %s, want %s", h.HistorySince, first)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	proxy.Set(nil)
	s := newStore(t, server.Addr, born)
	stays(t, first, s)
	server.Restart()
	stays(t, first, s, newStore(t, server.Addr, born))
	if ttl, ok := server.Must("pttl", birthKey).(int64); !ok || ttl <= 0 || time.Duration(ttl)*time.Millisecond > 90*24*time.Hour {
		t.Errorf("the marker expires in %d ms", ttl)
	}
	if n, ok := server.Must("strlen", birthKey).(int64); !ok || n > 300 {
		t.Errorf("the marker has %d bytes", n)
	}
	mu.Lock()
	defer mu.Unlock()
	if lost < 10 {
		t.Errorf("%d heartbeats: too few to show anything", lost)
	}
}

func TestAFailoverThatLosesWritesIsNoticed(t *testing.T) {
	top := redistest.Config{}.StartSentinel(t, 1, 1, time.Second)
	s := newStore(t, "", on(top), born, within(5*time.Second))
	first := since(t, s)
	primary, replica := top.Servers[0], top.Servers[1]
	eventually(t, "the replica has the marker", func() bool {
		return replica.Must("get", birthKey) == primary.Must("get", birthKey)
	})
	replica.Pause()
	// Without a link, or the kernel would keep for the replica what it is sent meanwhile.
	primary.Must("client", "kill", "type", "replica")
	stays(t, first, s)
	primary.Stop()
	replica.Resume()
	eventually(t, "the promoted server tells of the loss", func() bool {
		h := s.Health(t.Context())
		return h.Err == nil && h.HistorySince.After(first)
	})
}

func TestEachPrimaryOfAClusterHasItsHistory(t *testing.T) {
	top := redistest.Config{}.StartCluster(t, 3, 0)
	s, other := newStore(t, "", on(top), born), newStore(t, "", on(top), born)
	first := since(t, s)
	stays(t, first, s, other)
	for i, server := range top.Servers {
		keys := fmt.Sprint(server.Must("keys", birthKey+"*"))
		if n := strings.Count(keys, birthKey); n < 5 || n > 6 {
			t.Errorf("primary %d has %d markers, want a third of 16: %s", i, n, keys)
		}
	}
	t.Run("a slot that moves takes its marker along", func(t *testing.T) {
		const marker = birthKey + "{10}"
		slot := top.Servers[0].Must("cluster", "keyslot", marker)
		source, target := top.Servers[0], top.Servers[1]
		target.Must("cluster", "setslot", slot, "importing", source.Must("cluster", "myid"))
		source.Must("cluster", "setslot", slot, "migrating", target.Must("cluster", "myid"))
		source.Must("migrate", "127.0.0.1", port(t, target.Addr), marker, 0, 5000)
		stays(t, first, s, other)
		for _, server := range []*redistest.Server{target, source} {
			server.Must("cluster", "setslot", slot, "node", target.Must("cluster", "myid"))
		}
		stays(t, first, s, other)
	})
	t.Run("one primary is flushed", func(t *testing.T) {
		top.Servers[2].Must("flushall")
		moves(t, first, s, other)
	})
}

func TestAServerThatTakesNoMarkerHasNoKnownHistory(t *testing.T) {
	server := redistest.Start(t)
	server.Must("acl", "setuser", "joe", "on", ">pw", "~*", "+@all", "-eval")
	dir := secrets(t, map[string]string{"creds/username": "joe", "creds/password": "pw"})
	s := newStore(t, server.Addr, credentials(dir, "creds"), born)
	if h := s.Health(t.Context()); h.Err != nil || !h.HistorySince.IsZero() {
		t.Errorf("health %+v, want no error and no history", h)
	}
	if h := newStore(t, server.Addr).Health(t.Context()); h.Err != nil || !h.HistorySince.IsZero() {
		t.Errorf("without a key for it: health %+v, want no error and no history", h)
	}
}

func TestAServerThatTakesNoWritesIsNotWell(t *testing.T) {
	server := redistest.Start(t, "--min-replicas-to-write", "1")
	h := newStore(t, server.Addr, born).Health(t.Context())
	if h.Err == nil || !strings.Contains(h.Err.Error(), "min-replicas-to-write") {
		t.Errorf("health %+v, want an error that says why", h)
	}
}
