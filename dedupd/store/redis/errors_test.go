package redis_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
	"github.com/dedupd/dedup-operator/hack/freeport"
)

// secrets writes files like those of mounted Secrets and returns their folder.
func secrets(tb testing.TB, files map[string]string) string {
	tb.Helper()
	dir := tb.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

func credentials(dir, name string) func(*redis.Options) {
	return func(o *redis.Options) {
		o.SecretsDir = dir
		o.Spec.CredentialsSecretRef = &v1alpha1.SecretRef{Name: name}
	}
}

// lab makes what a case of a table needs.
type lab struct{ *testing.T }

func (l lab) store(addr string, edit ...func(*redis.Options)) *redis.Store {
	l.Helper()
	return newStore(l.T, addr, edit...)
}

func (l lab) start(args ...string) *redistest.Server {
	l.Helper()
	return redistest.Start(l.T, args...)
}

// says is a proxy that puts an answer in the place of those to a command.
func (l lab) says(command, answer string) string {
	l.Helper()
	proxy := redistest.StartProxy(l.T, l.start().Addr)
	proxy.Set(func(request []string) redistest.Fate {
		if request[0] == command {
			return redistest.Fate{Say: answer + "\r\n"}
		}
		return redistest.Fate{}
	})
	return proxy.Addr
}

// listens accepts connections and gives each to handle.
func (l lab) listens(handle func(net.Conn)) string {
	l.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			handle(conn)
		}
	}()
	return listener.Addr().String()
}

func behindSentinels(o *redis.Options) {
	o.Spec.Mode, o.Spec.MasterName = v1alpha1.RedisSentinel, "orders"
}

