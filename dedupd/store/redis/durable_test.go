package redis_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
	"github.com/dedupd/dedup-operator/dedupd/store/storetest"
)

// durably asks for one replica, for which a busy machine gets all the time that there may be.
func durably(o *redis.Options) {
	o.Spec.Durability = &v1alpha1.RedisDurability{Replicas: 1, Timeout: "500ms"}
}

// hasty does not wait for long.
func hasty(o *redis.Options) {
	o.Spec.Durability = &v1alpha1.RedisDurability{Replicas: 1, Timeout: "20ms"}
}

func TestDurabilityConforms(t *testing.T) {
	plain := redistest.Config{}
	for name, start := range map[string]func(*testing.T) *redistest.Topology{
		"Standalone": func(t *testing.T) *redistest.Topology { t.Helper(); return plain.StartStandalone(t, 1) },
		"Cluster":    func(t *testing.T) *redistest.Topology { t.Helper(); return plain.StartCluster(t, 3, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, fixtures("", on(start(t)), func(o *redis.Options) {
				o.Spec.Durability = &v1alpha1.RedisDurability{Replicas: 1, Timeout: "10s"} // for a busy machine
				o.Timeout = 30 * time.Second
			}))
		})
	}
}

func TestNothingIsGrantedThatNoReplicaHas(t *testing.T) {
	tests := map[string]struct {
		before []store.Op // durable
		op     store.Op
		fence  uint64
	}{
		"a mark":                 {op: op(store.Mark, "mark", "a")},
		"a claim":                {op: op(store.Claim, "claim", "a"), fence: 1},
		"a takeover":             {before: []store.Op{op(store.Claim, "t", "x"), held(op(store.Release, "t", "x"), 1)}, op: op(store.Claim, "t", "a"), fence: 2},
		"a completion":           {before: []store.Op{op(store.Claim, "c", "a")}, op: held(op(store.Complete, "c", "a"), 1), fence: 1},
		"a release":              {before: []store.Op{op(store.Claim, "r", "a")}, op: held(op(store.Release, "r", "a"), 1), fence: 1},
		"a renewal":              {before: []store.Op{op(store.Claim, "n", "a")}, op: held(op(store.Renew, "n", "a"), 1), fence: 1},
		"an attempt's own mark":  {before: []store.Op{op(store.Mark, "own", "a")}, op: op(store.Mark, "own", "a")},
		"an attempt's own claim": {before: []store.Op{op(store.Claim, "mine", "a")}, op: op(store.Claim, "mine", "a"), fence: 1},
	}
	for _, name := range []string{"", redistest.Redis8, redistest.Valkey8} {
		t.Run("redis-server "+name, func(t *testing.T) {
			t.Parallel()
			conf := redistest.Config{}
			if name != "" {
				conf.Program = redistest.Program(t, name)
			}
			top := conf.StartStandalone(t, 1)
			patient := newStore(t, "", on(top), durably)
			eventually(t, "a mark is durable", func() bool { return apply(patient, op(store.Mark, "warm", "a"))[0].Err == nil })
			for _, test := range tests {
				for _, o := range test.before {
					want(t, patient, []store.Op{o}, store.Granted)
				}
			}
			top.Servers[1].Pause()
			for what, test := range tests {
				for range 2 {
					// A connection of its own: on one that has written, a WAIT would be for that as well.
					r := apply(newStore(t, "", on(top), hasty), test.op)[0]
					if !errors.Is(r.Err, store.ErrUnavailable) || !strings.Contains(r.Err.Error(), "store.redis.durability: 0 of 1 replicas have acknowledged within 20ms") {
						t.Errorf("%s while the replica is paused: %+v, want an error of durability", what, r)
					}
				}
			}
			top.Servers[1].Resume()
			for what, test := range tests {
				eventually(t, what+" is durable, for the attempt that asked before", func() bool {
					r := apply(patient, test.op)[0]
					if r.Err == nil && (r.Outcome != store.Granted || r.Record.Fence != test.fence) {
						t.Fatalf("%s: %+v, want Granted with fence %d", what, r, test.fence)
					}
					return r.Err == nil
				})
			}
		})
	}
}

