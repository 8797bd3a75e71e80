package redis_test

import (
	"context"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
	"github.com/dedupd/dedup-operator/dedupd/store/storetest"
)

// on opens a store on a topology.
func on(top *redistest.Topology) func(*redis.Options) {
	return func(o *redis.Options) { o.Spec, o.SecretsDir = top.Spec, top.SecretsDir }
}

// TestEveryTopologyWithTLSAndUsers runs the conformance suite where servers and clients show
// certificates of a private authority, replication and sentinels included, and where dedupd's user has
// the documented permissions and no others.
func TestEveryTopologyWithTLSAndUsers(t *testing.T) {
	secure := redistest.Config{TLS: redistest.NewAuthority(t), ACL: true}
	for name, start := range map[string]func(*testing.T) *redistest.Topology{
		"Standalone": func(t *testing.T) *redistest.Topology { t.Helper(); return secure.StartStandalone(t, 1) },
		"Sentinel":   func(t *testing.T) *redistest.Topology { t.Helper(); return secure.StartSentinel(t, 1, 3, time.Hour) },
		"Cluster":    func(t *testing.T) *redistest.Topology { t.Helper(); return secure.StartCluster(t, 3, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			top := start(t)
			storetest.Run(t, fixtures("", on(top)))
			t.Run("many messages in a hash", func(t *testing.T) {
				storetest.Run(t, denseFixtures("", on(top)))
			})
			t.Run("health", func(t *testing.T) {
				if h := newStore(t, "", on(top)).Health(t.Context()); h.Err != nil {
					t.Errorf("health: %+v", h)
				}
			})
		})
	}
}

// TestEveryServerConforms runs the suite on the newer servers; TestConformance does on the redis-server of
// PATH, which may be as old as 7.0.
func TestEveryServerConforms(t *testing.T) {
	for _, name := range []string{redistest.Redis8, redistest.Valkey8} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Config{Program: redistest.Program(t, name)}.Start(t)
			storetest.Run(t, func(tb testing.TB) storetest.Fixture {
				tb.Helper()
				s := newStore(tb, server.Addr)
				// By it, a store learns what the server can do.
				if h := s.Health(context.Background()); h.Err != nil {
					tb.Fatal(h.Err)
				}
				return storetest.Fixture{Store: s}
			})
			t.Run("many messages in a hash", func(t *testing.T) {
				storetest.Run(t, denseFixtures(server.Addr))
				storetest.Run(t, compactFixtures(server.Addr))
			})
		})
	}
}
