package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/postgres"
	"github.com/dedupd/dedup-operator/dedupd/store/postgres/postgrestest"
)

// lab makes what a case of a table needs.
type lab struct{ *testing.T }

const password = "correct-horse"

// role makes a role with the password that may log in, and returns the options that use it.
func role(tb testing.TB, server *postgrestest.Server, name string) func(*postgres.Options) {
	tb.Helper()
	server.Must(fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", name, password))
	return credentials(tb, name, password)
}

func credentials(tb testing.TB, username, password string) func(*postgres.Options) {
	tb.Helper()
	dir := postgrestest.Secrets(tb, map[string]string{"creds/username": username + "\n", "creds/password": password + "\n"})
	return func(o *postgres.Options) { o.SecretsDir = dir }
}

// listens accepts connections and gives each to handle.
func (l lab) listens(handle func(net.Conn)) string {
	l.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.Fatal(err)
	}
	ended := make(chan struct{})
	l.Cleanup(func() { _ = listener.Close(); <-ended })
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			handle(conn)
		}
	}()
	return listener.Addr().String()
}

// fails has the server answer every new record with an error of its own.
func fails(server *postgrestest.Server, database, code, message string) {
	server.MustIn(database, fmt.Sprintf(`
		CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = '%s', MESSAGE = '%s'; END $$;
		CREATE TRIGGER fails BEFORE INSERT ON dedupd.records FOR EACH ROW EXECUTE FUNCTION fails()`, code, message))
}