func TestRepeatsDoNotWaitForReplicas(t *testing.T) {
	top := redistest.Config{}.StartStandalone(t, 1)
	s := newStore(t, "", on(top), durably)
	eventually(t, "all is durable", func() bool {
		return apply(s, op(store.Mark, "m", "a"))[0].Err == nil && apply(s, op(store.Claim, "h", "a"))[0].Err == nil
	})
	top.Servers[1].Pause()
	defer top.Servers[1].Resume()
	if r := apply(s, op(store.Mark, "new", "a"))[0]; r.Err == nil {
		t.Fatalf("%+v, want an error", r)
	}
	before := top.Servers[0].Calls("wait")
	want(t, s, []store.Op{op(store.Mark, "m", "b"), op(store.Claim, "h", "b"), op(store.Mark, "m", "c")}, store.Seen, store.Held, store.Seen)
	if n := top.Servers[0].Calls("wait") - before; n != 0 {
		t.Errorf("%d WAIT for repeats alone, want none", n)
	}
	// A key that is forgotten on the way is no repeat.
	r := apply(s, op(store.Forget, "m", ""), op(store.Mark, "m", "d"))
	if r[0].Outcome != store.Granted || r[1].Err == nil {
		t.Errorf("%+v, want a deletion and a mark that is not durable", r)
	}
}

func TestOneWaitForABatch(t *testing.T) {
	batch := func(name string) (ops []store.Op, granted []store.Outcome) {
		for i := range 100 {
			ops = append(ops, op(store.Mark, fmt.Sprint(name, i), "a"))
			granted = append(granted, store.Granted)
		}
		return ops, granted
	}
	for name, top := range map[string]*redistest.Topology{
		"Standalone": redistest.Config{}.StartStandalone(t, 1),
		"Cluster":    redistest.Config{}.StartCluster(t, 3, 1),
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, "", on(top), durably)
			ops, granted := batch("first")
			eventually(t, "the replicas are in step", func() bool {
				for _, r := range apply(s, ops...) {
					if r.Err != nil {
						return false
					}
				}
				return true
			})
			primaries := top.Primaries()
			before := make([]int, len(primaries))
			for i, server := range primaries {
				before[i] = server.Calls("wait")
			}
			ops, _ = batch("second")
			want(t, s, ops, granted...)
			for i, server := range primaries {
				if n := server.Calls("wait") - before[i]; n != 1 {
					t.Errorf("%d WAIT at primary %d, want 1", n, i)
				}
			}
		})
	}
}

func TestAMovedSlotIsWaitedForWhereItIs(t *testing.T) {
	top := redistest.Config{}.StartCluster(t, 2, 1)
	s := newStore(t, "", on(top), durably)
	eventually(t, "the replicas of both primaries are in step", func() bool {
		for key := range 16 {
			if apply(s, op(store.Mark, fmt.Sprint("k", key), "a"))[0].Err != nil {
				return false
			}
		}
		return true
	})
	const key = "moved"
	slot := top.Servers[0].Must("cluster", "keyslot", key).(int64)
	source, target := top.Servers[slot/8192], top.Servers[1-slot/8192]
	target.Must("cluster", "setslot", slot, "importing", source.Must("cluster", "myid"))
	source.Must("cluster", "setslot", slot, "migrating", target.Must("cluster", "myid"))
	before := target.Calls("wait")
	want(t, s, []store.Op{op(store.Claim, key, "a")}, store.Granted) // by an ASK
	if target.Calls("wait") == before {
		t.Error("no WAIT where the key is")
	}
	for _, server := range []*redistest.Server{target, source} {
		server.Must("cluster", "setslot", slot, "node", target.Must("cluster", "myid"))
	}
	before = target.Calls("wait")
	want(t, s, []store.Op{held(op(store.Complete, key, "a"), 1)}, store.Granted) // by a MOVED
	if target.Calls("wait") == before {
		t.Error("no WAIT where the slot has moved to")
	}
}

