package redis_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
	"github.com/dedupd/dedup-operator/dedupd/store/storetest"
)

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	redistest.Eventually(t, what, done)
}

func port(t *testing.T, addr string) string {
	t.Helper()
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCluster(t *testing.T) {
	servers := redistest.Config{}.StartCluster(t, 3, 0).Servers
	inCluster := func(o *redis.Options) { o.Spec.Mode = v1alpha1.RedisCluster }
	t.Run("conforms", func(t *testing.T) {
		storetest.Run(t, fixtures(servers[0].Addr, inCluster))
	})
	t.Run("conforms with many messages in a hash", func(t *testing.T) {
		t.Run("Dense", func(t *testing.T) { storetest.Run(t, denseFixtures(servers[0].Addr, inCluster)) })
		t.Run("Compact", func(t *testing.T) { storetest.Run(t, compactFixtures(servers[0].Addr, inCluster)) })
	})
	t.Run("a hash is sent to its node, one call for all of its messages", func(t *testing.T) {
		s := newDense(t, servers[0].Addr, 1000, inCluster)
		for _, server := range servers {
			server.Must("config", "resetstat")
		}
		const n, hashes = 320, 16
		want(t, s, marks(n, "dense", "a"), all(n, store.Granted)...)
		want(t, s, marks(n, "dense", "b"), all(n, store.Seen)...)
		calls := 0
		for _, server := range servers {
			calls += server.Calls("evalsha")
		}
		if calls > 2*hashes {
			t.Errorf("%d calls for two batches on %d hashes", calls, hashes)
		}
	})
	t.Run("a batch goes to every node, one command per message", func(t *testing.T) {
		s := newStore(t, servers[0].Addr, inCluster)
		before := 0
		for _, server := range servers {
			server.Must("config", "resetstat")
		}
		var ops []store.Op
		var granted []store.Outcome
		for i := range 300 {
			ops = append(ops, op(store.Mark, fmt.Sprint("spread", i), "a"))
			granted = append(granted, store.Granted)
		}
		want(t, s, ops, granted...)
		for _, server := range servers {
			n := server.Calls("set")
			if n == 0 {
				t.Errorf("%s got none of the batch", server.Addr)
			}
			before += n
		}
		if before != len(ops) {
			t.Errorf("%d SET for %d messages", before, len(ops))
		}
	})
	t.Run("a moved slot is followed, scripts included", func(t *testing.T) {
		s := newStore(t, servers[0].Addr, inCluster)
		const key = "moved"
		want(t, s, []store.Op{op(store.Claim, key, "a")}, store.Granted)
		slot := servers[0].Must("cluster", "keyslot", key).(int64)
		source := servers[slot*3/16384]
		target := servers[(slot*3/16384+1)%3]
		target.Must("script", "flush")
		id := func(s *redistest.Server) any { return s.Must("cluster", "myid") }
		target.Must("cluster", "setslot", slot, "importing", id(source))
		source.Must("cluster", "setslot", slot, "migrating", id(target))
		source.Must("migrate", "127.0.0.1", port(t, target.Addr), key, 0, 5000)
		// In between, the source answers ASK.
		want(t, s, []store.Op{op(store.Claim, key, "b")}, store.Held)
		for _, server := range []*redistest.Server{target, source} {
			server.Must("cluster", "setslot", slot, "node", id(target))
		}
		want(t, s, []store.Op{op(store.Claim, key, "b"), held(op(store.Complete, key, "a"), 1), op(store.Mark, key, "b")},
			store.Held, store.Granted, store.Seen)
	})
	t.Run("a lost reply makes no duplicate", func(t *testing.T) {
		// In mode Cluster, go-redis repeats on MaxRedirects, whatever MaxRetries says.
		for _, server := range servers {
			server.Must("config", "resetstat")
		}
		rule, dropped := redistest.DropOnce("set", 2)
		proxies := map[string]string{}
		for _, server := range servers {
			proxy := redistest.StartProxy(t, server.Addr)
			proxy.Set(func(request []string) redistest.Fate {
				if request[0] == "cluster" {
					// The nodes are to be found behind their proxies.
					return redistest.Fate{Say: slots(proxies, servers)}
				}
				return rule(request)
			})
			proxies[server.Addr] = proxy.Addr
		}
		s := newStore(t, proxies[servers[0].Addr], inCluster)
		var ops []store.Op
		var granted []store.Outcome
		for i := range 30 {
			ops = append(ops, op(store.Mark, fmt.Sprint("dropped", i), "a"))
			granted = append(granted, store.Granted)
		}
		want(t, s, ops, granted...)
		if !dropped() {
			t.Error("no reply was dropped: the test shows nothing")
		}
	})
	t.Run("health is the worst of the nodes'", func(t *testing.T) {
		s := newStore(t, servers[0].Addr, inCluster)
		for _, server := range servers {
			server.Must("config", "set", "appendonly", "yes")
		}
		if h := s.Health(t.Context()); h.Err != nil || h.Safety != store.Safe {
			t.Errorf("health %+v, want Safe", h)
		}
		servers[2].Must("config", "set", "maxmemory-policy", "allkeys-lru")
		if h := s.Health(t.Context()); h.Err != nil || h.Safety != store.Unsafe || !strings.Contains(h.Reason, "allkeys-lru") {
			t.Errorf("health %+v, want Unsafe because of one node", h)
		}
	})
	t.Run("a node that is gone is an error for its keys", func(t *testing.T) {
		s := newStore(t, servers[0].Addr, inCluster, within(2*time.Second))
		want(t, s, []store.Op{op(store.Mark, "x", "a")}, store.Granted)
		servers[1].Stop()
		var failed int
		for _, r := range apply(s, ops30("gone")...) {
			switch {
			case r.Err == nil && r.Outcome == store.Granted:
			case errors.Is(r.Err, store.ErrUnavailable) && r.Outcome == 0:
				failed++
			default:
				t.Errorf("%+v, want Granted or ErrUnavailable", r)
			}
		}
		if failed == 0 {
			t.Error("nothing failed without one of three nodes")
		}
	})
}

func ops30(keys string) []store.Op {
	var ops []store.Op
	for i := range 30 {
		ops = append(ops, op(store.Mark, fmt.Sprint(keys, i), "a"))
	}
	return ops
}

// slots is the answer to CLUSTER SLOTS that names each server's proxy.
func slots(proxies map[string]string, servers []*redistest.Server) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(servers))
	for i, s := range servers {
		host, port, _ := net.SplitHostPort(proxies[s.Addr])
		fmt.Fprintf(&b, "*3\r\n:%d\r\n:%d\r\n*2\r\n$%d\r\n%s\r\n:%s\r\n",
			i*16384/len(servers), (i+1)*16384/len(servers)-1, len(host), host, port)
	}
	return strings.TrimSuffix(b.String(), "\r\n") + "\r\n"
}

