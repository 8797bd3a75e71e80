package redistest

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// MasterName is the name by which sentinels know their primary.
const MasterName = "orders"

// Topology is servers that are one store, and how dedupd reaches it.
type Topology struct {
	// Servers hold the data. The primaries at the start come first; of a cluster, the replicas
	// follow in the order of their primaries.
	Servers []*Server

	// Sentinels watch them, in mode Sentinel.
	Sentinels []*Server

	// Spec and SecretsDir are what a store is opened with.
	Spec       v1alpha1.RedisStore
	SecretsDir string

	tb testing.TB
}

func (c Config) topology(tb testing.TB, mode v1alpha1.RedisMode, named, servers []*Server) *Topology {
	tb.Helper()
	t := &Topology{Servers: servers, Spec: v1alpha1.RedisStore{Mode: mode}, tb: tb}
	for _, s := range named {
		t.Spec.Addresses = append(t.Spec.Addresses, s.Addr)
	}
	t.SecretsDir = c.access(tb, &t.Spec)
	return t
}

// with returns c with further arguments for every server.
func (c Config) with(args ...string) Config {
	c.Args = slices.Concat(args, c.Args)
	return c
}

// auth are the arguments by which a replica shows who it is.
func (c Config) auth() []string {
	if !c.ACL {
		return nil
	}
	return []string{"--masteruser", replica, "--masterauth", passwordOf(replica)}
}

// StartStandalone starts a primary with some replicas.
func (c Config) StartStandalone(tb testing.TB, replicas int) *Topology {
	tb.Helper()
	servers := c.replicated(tb, replicas)
	return c.topology(tb, v1alpha1.RedisStandalone, servers[:1], servers)
}

// replicated starts a primary with replicas that are in step.
func (c Config) replicated(tb testing.TB, replicas int) []*Server {
	tb.Helper()
	c = c.with(c.auth()...)
	// Replicas get what there is at once, and not after the usual five seconds.
	c = c.with("--repl-diskless-sync-delay", "0")
	servers := []*Server{c.Start(tb)}
	host, port, _ := net.SplitHostPort(servers[0].Addr)
	for range replicas {
		servers = append(servers, c.Start(tb, "--replicaof", host+" "+port))
	}
	for _, s := range servers[1:] {
		s.awaitLink()
	}
	// The primary learns of it a little later, with the first acknowledgement.
	Eventually(tb, "the primary knows that its replicas are in step", func() bool {
		seen := servers[0].Info("replication")
		for i := range replicas {
			if !strings.Contains(seen[fmt.Sprint("slave", i)], "state=online") {
				return false
			}
		}
		return true
	})
	return servers
}

// awaitLink waits until a replica is in step with its primary.
func (s *Server) awaitLink() {
	s.tb.Helper()
	Eventually(s.tb, "replica "+s.Addr+" is in step", func() bool { return s.Info("replication")["master_link_status"] == "up" })
}

