package postgres_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/postgres/postgrestest"
)

// batch is a batch of new messages.
func batch(b *testing.B, n int, verb store.Verb) (ops []store.Op, renew func(round int)) {
	b.Helper()
	ops = make([]store.Op, n)
	return ops, func(round int) {
		for i := range ops {
			ops[i] = op(verb, fmt.Sprintf("dedup:shop:orders:billing:%s:%d:%d", b.Name(), round, i), "a")
		}
	}
}

func perMessage(b *testing.B, n int) {
	b.Helper()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/message")
}

// BenchmarkMark is new messages and duplicates in batches, and what the same server does with
// one INSERT … ON CONFLICT DO NOTHING for each message, sent as one batch.
func BenchmarkMark(b *testing.B) {
	server := postgrestest.Shared(b)
	database := server.Database()
	s := newStore(b, server.Addr, database)
	for _, n := range []int{1, 256} {
		b.Run(fmt.Sprintf("new, batch of %d", n), func(b *testing.B) {
			ops, renew := batch(b, n, store.Mark)
			results := make([]store.Result, n)
			for i := 0; b.Loop(); i++ {
				renew(i)
				s.Apply(b.Context(), ops, results)
				if r := results[n-1]; r.Outcome != store.Granted {
					b.Fatalf("%+v", r)
				}
			}
			perMessage(b, n)
		})
		b.Run(fmt.Sprintf("duplicates, batch of %d", n), func(b *testing.B) {
			ops, renew := batch(b, n, store.Mark)
			results := make([]store.Result, n)
			renew(0)
			s.Apply(b.Context(), ops, results)
			for i := range ops {
				ops[i].Token.Owner = record.OwnerOf("b")
			}
			for b.Loop() {
				s.Apply(b.Context(), ops, results)
				if r := results[n-1]; r.Outcome != store.Seen {
					b.Fatalf("%+v", r)
				}
			}
			perMessage(b, n)
		})
		b.Run(fmt.Sprintf("bare INSERT, batch of %d", n), func(b *testing.B) {
			conn, err := pgx.Connect(b.Context(), fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable", server.Addr, database))
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = conn.Close(b.Context()) }()
			if _, err := conn.Exec(b.Context(), "CREATE TABLE IF NOT EXISTS bare (key text PRIMARY KEY, expires_at timestamptz NOT NULL)"); err != nil {
				b.Fatal(err)
			}
			ops, renew := batch(b, n, store.Mark)
			for i := 0; b.Loop(); i++ {
				renew(i)
				var queue pgx.Batch
				for _, o := range ops {
					queue.Queue("INSERT INTO bare VALUES ($1, now() + $2) ON CONFLICT DO NOTHING", o.Key, time.Hour)
				}
				if err := conn.SendBatch(b.Context(), &queue).Close(); err != nil {
					b.Fatal(err)
				}
			}
			perMessage(b, n)
		})
	}
}

// BenchmarkClaimAndComplete is messages that are claimed and then completed, in batches.
func BenchmarkClaimAndComplete(b *testing.B) {
	server := postgrestest.Shared(b)
	s := newStore(b, server.Addr, server.Database())
	const n = 256
	ops, renew := batch(b, n, store.Claim)
	results := make([]store.Result, n)
	for i := 0; b.Loop(); i++ {
		renew(i)
		s.Apply(b.Context(), ops, results)
		for j := range ops {
			ops[j] = held(op(store.Complete, ops[j].Key, "a"), results[j].Record.Fence)
		}
		s.Apply(b.Context(), ops, results)
		if r := results[n-1]; r.Outcome != store.Granted || r.Record.State != record.Completed {
			b.Fatalf("%+v", r)
		}
	}
	perMessage(b, n)
}
