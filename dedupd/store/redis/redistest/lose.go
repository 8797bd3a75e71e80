package redistest

import (
	"context"
	"errors"
	"testing"

	"github.com/redis/go-redis/v9"
)

// Part cuts a replica off from its primary: what that acknowledges from now on, the replica
// never gets.
func (s *Server) Part() {
	s.tb.Helper()
	s.Must("config", "set", "masteruser", "nobody")
	s.Must("config", "set", "masterauth", "wrong")
	s.Must("client", "kill", "type", "master")
	Eventually(s.tb, "the replica has lost its primary", func() bool { return s.Info("replication")["master_link_status"] == "down" })
}

// Fail kills a primary, and returns the keys of which a replica that was parted from it has not
// what the primary had in the end: the writes that are lost if that replica takes its place.
func (s *Server) Fail(replica *Server) (lost map[string]bool) {
	s.tb.Helper()
	// Nothing is written between the look and the end.
	s.Must("client", "pause", startTime.Milliseconds(), "write")
	had, has := s.dump(s.tb), replica.dump(s.tb)
	s.Stop()
	lost = map[string]bool{}
	for key, value := range had {
		if has[key] != value {
			lost[key] = true
		}
	}
	return lost
}

// dump is everything that a server without users and TLS holds, also a replica in a cluster.
func (s *Server) dump(tb testing.TB) map[string]string {
	tb.Helper()
	client := redis.NewClient(&redis.Options{Addr: s.Addr, Protocol: 2, MaxRetries: -1, DisableIdentity: true})
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	conn := client.Conn()
	defer func() { _ = conn.Close() }()
	_ = conn.ReadOnly(ctx).Err() // known in a cluster only
	keys, err := conn.Keys(ctx, "*").Result()
	if err != nil {
		tb.Fatal(err)
	}
	cmds := map[string]*redis.StringCmd{}
	_, err = conn.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, key := range keys {
			cmds[key] = p.Get(ctx, key)
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) { // one has expired meanwhile
		tb.Fatal(err)
	}
	values := map[string]string{}
	for key, cmd := range cmds {
		values[key] = cmd.Val()
	}
	return values
}