// TestEachFailureSaysWhatWouldBeRight: an error is an error, by the deadline, for each
// operation of a batch; it is of the right kind, it names the field, and it tells no secret.
func TestEachFailureSaysWhatWouldBeRight(t *testing.T) {
	server := postgrestest.Shared(t)
	marked := []store.Op{op(store.Mark, "there", "a")}
	tests := map[string]struct {
		store func(l lab, database string) *postgres.Store
		kind  error
		want  []string
	}{
		"an address that does not resolve": {
			func(l lab, db string) *postgres.Store {
				return newStore(l, "pg.invalid:5432", db, within(3*time.Second))
			},
			store.ErrUnavailable, []string{"store.postgres.addresses pg.invalid: no such host"},
		},
		"an address where nothing listens": {
			func(l lab, db string) *postgres.Store { return newStore(l, freeAddr(l), db, within(time.Second)) },
			store.ErrUnavailable, []string{"store.postgres.addresses 127.0.0.1:", "connection refused"},
		},
		"an address that swallows": {
			func(l lab, db string) *postgres.Store {
				return newStore(l, l.listens(func(net.Conn) {}), db, within(300*time.Millisecond))
			},
			store.ErrUnavailable, []string{"store.postgres.addresses 127.0.0.1:", "no answer in time", "300ms"},
		},
		"a server that is no PostgreSQL": {
			func(l lab, db string) *postgres.Store {
				return newStore(l, l.listens(func(c net.Conn) {
					_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
					_ = c.Close()
				}), db, within(time.Second))
			},
			store.ErrUnavailable, []string{"store.postgres.addresses 127.0.0.1:", "no PostgreSQL server"},
		},
		"a table that someone has locked": {
			func(l lab, db string) *postgres.Store {
				s := newStore(l, server.Addr, db)
				want(l, s, marked, store.Granted)
				server.Hold(db, "LOCK TABLE dedupd.records IN ACCESS EXCLUSIVE MODE")
				// The server gives up when nine tenths of the time are over: its answer has the last one to arrive.
				return newStore(l, server.Addr, db, within(10*time.Second))
			},
			store.ErrUnavailable, []string{"no answer in time", "10s", "lock"},
		},
		"a wrong password": {
			func(l lab, db string) *postgres.Store {
				role(l, server, "mistaken")
				return newStore(l, server.Addr, db, credentials(l, "mistaken", "wr0ng-battery"))
			},
			store.ErrUnavailable, []string{"store.postgres.credentialsSecretRef creds", "username and password"},
		},
		"a user that is not there": {
			func(l lab, db string) *postgres.Store {
				return newStore(l, server.Addr, db, credentials(l, "nobody", password))
			},
			store.ErrUnavailable, []string{"store.postgres.credentialsSecretRef creds", "username and password"},
		},
		"a Secret without the key username": {
			func(l lab, db string) *postgres.Store {
				return newStore(l, server.Addr, db, func(o *postgres.Options) {
					o.SecretsDir = postgrestest.Secrets(l, map[string]string{"creds/password": password})
				})
			},
			store.ErrUnavailable, []string{"store.postgres.credentialsSecretRef creds: key username is not there", "creds/username"},
		},
		"a Secret without the key password": {
			func(l lab, db string) *postgres.Store {
				return newStore(l, server.Addr, db, func(o *postgres.Options) {
					o.SecretsDir = postgrestest.Secrets(l, map[string]string{"creds/username": "joe"})
				})
			},
			store.ErrUnavailable, []string{"store.postgres.credentialsSecretRef creds: key password is not there", "creds/password"},
		},
		"a database that is not there": {
			func(l lab, _ string) *postgres.Store { return newStore(l, server.Addr, "nowhere") },
			store.ErrUnavailable, []string{"store.postgres.database nowhere", "create it"},
		},
		"a database that the user may not enter": {
			func(l lab, db string) *postgres.Store {
				server.Must("REVOKE CONNECT ON DATABASE " + db + " FROM PUBLIC")
				return newStore(l, server.Addr, db, role(l, server, "outsider"))
			},
			store.ErrUnavailable, []string{"store.postgres.database db", "GRANT CONNECT ON DATABASE db", "TO outsider"},
		},
		"no schema, and no permission to make it": {
			func(l lab, db string) *postgres.Store { return newStore(l, server.Addr, db, role(l, server, "guest")) },
			store.ErrUnavailable, []string{"store.postgres.schema dedupd", "GRANT CREATE ON DATABASE db", "CREATE SCHEMA dedupd AUTHORIZATION guest"},
		},
		"another's schema": {
			func(l lab, db string) *postgres.Store {
				server.MustIn(db, "CREATE SCHEMA dedupd")
				return newStore(l, server.Addr, db, role(l, server, "lodger"))
			},
			store.ErrUnavailable, []string{"store.postgres.schema dedupd", "GRANT USAGE, CREATE ON SCHEMA dedupd TO lodger"},
		},
		"another's tables": {
			func(l lab, db string) *postgres.Store {
				want(l, newStore(l, server.Addr, db), marked, store.Granted)
				edit := role(l, server, "reader")
				server.MustIn(db, "GRANT USAGE ON SCHEMA dedupd TO reader; GRANT SELECT ON dedupd.migrations TO reader")
				return newStore(l, server.Addr, db, edit)
			},
			store.ErrUnavailable, []string{"store.postgres.schema dedupd", "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA dedupd TO reader"},
		},
		"a schema of another software": {
			func(l lab, db string) *postgres.Store {
				server.MustIn(db, "CREATE SCHEMA dedupd; CREATE TABLE dedupd.migrations (version int); INSERT INTO dedupd.migrations VALUES (99)")
				return newStore(l, server.Addr, db, within(3*time.Second))
			},
			store.ErrUnavailable, []string{"store.postgres.schema dedupd", "missing"},
		},
		"a role without connections left": {
			func(l lab, db string) *postgres.Store {
				edit := role(l, server, "crowd")
				server.Must("ALTER ROLE crowd CONNECTION LIMIT 0")
				return newStore(l, server.Addr, db, edit)
			},
			store.ErrUnavailable, []string{"store.postgres.addresses", "no more connections", "max_connections"},
		},
		"a database that is read-only": {
			func(l lab, db string) *postgres.Store {
				server.Must("ALTER DATABASE " + db + " SET default_transaction_read_only = on")
				return newStore(l, server.Addr, db)
			},
			store.ErrUnavailable, []string{"store.postgres.addresses", "takes no writes", "name the primary"},
		},
		"a server without TLS": {
			func(l lab, db string) *postgres.Store {
				return newStore(l, server.Addr, db, func(o *postgres.Options) { o.Spec.TLS = &v1alpha1.StoreTLS{} })
			},
			store.ErrUnavailable, []string{"does not speak TLS", "store.postgres.tls"},
		},
		"a full disk": {
			func(l lab, db string) *postgres.Store {
				s := newStore(l, server.Addr, db)
				want(l, s, marked, store.Granted)
				fails(server, db, "53100", "could not extend file: No space left on device")
				return s
			},
			store.ErrFull, []string{"store.postgres.addresses", "disk is full", "ttl"},
		},
		"an error that nobody thought of": {
			func(l lab, db string) *postgres.Store {
				s := newStore(l, server.Addr, db)
				want(l, s, marked, store.Granted)
				fails(server, db, "XX001", "invalid page in block 7")
				return s
			},
			store.ErrUnavailable, []string{"store.postgres.addresses", "invalid page in block 7", "XX001"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := test.store(lab{t}, server.Database())
			ops := []store.Op{op(store.Mark, "a", "a"), op(store.Claim, "b", "a"), op(store.Mark, "a", "b"), op(store.Mark, "c", "a")}
			// Twice: a store remembers failures.
			for range 2 {
				begun := time.Now()
				results := apply(s, ops...)
				if took := time.Since(begun); took > 22*time.Second {
					t.Errorf("took %s", took)
				}
				for i, r := range results {
					if r.Outcome != 0 || !errors.Is(r.Err, test.kind) || !errors.Is(r.Err, store.ErrUnavailable) {
						t.Fatalf("operation %d: outcome %d, error %v; want no outcome and %v", i, r.Outcome, r.Err, test.kind)
					}
					for _, part := range test.want {
						if !strings.Contains(r.Err.Error(), part) {
							t.Errorf("operation %d: %q does not say %q", i, r.Err, part)
						}
					}
					for _, told := range []string{"wr0ng-battery", password} {
						if strings.Contains(fmt.Sprintf("%v %+v", r.Err, r.Err), told) {
							t.Errorf("operation %d: the error tells a password: %v", i, r.Err)
						}
					}
				}
			}
		})
	}
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	tests := map[string]struct {
		edit func(*postgres.Options)
		want string
	}{
		"no addresses":  {func(o *postgres.Options) { o.Spec.Addresses = nil }, "store.postgres.addresses"},
		"a bad address": {func(o *postgres.Options) { o.Spec.Addresses = []string{"pg"} }, "store.postgres.addresses pg"},
		"no database":   {func(o *postgres.Options) { o.Spec.Database = "" }, "store.postgres.database"},
		"no schema":     {func(o *postgres.Options) { o.Spec.Schema = "" }, "store.postgres.schema"},
		"no timeout":    {func(o *postgres.Options) { o.Timeout = 0 }, "at least 1ms"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			o := postgres.Options{
				Spec:    v1alpha1.PostgresStore{Addresses: []string{"127.0.0.1:1"}, Database: "d", Schema: "s"},
				Timeout: time.Second,
			}
			test.edit(&o)
			if _, err := postgres.New(o); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one that says %q", err, test.want)
			}
		})
	}
}