// TestEachFailureSaysWhatWouldBeRight: an error is an error, by the deadline, for each
// operation of a batch; it is of the right kind, it names the field, and it tells no secret.
func TestEachFailureSaysWhatWouldBeRight(t *testing.T) {
	const secret = "correct-horse"
	wrong := secrets(t, map[string]string{"creds/password": "wr0ng-battery\n", "creds/username": "joe"})
	tests := map[string]struct {
		store func(l lab) *redis.Store
		kind  error
		want  []string
	}{
		"an address that does not resolve": {
			func(l lab) *redis.Store { return l.store("redis.invalid:6379", within(3*time.Second)) },
			store.ErrUnavailable, []string{"store.redis.addresses redis.invalid:6379: no such host"},
		},
		"an address where nothing listens": {
			func(l lab) *redis.Store { return l.store("127.0.0.1:1", within(time.Second)) },
			store.ErrUnavailable, []string{"store.redis.addresses 127.0.0.1:1", "connection refused"},
		},
		"an address that swallows": {
			func(l lab) *redis.Store {
				return l.store(l.listens(func(net.Conn) {}), within(300*time.Millisecond))
			},
			store.ErrUnavailable, []string{"store.redis.addresses 127.0.0.1:", "no answer in time", "300ms"},
		},
		"a server that answers slowly": {
			func(l lab) *redis.Store {
				proxy := redistest.StartProxy(l.T, l.start().Addr)
				proxy.Set(func(request []string) redistest.Fate {
					if request[0] == "set" {
						return redistest.Fate{Delay: 2 * time.Second}
					}
					return redistest.Fate{}
				})
				return l.store(proxy.Addr, within(300*time.Millisecond))
			},
			store.ErrUnavailable, []string{"no answer in time", "300ms"},
		},
		"a wrong password": {
			func(l lab) *redis.Store {
				server := l.start("--requirepass", secret)
				return l.store(server.Addr, credentials(wrong, "creds"))
			},
			store.ErrUnavailable, []string{"store.redis.credentialsSecretRef creds", "username and password"},
		},
		"a password that is wanted and not given": {
			func(l lab) *redis.Store {
				return l.store(l.start("--requirepass", secret).Addr)
			},
			store.ErrUnavailable, []string{"store.redis.credentialsSecretRef: not set"},
		},
		"a Secret without the key password": {
			func(l lab) *redis.Store {
				dir := secrets(l.T, map[string]string{"creds/username": "joe"})
				return l.store(l.start("--requirepass", secret).Addr, credentials(dir, "creds"))
			},
			store.ErrUnavailable, []string{"store.redis.credentialsSecretRef creds: key password is not there", "creds/password"},
		},
		"an empty password": {
			func(l lab) *redis.Store {
				dir := secrets(l.T, map[string]string{"creds/password": ""})
				return l.store(l.start("--requirepass", secret).Addr, credentials(dir, "creds"))
			},
			store.ErrUnavailable, []string{"store.redis.credentialsSecretRef creds: key password is empty"},
		},
		"a user without permissions": {
			func(l lab) *redis.Store {
				server := l.start()
				server.Must("acl", "setuser", "joe", "on", ">wr0ng-battery", "+ping", "+get", "~*")
				return l.store(server.Addr, credentials(wrong, "creds"))
			},
			store.ErrUnavailable, []string{"may not", "set, get, pttl", "NOPERM"},
		},
		"a server out of memory": {
			func(l lab) *redis.Store {
				return l.store(l.start("--maxmemory", "1", "--maxmemory-policy", "noeviction").Addr)
			},
			store.ErrFull, []string{"out of memory", "maxmemory", "ttl"},
		},
		"a replica": {
			func(l lab) *redis.Store {
				primary, replica := l.start(), l.start()
				host, port, _ := net.SplitHostPort(primary.Addr)
				replica.Must("replicaof", host, port)
				return l.store(replica.Addr)
			},
			store.ErrUnavailable, []string{"read-only replica", "name the primary"},
		},
		"a server that loads its data": {
			func(l lab) *redis.Store {
				return l.store(l.says("set", "-LOADING Redis is loading the dataset in memory"), within(500*time.Millisecond))
			},
			store.ErrUnavailable, []string{"loading its data"},
		},
		"a server that cannot save": {
			func(l lab) *redis.Store {
				return l.store(l.says("set", "-MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk."))
			},
			store.ErrUnavailable, []string{"cannot save to its disk"},
		},
		"a server with too few replicas": {
			func(l lab) *redis.Store {
				return l.store(l.start("--min-replicas-to-write", "1").Addr)
			},
			store.ErrUnavailable, []string{"min-replicas-to-write"},
		},
		"a cluster that is down": {
			func(l lab) *redis.Store {
				return l.store(l.start("--cluster-enabled", "yes").Addr)
			},
			store.ErrUnavailable, []string{"the cluster is down"},
		},
		"a cluster's node in mode Standalone": {
			func(l lab) *redis.Store { return l.store(l.says("set", "-MOVED 3999 127.0.0.1:1")) },
			store.ErrUnavailable, []string{"store.redis.mode: Cluster"},
		},
		"a single server in mode Cluster": {
			func(l lab) *redis.Store {
				return l.store(l.start().Addr, func(o *redis.Options) { o.Spec.Mode = v1alpha1.RedisCluster })
			},
			store.ErrUnavailable, []string{"store.redis.mode: Standalone"},
		},
		"sentinels that do not know the primary": {
			func(l lab) *redis.Store { return l.store(l.start("--sentinel").Addr, behindSentinels) },
			store.ErrUnavailable, []string{"store.redis.masterName orders", "know no primary of that name"},
		},
		"several sentinels that do not know the primary": {
			func(l lab) *redis.Store {
				return l.store(l.start("--sentinel").Addr, behindSentinels, func(o *redis.Options) {
					o.Spec.Addresses = append(o.Spec.Addresses, l.start("--sentinel").Addr)
				})
			},
			store.ErrUnavailable, []string{"store.redis.masterName orders", "know no primary of that name"},
		},
		"sentinels that are no sentinels": {
			func(l lab) *redis.Store { return l.store(l.start().Addr, behindSentinels) },
			store.ErrUnavailable, []string{"no sentinel", "store.redis.mode: Standalone"},
		},
		"sentinels that are not there": {
			func(l lab) *redis.Store { return l.store("127.0.0.1:1", behindSentinels, within(time.Second)) },
			store.ErrUnavailable, []string{"store.redis.addresses 127.0.0.1:", "connection refused"},
		},
		"a sentinel in mode Standalone": {
			func(l lab) *redis.Store { return l.store(l.start("--sentinel").Addr) },
			store.ErrUnavailable, []string{"store.redis.mode has to be Sentinel"},
		},
		"a cluster that is not there": {
			func(l lab) *redis.Store {
				return l.store("127.0.0.1:1", func(o *redis.Options) { o.Spec.Mode = v1alpha1.RedisCluster })
			},
			store.ErrUnavailable, []string{"store.redis.addresses 127.0.0.1:", "connection refused"},
		},
		"a Redis older than 7.0": {
			func(l lab) *redis.Store { return l.store(l.says("set", "-ERR syntax error")) },
			store.ErrUnavailable, []string{"Redis 7.0 or newer"},
		},
		"no connections left": {
			func(l lab) *redis.Store {
				return l.store(l.says("set", "-ERR max number of clients reached"), within(500*time.Millisecond))
			},
			store.ErrUnavailable, []string{"maxclients"},
		},
		"a server that wants TLS": {
			func(l lab) *redis.Store {
				return l.store(l.listens(func(c net.Conn) { _ = c.Close() }), within(time.Second))
			},
			store.ErrUnavailable, []string{"closed the connection", "store.redis.tls"},
		},
		"a server that is no Redis": {
			func(l lab) *redis.Store { return l.store(l.says("set", "HTTP/1.1 400 Bad Request")) },
			store.ErrUnavailable, []string{"store.redis.addresses", "no Redis server"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := test.store(lab{t})
			ops := []store.Op{op(store.Mark, "a", "a"), op(store.Claim, "b", "a"), op(store.Mark, "a", "b"), op(store.Mark, "c", "a")}
			// Twice: the pool remembers failures.
			for range 2 {
				begun := time.Now()
				results := apply(s, ops...)
				if took := time.Since(begun); took > 11*time.Second {
					t.Errorf("took %s", took)
				}
				for i, r := range results {
					if r.Outcome != 0 || !errors.Is(r.Err, test.kind) || !errors.Is(r.Err, store.ErrUnavailable) {
						t.Fatalf("operation %d: outcome %d, error %v; want no outcome and %v", i, r.Outcome, r.Err, test.kind)
					}
					for _, part := range test.want {
						if !strings.Contains(r.Err.Error(), part) {
							t.Errorf("operation %d: %q does not say %q", i, r.Err, part)
						}
					}
					for _, told := range []string{"wr0ng-battery", secret} {
						if strings.Contains(fmt.Sprintf("%v %+v %#v", r.Err, r.Err, r.Err), told) {
							t.Errorf("operation %d: the error tells a password: %v", i, r.Err)
						}
					}
				}
			}
			// Some of these failures are of SET only. What else gets an answer finds nothing there.
			for i, r := range apply(s, held(op(store.Complete, "x", "a"), 1), op(store.Lookup, "y", ""), op(store.Forget, "z", "")) {
				if r.Outcome != 0 && r.Outcome != store.Absent || (r.Outcome == 0) != errors.Is(r.Err, store.ErrUnavailable) {
					t.Errorf("operation %d of those that follow: %+v, want Absent or ErrUnavailable", i, r)
				}
			}
		})
	}
}

