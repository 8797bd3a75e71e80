package postgres_test

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/postgres"
	"github.com/dedupd/dedup-operator/dedupd/store/postgres/postgrestest"
	"github.com/dedupd/dedup-operator/dedupd/store/storetest"
	"github.com/dedupd/dedup-operator/hack/freeport"
)

func TestMain(m *testing.M) { os.Exit(postgrestest.Main(m)) }

// newStore returns a store of the superuser in a database of addr; edit changes its options.
func newStore(tb testing.TB, addr, database string, edit ...func(*postgres.Options)) *postgres.Store {
	tb.Helper()
	o := postgres.Options{
		Spec: v1alpha1.PostgresStore{
			Addresses: []string{addr}, Database: database, Schema: "dedupd",
			CredentialsSecretRef: v1alpha1.SecretRef{Name: "creds"},
		},
		SecretsDir: postgrestest.Secrets(tb, map[string]string{"creds/username": "postgres\n", "creds/password": "unused\n"}),
		Timeout:    20 * time.Second,
	}
	for _, e := range edit {
		e(&o)
	}
	s, err := postgres.New(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func within(d time.Duration) func(*postgres.Options) {
	return func(o *postgres.Options) { o.Timeout = d }
}

func op(verb store.Verb, key, attempt string) store.Op {
	o := store.Op{Verb: verb, Key: key, Token: record.Token{Owner: record.OwnerOf(attempt)}, TTL: time.Hour}
	if verb == store.Claim || verb == store.Renew {
		o.Lease = time.Minute
	}
	return o
}

func held(o store.Op, fence uint64) store.Op {
	o.Token.Fence = fence
	return o
}

func apply(s store.Store, ops ...store.Op) []store.Result {
	results := make([]store.Result, len(ops))
	s.Apply(context.Background(), ops, results)
	return results
}

// want applies a batch and compares the outcomes.
func want(tb testing.TB, s store.Store, ops []store.Op, outcomes ...store.Outcome) []store.Result {
	tb.Helper()
	results := apply(s, ops...)
	for i, r := range results {
		if r.Err != nil || r.Outcome != outcomes[i] {
			tb.Fatalf("operation %d of %d: outcome %d, error %v; want outcome %d", i, len(ops), r.Outcome, r.Err, outcomes[i])
		}
	}
	return results
}

// eventually looks until done says so.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for !done() {
		select {
		case <-deadline:
			t.Fatalf("%s: not within 30s", what)
		case <-time.After(20 * time.Millisecond):
		}
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

func TestConformance(t *testing.T) {
	server := postgrestest.Shared(t)
	database := server.Database()
	storetest.Run(t, func(tb testing.TB) storetest.Fixture {
		tb.Helper()
		return storetest.Fixture{
			Store: newStore(tb, server.Addr, database), Early: true,
			Faulty: overFaults(tb, server.Addr, database),
		}
	})
}
