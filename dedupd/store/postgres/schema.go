package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// The migrations, by their number. A migration only adds, and what it adds under a name never
// changes, so that during a rollout the version before works on what the version after has made.
//
//go:embed migrations/*.sql
var migrations embed.FS

// version is the number of the last migration.
const version = 1

// migrationTime bounds the making of the schema, whoever waits for it.
const migrationTime = time.Minute

// schema is the database's schema as this version needs it. It is looked at when a call first
// needs it, and again after a call has found it missing.
type schema struct {
	name  string // as it stands in the policy
	ident string // as it stands in SQL
	store *Store

	made atomic.Bool

	mu      sync.Mutex
	attempt *attempt // guarded by mu; nil: none is under way
}

// attempt is the making of the schema under way. err is set when done is closed.
type attempt struct {
	connected atomic.Bool // the server is there
	done      chan struct{}
	err       error
}

func newSchema(name string, s *Store) *schema {
	return &schema{name: name, ident: pgx.Identifier{name}.Sanitize(), store: s}
}

// ready returns when the schema is there. Whoever is first makes it, in the background and
// with time of its own: a call that ends by its deadline leaves the work to those that follow.
func (s *schema) ready(ctx context.Context) error {
	if s.made.Load() {
		return nil
	}
	s.mu.Lock()
	a := s.attempt
	if a == nil {
		a = &attempt{done: make(chan struct{})}
		s.attempt = a
		s.store.group.Go(func() { s.make(a) }) //nolint:contextcheck // outlives the call that begins it
	}
	s.mu.Unlock()
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		if !a.connected.Load() {
			return &unconnectedError{ctx.Err()}
		}
		return fmt.Errorf("%w: %w", errMaking, ctx.Err())
	}
}

var errMaking = errors.New("looking for the schema")

// forget has the next call look again: someone has dropped the schema, or restored an older one.
func (s *schema) forget() { s.made.Store(false) }

func (s *schema) make(a *attempt) {
	ctx, cancel := context.WithTimeout(s.store.ctx, migrationTime)
	defer cancel()
	a.err = s.migrate(ctx, a)
	s.made.Store(a.err == nil)
	s.mu.Lock()
	s.attempt = nil
	s.mu.Unlock()
	close(a.done)
}

// migrate brings the schema to this version. Many replicas may do so at once.
func (s *schema) migrate(ctx context.Context, a *attempt) error {
	conn, err := s.store.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	a.connected.Store(true)
	found, err := s.found(ctx, conn.Conn())
	if err != nil || found >= version {
		return err
	}
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // does nothing after Commit
	if err := s.advance(ctx, tx); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// found is the version of the schema that is there, zero if there is none.
func (s *schema) found(ctx context.Context, q querier) (int, error) {
	var there bool
	err := q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = 'migrations')`, s.name).Scan(&there)
	if err != nil || !there {
		return 0, err
	}
	var n int
	err = q.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM `+s.ident+`.migrations`).Scan(&n)
	return n, s.wrap(err, "reading its version")
}

// advance runs the migrations that are missing, in a transaction that only one replica is in.
func (s *schema) advance(ctx context.Context, tx pgx.Tx) error {
	// Not the policy's timeout: this is not done for one call.
	if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL statement_timeout = %d`, migrationTime.Milliseconds())); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`, "dedupd schema "+s.name); err != nil {
		return err
	}
	var there bool
	if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)`, s.name).Scan(&there); err != nil {
		return err
	}
	if !there {
		if _, err := tx.Exec(ctx, `CREATE SCHEMA `+s.ident); err != nil {
			return s.wrap(err, "creating it")
		}
	}
	found, err := s.found(ctx, tx)
	if err != nil {
		return err
	}
	if found == 0 {
		table := `CREATE TABLE ` + s.ident + `.migrations (version integer PRIMARY KEY, made_at timestamptz NOT NULL DEFAULT clock_timestamp())`
		if _, err := tx.Exec(ctx, table); err != nil {
			return s.wrap(err, "creating its tables")
		}
	}
	// The functions keep this path. (A schema that the user may not use would be left out of it without an error,
	// but there is a table in it by now that the user could make or read.)
	if _, err := tx.Exec(ctx, `SET LOCAL search_path = `+s.ident+`, pg_temp`); err != nil {
		return err
	}
	for n := found + 1; n <= version; n++ {
		text, err := migrations.ReadFile(fmt.Sprintf("migrations/%d.sql", n))
		if err != nil {
			return err
		}
		// Several statements at once are sent by the simple protocol, which has no arguments.
		if _, err := tx.Conn().PgConn().Exec(ctx, string(text)).ReadAll(); err != nil {
			return s.wrap(err, fmt.Sprintf("migrating it to version %d", n))
		}
		if _, err := tx.Exec(ctx, `INSERT INTO migrations (version) VALUES ($1)`, n); err != nil {
			return s.wrap(err, fmt.Sprintf("migrating it to version %d", n))
		}
	}
	return nil
}

// schemaError is what went wrong with the schema.
type schemaError struct {
	doing string
	err   error
}

func (e *schemaError) Error() string { return e.doing + ": " + e.err.Error() }
func (e *schemaError) Unwrap() error { return e.err }

func (s *schema) wrap(err error, doing string) error {
	if err == nil {
		return nil
	}
	return &schemaError{doing: doing, err: err}
}

// Codes of the server's errors, of https://www.postgresql.org/docs/current/errcodes-appendix.html.
const (
	codeNoSchema    = "3F000"
	codeNoTable     = "42P01"
	codeNoFunction  = "42883"
	codeNoStatement = "26000"
	codeNoDatabase  = "3D000"
	codeForbidden   = "42501"
	codePassword    = "28P01"
	codeNotAllowed  = "28000"
	codeReadOnly    = "25006"
	codeDiskFull    = "53100"
	codeMemory      = "53200"
	codeConnections = "53300"
	codeShutdown    = "57P01"
	codeCrashed     = "57P02"
	codeStarting    = "57P03"
	codeCancelled   = "57014"
	codeLockTimeout = "55P03"
	codeDeadlock    = "40P01"
	codeSerialize   = "40001"
	codeTooLong     = "54000"
)

// code is the code of the server's answer, empty if the error is none.
func code(err error) string {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return answer.Code
	}
	return ""
}