func freeAddr(tb testing.TB) string {
	tb.Helper()
	port, err := freeport.On("127.0.0.1")
	if err != nil {
		tb.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", port)
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	tests := map[string]struct {
		edit func(*redis.Options)
		want string
	}{
		"no addresses": {func(o *redis.Options) { o.Spec.Addresses = nil }, "store.redis.addresses"},
		"no timeout":   {func(o *redis.Options) { o.Timeout = 0 }, "at least 1ms"},
		"no clock":     {func(o *redis.Options) { o.Now = nil }, "clock"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			o := redis.Options{
				Spec:    v1alpha1.RedisStore{Addresses: []string{"127.0.0.1:1"}},
				Timeout: time.Second, Now: time.Now,
			}
			test.edit(&o)
			if _, err := redis.New(o); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one that says %q", err, test.want)
			}
		})
	}
}

func TestACallEndsByItsCallersDeadline(t *testing.T) {
	server := redistest.Start(t)
	s := newStore(t, server.Addr)
	want(t, s, []store.Op{op(store.Mark, "k", "a")}, store.Granted)
	server.Pause()
	defer server.Resume()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begun := time.Now()
	results := make([]store.Result, 1)
	s.Apply(ctx, []store.Op{op(store.Mark, "k", "b")}, results)
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("took %s, want 200ms", took)
	}
	if !errors.Is(results[0].Err, store.ErrUnavailable) {
		t.Errorf("%+v, want ErrUnavailable", results[0])
	}
	if h := s.Health(ctx); !errors.Is(h.Err, store.ErrUnavailable) || h.Safety != store.SafetyUnknown {
		t.Errorf("health %+v, want ErrUnavailable and Unknown", h)
	}
}

