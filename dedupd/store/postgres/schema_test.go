package postgres_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/postgres"
	"github.com/dedupd/dedup-operator/dedupd/store/postgres/postgrestest"
)

func TestManyReplicasThatStartAtOnceMakeOneSchema(t *testing.T) {
	server := postgrestest.Shared(t)
	database := server.Database()
	const replicas = 12
	var stores []*postgres.Store
	for range replicas {
		stores = append(stores, newStore(t, server.Addr, database))
	}
	var group sync.WaitGroup
	start := make(chan struct{})
	granted := make([]int, replicas)
	for i, s := range stores {
		group.Go(func() {
			<-start
			for _, r := range apply(s, op(store.Mark, "one", fmt.Sprint(i)), op(store.Mark, fmt.Sprint("own", i), "a")) {
				if r.Err != nil {
					t.Error(r.Err)
				}
				if r.Outcome == store.Granted {
					granted[i]++
				}
			}
		})
	}
	close(start)
	group.Wait()
	total := 0
	for _, n := range granted {
		total += n
	}
	if total != replicas+1 {
		t.Errorf("%d granted, want %d: one of the key that all ask for, and each its own", total, replicas+1)
	}
	var versions int
	server.Value(database, "SELECT count(*) FROM dedupd.migrations", &versions)
	if versions != 1 {
		t.Errorf("%d migrations, want 1", versions)
	}
}

func TestTheDocumentedPermissionsAreEnough(t *testing.T) {
	server := postgrestest.Shared(t)
	for name, grant := range map[string]string{
		"create":   "GRANT CREATE ON DATABASE %[1]s TO %[2]s",
		"owner":    "CREATE SCHEMA dedupd AUTHORIZATION %[2]s",
		"granted":  "CREATE SCHEMA dedupd; GRANT USAGE, CREATE ON SCHEMA dedupd TO %[2]s",
		"database": "ALTER DATABASE %[1]s OWNER TO %[2]s",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database := server.Database()
			edit := role(t, server, "allowed_"+name)
			server.MustIn(database, fmt.Sprintf(grant, database, "allowed_"+name))
			tick := make(chan time.Time)
			s := newStore(t, server.Addr, database, edit, func(o *postgres.Options) { o.Sweep = tick })
			want(t, s, []store.Op{op(store.Mark, "m", "a"), op(store.Claim, "c", "a")}, store.Granted, store.Granted)
			want(t, s, []store.Op{op(store.Mark, "m", "b"), op(store.Claim, "c", "b"), op(store.Lookup, "c", "")},
				store.Seen, store.Held, store.Granted)
			want(t, s, []store.Op{held(op(store.Complete, "c", "a"), 1), op(store.Forget, "m", "")}, store.Granted, store.Granted)
			if h := s.Health(t.Context()); h.Err != nil || h.HistorySince.IsZero() {
				t.Errorf("health: %+v", h)
			}
			server.MustIn(database, "UPDATE dedupd.records SET expires_at = now()")
			swept(t, server, database, tick, 0)
		})
	}
}

// TestTheSchemaMayNameAnything that the policy's pattern allows, also what is a word of SQL.
func TestTheSchemaMayNameAnything(t *testing.T) {
	server := postgrestest.Shared(t)
	database := server.Database()
	for _, name := range []string{"user", "select", "_", "pg"} {
		s := newStore(t, server.Addr, database, func(o *postgres.Options) { o.Spec.Schema = name })
		want(t, s, []store.Op{op(store.Mark, "k", "a")}, store.Granted)
		want(t, s, []store.Op{op(store.Mark, "k", "b")}, store.Seen)
	}
}

func TestADroppedSchemaIsMadeAgainAndItsHistoryBeginsAnew(t *testing.T) {
	server := postgrestest.Shared(t)
	database := server.Database()
	s := newStore(t, server.Addr, database)
	want(t, s, []store.Op{op(store.Mark, "k", "a")}, store.Granted)
	before := s.Health(t.Context())
	server.MustIn(database, "DROP SCHEMA dedupd CASCADE")
	eventually(t, "the schema is there again", func() bool {
		r := apply(s, op(store.Mark, "k", "b"))[0]
		if r.Err != nil && !errors.Is(r.Err, store.ErrUnavailable) || r.Outcome == store.Seen {
			t.Fatalf("%+v", r)
		}
		return r.Outcome == store.Granted
	})
	if after := s.Health(t.Context()); after.Err != nil || !after.HistorySince.After(before.HistorySince) {
		t.Errorf("health %+v, want a history that begins after %s", after, before.HistorySince)
	}
}

