// Package servertest runs dedupd in the process of a test.
package servertest

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	"github.com/dedupd/dedup-operator/dedupd/server"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/memory"
)

// Open opens the store of a policy.
type Open func(*policy.Policy) (store.Store, error)

// InMemory has a policy remember in the process, whatever its store is.
func InMemory(*policy.Policy) (store.Store, error) {
	return memory.New(memory.Options{MaxEntries: 1000, Now: time.Now}), nil
}

// New is a service that has no policies yet.
func New(open Open, modify ...func(*server.Limits)) *server.Service {
	limits := server.Limits{MaxBody: 1 << 20, MaxBatch: 100, MaxBatchBytes: 1 << 20, MaxHeader: 1 << 16, MaxInFlight: 64 << 20}
	for _, m := range modify {
		m(&limits)
	}
	return server.NewService(server.Options{
		Registry: server.NewRegistry(open, func(p *policy.Policy, s store.Store) *engine.Engine {
			return engine.New(p, s, engine.Options{Now: time.Now})
		}),
		Metrics: server.NewMetrics("test", time.Now), Version: "test", Log: slog.New(slog.DiscardHandler), Now: time.Now,
		Limits: limits,
	})
}

// Load has the service run the policies of a manifest. The other files are beside it, by their names.
func Load(tb testing.TB, service *server.Service, manifest string, others map[string][]byte) {
	tb.Helper()
	dir := tb.TempDir()
	path := filepath.Join(dir, "policies.yaml")
	write(tb, path, []byte(manifest))
	for name, content := range others {
		write(tb, filepath.Join(dir, name), content)
	}
	if err := service.LoadConfig(server.Config{Path: path, Strict: true}); err != nil {
		tb.Fatal(err)
	}
}

func write(tb testing.TB, path string, content []byte) {
	tb.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// Run has the service answer on loopback until the test ends, and returns its gRPC address.
func Run(tb testing.TB, service *server.Service) string {
	tb.Helper()
	web, rpc := listen(tb), listen(tb)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- service.Run(ctx, server.Timing{
			ReadHeader: time.Second, Read: time.Second, Idle: time.Second,
			Poll: time.Second, Health: time.Second, Drain: 10 * time.Second,
		}, web, rpc)
	}()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("stopping: %v", err)
		}
	})
	return rpc.Addr().String()
}

func listen(tb testing.TB) net.Listener {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	return l
}