func TestAForeignValueIsNamedAndLeftAlone(t *testing.T) {
	server := redistest.Start(t)
	s := newStore(t, server.Addr)
	server.Must("rpush", "list", "x")
	server.Must("set", "text", "hello")
	server.Must("set", "empty", "")
	server.Must("set", "long", strings.Repeat("x", 57))
	for _, key := range []string{"list", "text", "empty", "long"} {
		for _, verb := range []store.Verb{store.Mark, store.Claim, store.Complete, store.Release, store.Renew, store.Lookup} {
			rs := apply(s, op(verb, key, "a"), op(store.Mark, fmt.Sprint("fine", key, verb), "a"))
			if !errors.Is(rs[0].Err, store.ErrCorrupt) || rs[0].Outcome != 0 {
				t.Errorf("%s, verb %d: %+v, want ErrCorrupt", key, verb, rs[0])
				continue
			}
			for _, part := range []string{fmt.Sprintf("%q", key), "store.redis.keyPrefix"} {
				if !strings.Contains(rs[0].Err.Error(), part) {
					t.Errorf("%s, verb %d: %q does not say %q", key, verb, rs[0].Err, part)
				}
			}
			if rs[1].Outcome != store.Granted {
				t.Errorf("the operation beside it: %+v, want Granted", rs[1])
			}
		}
		if n := server.Must("exists", key); n != int64(1) {
			t.Errorf("%s is gone", key)
		}
	}
	// Claimed records whose expiry someone has removed would be held for ever, or for how long
	// nobody can tell.
	want(t, s, []store.Op{op(store.Claim, "persisted", "a")}, store.Granted)
	server.Must("persist", "persisted")
	if r := apply(s, op(store.Claim, "persisted", "b"))[0]; !errors.Is(r.Err, store.ErrCorrupt) || !strings.Contains(r.Err.Error(), "expiry") {
		t.Errorf("a claim without expiry: %+v, want ErrCorrupt", r)
	}
	want(t, s, []store.Op{op(store.Forget, "persisted", "")}, store.Granted)
}

// TestAFullServerStillLetsHoldersFinish: refusing a completion would have the message
// processed again.
func TestAFullServerStillLetsHoldersFinish(t *testing.T) {
	server := redistest.Start(t)
	s := newStore(t, server.Addr)
	want(t, s, []store.Op{op(store.Claim, "done", "a"), op(store.Claim, "back", "a"), op(store.Claim, "more", "a")},
		store.Granted, store.Granted, store.Granted)
	server.Must("config", "set", "maxmemory", "1")
	if r := apply(s, op(store.Mark, "new", "a"))[0]; !errors.Is(r.Err, store.ErrFull) {
		t.Fatalf("a new message: %+v, want ErrFull", r)
	}
	want(t, s, []store.Op{
		held(op(store.Complete, "done", "a"), 1), held(op(store.Release, "back", "a"), 1), held(op(store.Renew, "more", "a"), 1),
		op(store.Lookup, "done", ""), op(store.Forget, "more", ""),
	}, store.Granted, store.Granted, store.Granted, store.Granted, store.Granted)
	rs := apply(s, op(store.Lookup, "back", ""), op(store.Mark, "back", "b"))
	for i, r := range rs {
		if !errors.Is(r.Err, store.ErrFull) {
			t.Errorf("operation %d of a call that may add a record: %+v, want ErrFull", i, r)
		}
	}
}

func TestTheServerMayComeAndGo(t *testing.T) {
	server := redistest.Start(t)
	s := newStore(t, server.Addr, within(time.Second))
	want(t, s, []store.Op{op(store.Claim, "k", "a")}, store.Granted)
	want(t, s, []store.Op{held(op(store.Release, "k", "a"), 1)}, store.Granted)
	server.Stop()
	if r := apply(s, op(store.Mark, "k", "b"))[0]; !errors.Is(r.Err, store.ErrUnavailable) {
		t.Fatalf("a mark while the server is down: %+v, want ErrUnavailable", r)
	}
	if h := s.Health(t.Context()); !errors.Is(h.Err, store.ErrUnavailable) || !strings.Contains(h.Err.Error(), "connection refused") {
		t.Errorf("health while the server is down: %+v", h)
	}
	server.Restart()
	deadline := time.Now().Add(10 * time.Second)
	for {
		// The server has forgotten the scripts with everything else.
		r := apply(s, held(op(store.Complete, "k", "a"), 1))[0]
		if r.Outcome == store.Absent {
			break
		}
		if !errors.Is(r.Err, store.ErrUnavailable) || time.Now().After(deadline) {
			t.Fatalf("after a restart: %+v", r)
		}
	}
	want(t, s, []store.Op{op(store.Claim, "k", "b")}, store.Granted)
}