func TestTheHistoryBeginsAnewWhereItWasLost(t *testing.T) {
	server := postgrestest.Shared(t)
	for name, lose := range map[string]string{
		"emptied":               "TRUNCATE dedupd.records",
		"a partition emptied":   "TRUNCATE dedupd.records_3",
		"restored to before":    "UPDATE dedupd.birth SET heartbeat = 1",
		"nothing has been lost": "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database := server.Database()
			a, b := newStore(t, server.Addr, database), newStore(t, server.Addr, database)
			since := func(s store.Store) time.Time {
				t.Helper()
				h := s.Health(t.Context())
				if h.Err != nil || h.HistorySince.IsZero() {
					t.Fatalf("health %+v, want one with a history", h)
				}
				return h.HistorySince
			}
			first := since(a)
			if got := since(b); !got.Equal(first) {
				t.Errorf("two replicas say %s and %s", first, got)
			}
			since(a)
			if lose != "" {
				server.MustIn(database, lose)
			}
			second := since(a)
			if lost := second.After(first); lost != (lose != "") {
				t.Errorf("the history begins at %s, and before at %s", second, first)
			}
			if got := since(b); !got.Equal(second) {
				t.Errorf("two replicas say %s and %s", second, got)
			}
		})
	}
}

// swept ticks until so many records are left.
func swept(t *testing.T, server *postgrestest.Server, database string, tick chan<- time.Time, left int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d records are left", left), func() bool {
		select {
		case tick <- time.Now():
		case <-time.After(20 * time.Millisecond):
		}
		var n int
		server.Value(database, "SELECT count(*) FROM dedupd.records", &n)
		if n < left {
			t.Fatalf("%d records are left, want %d", n, left)
		}
		return n == left
	})
}

func TestExpiredRecordsAreAbsentAtOnceAndRemovedByOneReplicaAtATime(t *testing.T) {
	server := postgrestest.Shared(t)
	database := server.Database()
	tick := make(chan time.Time)
	sweeping := func(o *postgres.Options) { o.Sweep = tick }
	s := newStore(t, server.Addr, database, sweeping)
	want(t, s, []store.Op{op(store.Mark, "living", "a")}, store.Granted)
	// As many as a table of dedupd's has; by SQL, since that is quicker.
	const expired = 200_000
	server.MustIn(database, fmt.Sprintf(`INSERT INTO dedupd.records (key, owner, state, first_seen, written_at, expires_at)
		SELECT convert_to('expired' || i, 'utf8'), gen_random_uuid(), 1, now(), clock_timestamp(), now() - interval '1 s' FROM generate_series(1, %d) i`, expired))
	want(t, s, []store.Op{op(store.Lookup, "expired7", ""), op(store.Mark, "expired8", "a"), op(store.Claim, "expired9", "a")},
		store.Absent, store.Granted, store.Granted)
	// Others of the schema, each at work on the same table. One that holds a lock hinders nobody.
	for range 3 {
		other := newStore(t, server.Addr, database, sweeping)
		want(t, other, []store.Op{op(store.Lookup, "living", "")}, store.Granted)
	}
	server.Hold(database, "SELECT FROM dedupd.records WHERE key = 'expired10' FOR UPDATE")
	swept(t, server, database, tick, 4)
	want(t, s, []store.Op{op(store.Mark, "living", "b"), op(store.Mark, "expired8", "b"), op(store.Claim, "expired9", "b"), op(store.Lookup, "expired7", "")},
		store.Seen, store.Seen, store.Held, store.Absent)
}

func TestWhatMayVanishIsUnsafe(t *testing.T) {
	tests := map[string]struct {
		settings []string
		safety   store.Safety
		reason   string
	}{
		"everything is on":          {nil, store.Safe, "on the server's disk; the server has no standby"},
		"fsync off":                 {[]string{"fsync=off"}, store.Unsafe, "set fsync = on"},
		"full_page_writes off":      {[]string{"full_page_writes=off"}, store.Unsafe, "set full_page_writes = on"},
		"synchronous_commit off":    {[]string{"synchronous_commit=off"}, store.Unsafe, "set synchronous_commit = on"},
		"commits that wait for one": {[]string{"synchronous_standby_names=*", "synchronous_commit=local"}, store.Safe, "synchronous_commit is local"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			server := postgrestest.Start(t, append([]string{"fsync=on", "full_page_writes=on"}, test.settings...)...)
			s := newStore(t, server.Addr, "postgres")
			h := s.Health(t.Context())
			if h.Err != nil || h.Safety != test.safety || !strings.Contains(h.Reason, test.reason) {
				t.Errorf("health %+v, want %s because %q", h, test.safety, test.reason)
			}
			server.MustIn("postgres", "ALTER TABLE dedupd.records_2 SET UNLOGGED")
			if h := s.Health(t.Context()); h.Err != nil || h.Safety != store.Unsafe || !strings.Contains(h.Reason, "UNLOGGED") {
				t.Errorf("health %+v, want Unsafe because of an unlogged table", h)
			}
		})
	}
}
