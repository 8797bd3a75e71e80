package redis_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

func TestHealth(t *testing.T) {
	started := func(args ...string) func(lab) *redis.Store {
		return func(l lab) *redis.Store { return l.store(l.start(args...).Addr) }
	}
	// without is a server on which a user may not run some commands, as managed servers have it.
	without := func(commands []string, args ...string) func(lab) *redis.Store {
		return func(l lab) *redis.Store {
			server := l.start(args...)
			rules := []any{"acl", "setuser", "joe", "on", ">pw", "~*", "+@all"}
			for _, c := range commands {
				rules = append(rules, "-"+c)
			}
			server.Must(rules...)
			dir := secrets(l.T, map[string]string{"creds/username": "joe", "creds/password": "pw"})
			return l.store(server.Addr, credentials(dir, "creds"))
		}
	}
	tests := map[string]struct {
		store  func(l lab) *redis.Store
		safety store.Safety
		says   []string
		err    string
	}{
		"no eviction and an append-only file": {
			store: started("--appendonly", "yes"), safety: store.Safe,
			says: []string{"noeviction", "appendonly is on"},
		},
		"snapshots only": {
			store: started("--save", "3600 1"), safety: store.Safe,
			says: []string{"snapshots", "3600 1", "a crash forgets"},
		},
		"an eviction policy for all keys": {
			store: started("--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"), safety: store.Unsafe,
			says: []string{"maxmemory-policy is allkeys-lru", "set noeviction"},
		},
		"an eviction policy for keys that expire, as all of ours do": {
			store: started("--appendonly", "yes", "--maxmemory-policy", "volatile-ttl"), safety: store.Unsafe,
			says: []string{"maxmemory-policy is volatile-ttl", "set noeviction"},
		},
		"no persistence": {
			store: started(), safety: store.Unsafe,
			says: []string{"a restart of the server forgets every mark", "set appendonly yes"},
		},
		"CONFIG hidden, an append-only file": {
			store: without([]string{"config"}, "--appendonly", "yes"), safety: store.Safe,
			says: []string{"noeviction", "appendonly is on"},
		},
		"CONFIG hidden, snapshots perhaps": {
			store: without([]string{"config"}, "--save", "3600 1"), safety: store.SafetyUnknown,
			says: []string{"does not tell whether it saves snapshots"},
		},
		"CONFIG hidden, an eviction policy": {
			store: without([]string{"config"}, "--maxmemory-policy", "allkeys-random"), safety: store.Unsafe,
			says: []string{"maxmemory-policy is allkeys-random"},
		},
		"as many replicas as are waited for": {
			store: func(l lab) *redis.Store {
				return l.store("", on(redistest.Config{Args: []string{"--appendonly", "yes"}}.StartStandalone(l, 1)), durably)
			},
			safety: store.Safe, says: []string{"1 of the server's 1 replicas are in step"},
		},
		"fewer replicas than are waited for": {
			store: func(l lab) *redis.Store {
				return l.store(l.start("--appendonly", "yes").Addr, durably)
			},
			safety: store.Unsafe,
			says:   []string{"0 of the server's 0 replicas are in step, and store.redis.durability waits for 1", "onStoreFailure decides"},
		},
		"a snapshot that failed": {
			store: func(l lab) *redis.Store {
				server := l.start("--save", "3600 1")
				return l.store(server.Addr, func(*redis.Options) { breakSnapshot(l.T, server) })
			},
			safety: store.Unsafe, says: []string{"the last snapshot failed"},
		},
		"INFO and CONFIG hidden": {
			store: without([]string{"config", "info"}), safety: store.SafetyUnknown,
			says: []string{"does not tell its maxmemory-policy", "does not tell whether it persists"},
		},
		"an old server": {
			store: func(l lab) *redis.Store {
				return l.store(l.says("info", "$21\r\nredis_version:6.2.14\r"))
			},
			safety: store.SafetyUnknown, err: "the server is Redis 6.2.14: dedupd needs Redis 7.0 or newer",
		},
		"a replica": {
			store: func(l lab) *redis.Store {
				replica := l.start()
				replica.Must("replicaof", "127.0.0.1", "1")
				return l.store(replica.Addr)
			},
			safety: store.SafetyUnknown, err: "read-only replica",
		},
		"a sentinel": {
			store:  func(l lab) *redis.Store { return l.store(l.start("--sentinel").Addr) },
			safety: store.SafetyUnknown, err: "store.redis.mode has to be Sentinel",
		},
		"sentinels that do not know the primary": {
			store:  func(l lab) *redis.Store { return l.store(l.start("--sentinel").Addr, behindSentinels) },
			safety: store.SafetyUnknown, err: "store.redis.masterName orders",
		},
		"a server that is not there": {
			store:  func(l lab) *redis.Store { return l.store("127.0.0.1:1") },
			safety: store.SafetyUnknown, err: "connection refused",
		},
		"a wrong password": {
			store: func(l lab) *redis.Store {
				return l.store(l.start("--requirepass", "pw").Addr)
			},
			safety: store.SafetyUnknown, err: "store.redis.credentialsSecretRef: not set",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := test.store(lab{t}).Health(t.Context())
			if h.Safety != test.safety {
				t.Errorf("safety %s, want %s (%+v)", h.Safety, test.safety, h)
			}
			for _, part := range test.says {
				if !strings.Contains(h.Reason, part) {
					t.Errorf("reason %q does not say %q", h.Reason, part)
				}
			}
			switch {
			case (h.Err == nil) != (test.err == ""):
				t.Errorf("error %v, want %q", h.Err, test.err)
			case h.Err != nil && !strings.Contains(h.Err.Error(), test.err):
				t.Errorf("error %v, want %q", h.Err, test.err)
			}
		})
	}
}

// breakSnapshot has a server fail to save.
func breakSnapshot(t *testing.T, server *redistest.Server) {
	t.Helper()
	server.Must("config", "set", "stop-writes-on-bgsave-error", "no", "rdb-del-sync-files", "no")
	if err := os.Mkdir(filepath.Join(server.Dir, "dump.rdb"), 0o700); err != nil {
		t.Fatal(err)
	}
	server.Must("set", "k", "v")
	server.Must("bgsave")
	eventually(t, "the snapshot has failed", func() bool { return server.Info("persistence")["rdb_last_bgsave_status"] == "err" })
}