func TestSentinel(t *testing.T) {
	for name, password := range map[string]string{"without passwords": "", "with a password for servers and sentinels": "pw"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var auth []string
			if password != "" {
				auth = []string{"--requirepass", password}
			}
			primary := redistest.Start(t, append(auth, "--masterauth", password)...)
			replica := redistest.Start(t, append(auth, "--masterauth", password, "--replicaof", "127.0.0.1 "+port(t, primary.Addr))...)
			sentinel := redistest.Start(t, append(auth, "--sentinel")...)
			sentinel.Must("sentinel", "monitor", "orders", "127.0.0.1", port(t, primary.Addr), 1)
			// The failover is asked for: a busy machine must not make one.
			sentinel.Must("sentinel", "set", "orders", "down-after-milliseconds", 60_000)
			if password != "" {
				sentinel.Must("sentinel", "set", "orders", "auth-pass", password)
			}
			eventually(t, "the sentinel knows the replica", func() bool {
				return strings.Contains(fmt.Sprint(sentinel.Must("sentinel", "replicas", "orders")), port(t, replica.Addr)) &&
					strings.Contains(fmt.Sprint(replica.Must("info", "replication")), "master_link_status:up")
			})
			dir := secrets(t, map[string]string{"creds/password": password})
			s := newStore(t, sentinel.Addr, within(3*time.Second), func(o *redis.Options) {
				o.Spec.Mode, o.Spec.MasterName = v1alpha1.RedisSentinel, "orders"
				if password != "" {
					credentials(dir, "creds")(o)
				}
			})
			want(t, s, []store.Op{op(store.Claim, "k", "a")}, store.Granted)
			want(t, s, []store.Op{op(store.Claim, "k", "b"), held(op(store.Complete, "k", "a"), 1)}, store.Held, store.Granted)
			eventually(t, "the replica has it", func() bool {
				n, _ := replica.Must("strlen", "k").(int64)
				state, _ := replica.Must("getrange", "k", 0, 0).(string)
				return n == 41 && state == "\x13"
			})
			eventually(t, "the sentinel begins the failover", func() bool {
				_, err := sentinel.Do("sentinel", "failover", "orders")
				return err == nil
			})
			eventually(t, "the replica is promoted", func() bool {
				info, err := replica.Do("info", "replication")
				return err == nil && strings.Contains(fmt.Sprint(info), "role:master")
			})
			primary.Stop()
			eventually(t, "the promoted server is found", func() bool {
				r := apply(s, op(store.Claim, "k", "b"))[0]
				if r.Err != nil && !errors.Is(r.Err, store.ErrUnavailable) || r.Outcome == store.Granted {
					t.Fatalf("during the failover: %+v", r)
				}
				return r.Outcome == store.Seen
			})
			// The promoted server has none of the scripts.
			want(t, s, []store.Op{op(store.Claim, "n", "a")}, store.Granted)
			want(t, s, []store.Op{held(op(store.Complete, "n", "a"), 1)}, store.Granted)
			if h := s.Health(t.Context()); h.Err != nil {
				t.Errorf("health after the failover: %+v", h)
			}
		})
	}
}

func TestAServerThatLoadsItsData(t *testing.T) {
	server := redistest.Start(t, "--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024", "--rdbcompression", "no")
	s := newStore(t, server.Addr, within(300*time.Millisecond))
	want(t, s, []store.Op{op(store.Mark, "k", "a")}, store.Granted)
	server.Must("eval", "for i = 1, 2000 do redis.call('set', 'filler' .. i, string.rep('x', 500)) end", 0)
	server.Must("save")
	server.Restart()
	refused := 0
	eventually(t, "the data is loaded", func() bool {
		r := apply(s, op(store.Mark, "k", "b"))[0]
		if r.Err != nil && strings.Contains(r.Err.Error(), "loading its data") {
			refused++
		}
		if r.Err != nil && !errors.Is(r.Err, store.ErrUnavailable) || r.Outcome == store.Granted {
			t.Fatalf("while the server loads: %+v", r)
		}
		return r.Outcome == store.Seen
	})
	if refused == 0 {
		t.Error("the server was never seen loading: this test shows nothing")
	}
}
