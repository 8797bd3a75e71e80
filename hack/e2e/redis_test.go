package e2e_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisServer is a redis-server on this machine, on a port that it keeps when it is started again.
type redisServer struct {
	process *process
	address string
	dir     string
	client  *redis.Client
}

// newRedis starts a redis-server that keeps everything and evicts nothing. Further arguments are its own.
func newRedis(t *testing.T, args ...string) *redisServer {
	t.Helper()
	r := &redisServer{address: net.JoinHostPort(host, freePort(t)), dir: t.TempDir()}
	r.client = redis.NewClient(&redis.Options{Addr: r.address})
	t.Cleanup(func() { _ = r.client.Close() })
	r.start(t, args...)
	return r
}

func (r *redisServer) start(t *testing.T, args ...string) {
	t.Helper()
	_, port, _ := net.SplitHostPort(r.address)
	r.process = start(t, nil, "redis-server", append([]string{
		"--bind", host, "--port", port, "--dir", r.dir, "--protected-mode", "no",
		"--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction",
		"--repl-diskless-sync-delay", "0", // a replica gets what there is at once
	}, args...)...)
	r.awaitAnswer(t)
}

func (r *redisServer) awaitAnswer(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, func() error { return r.client.Ping(context.Background()).Err() })
}

// do runs a command that must succeed.
func (r *redisServer) do(t *testing.T, args ...any) any {
	t.Helper()
	answer, err := r.client.Do(t.Context(), args...).Result()
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return answer
}

// replication is a field of INFO replication; empty while the server does not answer.
func (r *redisServer) replication(field string) string {
	said, _ := r.client.Info(context.Background(), "replication").Result()
	for line := range strings.Lines(said) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), ":"); name == field {
			return value
		}
	}
	return ""
}

// masterName is the name by which the sentinel knows its primary.
const masterName = "orders"

// sentinel watches a primary and its replica. One is enough to agree with itself: how many of
// them elect each other is Redis's business, and takes a while when they don't.
type sentinel struct {
	*redisServer
	servers []*redisServer
}

func newSentinel(t *testing.T, downAfter time.Duration) *sentinel {
	t.Helper()
	primary := newRedis(t)
	replica := newRedis(t, replicaOf(primary)...)
	s := &sentinel{&redisServer{address: net.JoinHostPort(host, freePort(t)), dir: t.TempDir()}, []*redisServer{primary, replica}}
	// It keeps its state in its configuration.
	config := filepath.Join(s.dir, "sentinel.conf")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(s.address)
	s.client = redis.NewClient(&redis.Options{Addr: s.address})
	t.Cleanup(func() { _ = s.client.Close() })
	s.process = start(t, nil, "redis-server", config, "--sentinel", "--bind", host, "--port", port, "--dir", s.dir, "--protected-mode", "no")
	s.awaitAnswer(t)
	ip, port, _ := net.SplitHostPort(primary.address)
	s.do(t, "sentinel", "monitor", masterName, ip, port, 1)
	s.do(t, "sentinel", "set", masterName, "down-after-milliseconds", downAfter.Milliseconds(), "failover-timeout", 10_000)
	s.awaitReplica(t)
	return s
}

func replicaOf(primary *redisServer) []string {
	ip, port, _ := net.SplitHostPort(primary.address)
	return []string{"--replicaof", ip + " " + port}
}

// primary is the server that the sentinel leads its callers to.
func (s *sentinel) primary() (*redisServer, error) {
	at, err := s.client.Do(context.Background(), "sentinel", "get-master-addr-by-name", masterName).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("asking the sentinel for its primary: %w", err)
	}
	for _, server := range s.servers {
		if ip, port, _ := net.SplitHostPort(server.address); slices.Equal(at, []string{ip, port}) {
			return server, nil
		}
	}
	return nil, fmt.Errorf("the sentinel leads to %v", at)
}

// failOver tells the sentinel to make the replica the primary, and returns the one that was. The sentinel
// refuses while it is at a failover of its own, or has not heard from the replica lately.
func (s *sentinel) failOver(t *testing.T) *redisServer {
	t.Helper()
	var old *redisServer
	eventually(t, time.Minute, func() (err error) {
		if old, err = s.primary(); err != nil {
			return err
		}
		return s.client.Do(t.Context(), "sentinel", "failover", masterName).Err()
	})
	return old
}

// awaitPrimary waits until the sentinel leads to another server than before.
func (s *sentinel) awaitPrimary(t *testing.T, before *redisServer) *redisServer {
	t.Helper()
	var now *redisServer
	eventually(t, time.Minute, func() (err error) {
		if now, err = s.primary(); err != nil {
			return err
		}
		if now == before || now.replication("role") != "master" {
			return fmt.Errorf("the primary is %s still", before.address)
		}
		return nil
	})
	return now
}

// awaitReplica waits until the primary has its replica, and the sentinel knows of it.
func (s *sentinel) awaitReplica(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		primary, err := s.primary()
		if err != nil {
			return err
		}
		if state := primary.replication("slave0"); !strings.Contains(state, "state=online") {
			return fmt.Errorf("the primary says of its replica %q", state)
		}
		known, err := s.client.Do(t.Context(), "sentinel", "master", masterName).Result()
		if err != nil {
			return err
		}
		if of, ok := known.(map[any]any); !ok || fmt.Sprint(of["num-slaves"]) != "1" || fmt.Sprint(of["flags"]) != "master" {
			return fmt.Errorf("the sentinel says of its primary %v", known)
		}
		return nil
	})
}