func TestALostReplyIsWaitedForAgain(t *testing.T) {
	top := redistest.Config{}.StartStandalone(t, 1)
	proxy := redistest.StartProxy(t, top.Servers[0].Addr)
	s := newStore(t, proxy.Addr, durably)
	eventually(t, "the replica is in step", func() bool { return apply(s, op(store.Mark, "k", "a"))[0].Err == nil })
	for _, command := range []string{"set", "wait"} {
		t.Run(command, func(t *testing.T) {
			rule, dropped := redistest.DropOnce(command, 1)
			proxy.Set(rule)
			want(t, s, []store.Op{op(store.Mark, command+"1", "a"), op(store.Mark, command+"2", "a")}, store.Granted, store.Granted)
			if !dropped() {
				t.Error("no reply was dropped: this test shows nothing")
			}
			if top.Servers[0].Calls("evalsha")+top.Servers[0].Calls("eval") == 0 {
				t.Error("the marks were not written again: the WAIT was of another connection's")
			}
		})
	}
}

// TestAFailoverLosesNoDurableMark promotes a replica that was cut off while marks were made. What
// was granted with durability is there; without it, the control, marks are lost.
func TestAFailoverLosesNoDurableMark(t *testing.T) {
	lost := func(t *testing.T, edit ...func(*redis.Options)) (granted, lost int) {
		t.Helper()
		top := redistest.Config{}.StartStandalone(t, 1)
		primary, replica := top.Servers[0], top.Servers[1]
		s := newStore(t, "", append([]func(*redis.Options){on(top), within(2 * time.Second)}, edit...)...)
		eventually(t, "the replica is in step", func() bool { return apply(s, op(store.Mark, "k", "a"))[0].Err == nil })
		var mu sync.Mutex
		var keys []string
		stop := make(chan struct{})
		var load sync.WaitGroup
		for c := range 4 {
			load.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					key := fmt.Sprintf("%d:%d", c, i)
					if r := apply(s, op(store.Mark, key, "a"))[0]; r.Err == nil {
						mu.Lock()
						keys = append(keys, key)
						mu.Unlock()
					}
				}
			})
		}
		pause(200 * time.Millisecond)
		eventually(t, "some marks are granted", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(keys) >= 5
		})
		replica.Pause()
		primary.Must("client", "kill", "type", "replica")
		pause(300 * time.Millisecond)
		primary.Stop()
		close(stop)
		load.Wait()
		replica.Resume()
		replica.Must("replicaof", "no", "one")
		after := newStore(t, replica.Addr)
		for _, key := range keys {
			if r := apply(after, op(store.Lookup, key, ""))[0]; r.Outcome != store.Granted {
				lost++
			}
		}
		return len(keys), lost
	}
	t.Run("with durability", func(t *testing.T) {
		t.Parallel()
		granted, lost := lost(t, durably)
		if lost > 0 {
			t.Errorf("%d of %d granted marks are lost", lost, granted)
		}
	})
	t.Run("without it, the control", func(t *testing.T) {
		t.Parallel()
		granted, lost := lost(t)
		if lost == 0 {
			t.Errorf("none of %d marks is lost: this test could not fail", granted)
		}
	})
}

func TestWAITHasToBePermitted(t *testing.T) {
	server := redistest.Start(t)
	server.Must("acl", "setuser", "joe", "on", ">pw", "~*", "+@all", "-wait")
	dir := secrets(t, map[string]string{"creds/username": "joe", "creds/password": "pw"})
	s := newStore(t, server.Addr, credentials(dir, "creds"), durably)
	r := apply(s, op(store.Mark, "k", "a"))[0]
	if !errors.Is(r.Err, store.ErrUnavailable) || !strings.Contains(r.Err.Error(), "store.redis.durability: the server's user may not run WAIT") {
		t.Errorf("%+v, want an error that names WAIT", r)
	}
}