// Info are the fields of a section of INFO; none while the server does not answer.
func (s *Server) Info(section string) map[string]string {
	text, _ := s.Do("info", section)
	fields := map[string]string{}
	for line := range strings.Lines(fmt.Sprint(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields
}

// IsPrimary says whether the server takes writes.
func (s *Server) IsPrimary() bool { return s.Info("replication")["role"] == "master" }

// StartSentinel starts a primary with replicas, and sentinels that watch them. A primary that
// has not answered for downAfter is replaced by a replica; with an hour, only Failover does that.
func (c Config) StartSentinel(tb testing.TB, replicas, sentinels int, downAfter time.Duration) *Topology {
	tb.Helper()
	servers := c.replicated(tb, replicas)
	host, port, _ := net.SplitHostPort(servers[0].Addr)
	watchers := Config{Program: c.Program, TLS: c.TLS, ACL: c.ACL, Args: []string{"--sentinel"}}
	var all []*Server
	for range sentinels {
		s := watchers.Start(tb)
		all = append(all, s)
		if c.ACL {
			s.Must("sentinel", "config", "set", "sentinel-user", admin)
			s.Must("sentinel", "config", "set", "sentinel-pass", passwordOf(admin))
		}
		s.Must("sentinel", "monitor", MasterName, host, port, sentinels/2+1)
		s.Must("sentinel", "set", MasterName, "down-after-milliseconds", downAfter.Milliseconds())
		s.Must("sentinel", "set", MasterName, "failover-timeout", 10_000)
		if c.ACL {
			s.Must("sentinel", "set", MasterName, "auth-user", replica)
			s.Must("sentinel", "set", MasterName, "auth-pass", passwordOf(replica))
		}
	}
	for _, s := range all {
		Eventually(tb, "the sentinels know the replicas and each other", func() bool {
			known, err := s.Do("sentinel", "ckquorum", MasterName)
			seen, _ := s.Do("sentinel", "replicas", MasterName)
			list, _ := seen.([]any)
			return err == nil && strings.HasPrefix(fmt.Sprint(known), fmt.Sprintf("OK %d usable", sentinels)) && len(list) == replicas
		})
	}
	t := c.topology(tb, v1alpha1.RedisSentinel, all, servers)
	t.Sentinels, t.Spec.MasterName = all, MasterName
	return t
}

// Failover has the sentinels make a replica the primary, and returns it once it is.
func (t *Topology) Failover() *Server {
	t.tb.Helper()
	before := t.Primaries()
	Eventually(t.tb, "a sentinel begins the failover", func() bool {
		_, err := t.Sentinels[0].Do("sentinel", "failover", MasterName)
		return err == nil
	})
	var promoted *Server
	Eventually(t.tb, "a replica is promoted", func() bool {
		for _, s := range t.Primaries() {
			if !slices.Contains(before, s) {
				promoted = s
			}
		}
		return promoted != nil
	})
	return promoted
}

// Primaries are the servers that take writes now.
func (t *Topology) Primaries() []*Server {
	return slices.DeleteFunc(slices.Clone(t.Servers), func(s *Server) bool { return !s.IsPrimary() })
}

// slots is how many slots a cluster has.
const slots = 16384

// StartCluster starts a cluster of primaries that share the slots evenly, in their order, with
// replicas for each.
func (c Config) StartCluster(tb testing.TB, primaries, replicas int) *Topology {
	tb.Helper()
	c = c.with("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--repl-diskless-sync-delay", "0")
	c = c.with(c.auth()...)
	if c.TLS != nil {
		c = c.with("--tls-cluster", "yes")
	}
	var servers []*Server
	var buses []string
	for range primaries * (1 + replicas) {
		_, bus, _ := net.SplitHostPort(freeAddr(tb))
		buses = append(buses, bus)
		servers = append(servers, c.Start(tb, "--cluster-port", bus))
	}
	host, port, _ := net.SplitHostPort(servers[0].Addr)
	for i, s := range servers {
		if i < primaries {
			s.Must("cluster", "addslotsrange", i*slots/primaries, (i+1)*slots/primaries-1)
		}
		s.Must("cluster", "set-config-epoch", i+1)
		if i > 0 {
			s.Must("cluster", "meet", host, port, buses[0])
		}
	}
	t := c.topology(tb, v1alpha1.RedisCluster, servers[:primaries], servers)
	t.await("the nodes know each other")
	for i, s := range servers[primaries:] {
		id := servers[i/replicas].Must("cluster", "myid")
		Eventually(tb, "a replica knows its primary", func() bool {
			_, err := s.Do("cluster", "replicate", id)
			return err == nil
		})
	}
	for _, s := range servers[primaries:] {
		s.awaitLink()
	}
	return t
}

// await waits until every node has the same, whole picture of the cluster.
func (t *Topology) await(what string) {
	t.tb.Helper()
	for _, s := range t.Servers {
		Eventually(t.tb, what, func() bool {
			info, _ := s.Do("cluster", "info")
			text := fmt.Sprint(info)
			return strings.Contains(text, "cluster_state:ok") && strings.Contains(text, fmt.Sprintf("cluster_known_nodes:%d\r", len(t.Servers)))
		})
	}
}

// Eventually looks until done says so.
func Eventually(tb testing.TB, what string, done func() bool) {
	tb.Helper()
	deadline := time.After(60 * time.Second)
	for !done() {
		select {
		case <-deadline:
			tb.Fatalf("%s: not within a minute", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
