package redis_test

import (
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// BenchmarkMemory is what the server's memory grows by for each message, in every key format,
// with UUIDs for identifiers; beside it, what a bare SET with an expiry takes.
func BenchmarkMemory(b *testing.B) {
	const n, batch = 200_000, 1000
	b.Run("bare SET EX", func(b *testing.B) {
		measure(b, n, func(server *redistest.Server) {
			client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
			defer func() { _ = client.Close() }()
			for range n / batch {
				pipe := client.Pipeline()
				for range batch {
					pipe.Set(b.Context(), "dedup:orders:"+uuid(), 1, time.Hour)
				}
				if _, err := pipe.Exec(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
	for _, with := range []struct {
		name   string
		format v1alpha1.KeyFormat
		verbs  []store.Verb
	}{
		{"Readable", v1alpha1.KeyReadable, []store.Verb{store.Mark}},
		{"Compact", v1alpha1.KeyCompact, []store.Verb{store.Mark}},
		{"Dense", v1alpha1.KeyDense, []store.Verb{store.Mark}},
		{"Readable, completed claims", v1alpha1.KeyReadable, []store.Verb{store.Claim, store.Complete}},
		{"Compact, completed claims", v1alpha1.KeyCompact, []store.Verb{store.Claim, store.Complete}},
	} {
		b.Run(with.name, func(b *testing.B) {
			measure(b, n, func(server *redistest.Server) {
				p := formatted(b, with.format, n)
				s := newStore(b, server.Addr, func(o *redis.Options) { o.Spec = *p.StoreSpec.Redis; o.Spec.Addresses = []string{server.Addr} })
				ops, results := make([]store.Op, batch), make([]store.Result, batch)
				for range n / batch {
					for i := range ops {
						ops[i] = op(with.verbs[0], p.StoreKey("billing:"+uuid()), rand.Text())
					}
					for _, verb := range with.verbs {
						for i := range ops {
							ops[i].Verb, ops[i].Token.Fence = verb, 1
						}
						s.Apply(b.Context(), ops, results)
						for _, r := range results {
							if r.Outcome != store.Granted {
								b.Fatalf("%+v", r)
							}
						}
					}
				}
			})
		})
	}
}

// formatted is the policy orders of shop, with a key format and so many messages expected.
func formatted(b *testing.B, format v1alpha1.KeyFormat, expected int64) *policy.Policy {
	b.Helper()
	m := &v1alpha1.DedupPolicy{}
	m.Namespace, m.Name = "shop", "orders"
	m.Spec.TTL = "1h"
	m.Spec.Key = v1alpha1.KeySpec{Strategy: v1alpha1.StrategyMessageID, MessageID: &v1alpha1.MessageIDKey{Header: "message-id"}}
	m.Spec.Store.Redis = &v1alpha1.RedisStore{Addresses: []string{"redis.shop.svc:6379"}, KeyFormat: format}
	if format == v1alpha1.KeyDense {
		m.Spec.Store.Redis.Dense = &v1alpha1.RedisDense{ExpectedMessages: expected}
	}
	p, errs := policy.Compile(m)
	if len(errs) > 0 {
		b.Fatal(errs)
	}
	return p
}

// measure reports by how much a server's memory has grown for each of n messages.
func measure(b *testing.B, n int, fill func(*redistest.Server)) {
	b.Helper()
	for b.Loop() {
		server := redistest.Start(b)
		before := used(b, server)
		fill(server)
		b.ReportMetric(float64(used(b, server)-before)/float64(n), "bytes/id")
		server.Stop()
	}
}

// used is the server's memory, but for the buffers of its clients.
func used(b *testing.B, server *redistest.Server) int64 {
	b.Helper()
	var all, clients int64
	info, _ := server.Must("info", "memory").(string)
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		var into *int64
		switch name {
		case "used_memory":
			into = &all
		case "mem_clients_normal":
			into = &clients
		default:
			continue
		}
		if _, err := fmt.Sscan(value, into); err != nil {
			b.Fatalf("%s: %v", line, err)
		}
	}
	return all - clients
}

// uuid is a random identifier.
func uuid() string {
	var b [16]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