// What lacks acknowledgements is as a store that does not answer: the policy says what then.
func TestOnStoreFailureDecidesAboutWhatIsNotDurable(t *testing.T) {
	top := redistest.Config{}.StartStandalone(t, 1)
	s := newStore(t, "", on(top), hasty)
	patient := newStore(t, "", on(top), durably)
	check := func(s store.Store, failure v1alpha1.FailurePolicy, id, attempt string) *engine.Answer {
		t.Helper()
		p := &v1alpha1.DedupPolicy{Spec: v1alpha1.DedupPolicySpec{
			Key:   v1alpha1.KeySpec{Strategy: v1alpha1.StrategyMessageID, MessageID: &v1alpha1.MessageIDKey{Header: "id"}},
			TTL:   "1h",
			Store: v1alpha1.StoreSpec{Redis: &top.Spec}, OnStoreFailure: failure,
		}}
		p.Name = "orders"
		compiled, errs := policy.Compile(p)
		if len(errs) > 0 {
			t.Fatal(errs.ToAggregate())
		}
		e := engine.New(compiled, s, engine.Options{Now: time.Now, Timeout: 10 * time.Second})
		return &e.Check(t.Context(), []engine.Request{{
			Consumer: "a", Attempt: attempt, Message: key.Message{Headers: key.MapHeaders{"id": id}},
		}})[0]
	}
	eventually(t, "the replica is in step", func() bool { return apply(patient, op(store.Mark, "k", "a"))[0].Err == nil })
	top.Servers[1].Pause()
	var failed *engine.Error
	if a := check(s, v1alpha1.FailClosed, "1", "x"); !errors.As(a.Err, &failed) || failed.Code != engine.Unavailable {
		t.Errorf("FailClosed: %+v, want UNAVAILABLE", a)
	}
	if a := check(s, v1alpha1.FailOpen, "2", "x"); a.Err != nil || a.Decision != engine.Unchecked {
		t.Errorf("FailOpen: %+v, want UNCHECKED", a)
	}
	top.Servers[1].Resume()
	eventually(t, "FRESH for the same attempt", func() bool {
		a := check(patient, v1alpha1.FailClosed, "1", "x")
		if a.Err == nil && a.Decision != engine.Fresh {
			t.Fatalf("the same attempt: %+v, want FRESH", a)
		}
		return a.Err == nil
	})
	if a := check(patient, v1alpha1.FailClosed, "1", "y"); a.Decision != engine.Duplicate {
		t.Errorf("another attempt: %+v, want DUPLICATE", a)
	}
}

func TestMarksInSharedHashesAreDurable(t *testing.T) {
	for _, format := range []v1alpha1.KeyFormat{v1alpha1.KeyCompact, v1alpha1.KeyDense} {
		t.Run(string(format), func(t *testing.T) {
			t.Parallel()
			top := redistest.Config{}.StartStandalone(t, 1)
			// Each time by a connection of its own, as above.
			fresh := func() store.Store {
				return hashed{newStore(t, "", on(top), durably, func(o *redis.Options) { o.Spec.KeyFormat = format })}
			}
			eventually(t, "the replica is in step", func() bool { return apply(fresh(), op(store.Mark, "k", "a"))[0].Err == nil })
			top.Servers[1].Pause()
			for range 2 {
				if r := apply(fresh(), op(store.Mark, "m", "a"))[0]; !errors.Is(r.Err, store.ErrUnavailable) {
					t.Errorf("%+v while the replica is paused, want an error", r)
				}
			}
			top.Servers[1].Resume()
			eventually(t, "the mark is durable", func() bool { return apply(fresh(), op(store.Mark, "m", "a"))[0].Outcome == store.Granted })
			want(t, fresh(), []store.Op{op(store.Mark, "m", "b")}, store.Seen)
		})
	}
}