func TestTheEnvironmentSaysNothing(t *testing.T) {
	server := postgrestest.Shared(t)
	database := server.Database()
	for name, value := range map[string]string{
		"PGHOST": "elsewhere.invalid", "PGPORT": "1", "PGUSER": "mallory", "PGPASSWORD": "x", "PGDATABASE": "nowhere", "PGSSLMODE": "require",
		"PGTARGETSESSIONATTRS": "read-only", "PGOPTIONS": "-c default_transaction_read_only=on", "PGAPPNAME": "x", "PGREQUIREAUTH": "md5",
		"PGCONNECT_TIMEOUT": "1", "PGCHANNELBINDING": "require",
	} {
		t.Setenv(name, value)
	}
	s := newStore(t, server.Addr, database)
	want(t, s, []store.Op{op(store.Mark, "k", "a")}, store.Granted)
}

func TestACallEndsByItsCallersDeadline(t *testing.T) {
	server := postgrestest.Start(t)
	s := newStore(t, server.Addr, "postgres")
	want(t, s, []store.Op{op(store.Mark, "k", "a")}, store.Granted)
	server.Pause()
	defer server.Resume()
	for name, ops := range map[string][]store.Op{
		"a mark":                       {op(store.Mark, "k", "b")},
		"several kinds, several calls": {op(store.Mark, "l", "b"), op(store.Lookup, "k", ""), op(store.Forget, "m", "")},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		begun := time.Now()
		results := make([]store.Result, len(ops))
		s.Apply(ctx, ops, results)
		if took := time.Since(begun); took > 3*time.Second {
			t.Errorf("%s: took %s, want 200ms", name, took)
		}
		for _, r := range results {
			if !errors.Is(r.Err, store.ErrUnavailable) {
				t.Errorf("%s: %+v, want ErrUnavailable", name, r)
			}
		}
		if h := s.Health(ctx); !errors.Is(h.Err, store.ErrUnavailable) || h.Safety != store.SafetyUnknown || !h.HistorySince.IsZero() {
			t.Errorf("health %+v, want ErrUnavailable and Unknown", h)
		}
	}
}
