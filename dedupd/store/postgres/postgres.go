// Package postgres is the store in a PostgreSQL server: for policies that must not forget. A
// batch is one call of a function in the database, and one transaction.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Options are the settings of a Store.
type Options struct {
	// Spec says where the server is and how it is spoken to, with defaults filled in.
	Spec v1alpha1.PostgresStore

	// SecretsDir holds a folder for each Secret that Spec names, with a file for each key.
	SecretsDir string

	// Timeout bounds every Apply and every Health, retries included. At least a millisecond.
	Timeout time.Duration

	// Sweep ticks when it is time to look for expired records. Nil: this store removes none.
	Sweep <-chan time.Time

	// Log gets what happens beside the answers. Nil: nothing is logged.
	Log *slog.Logger
}

// Store remembers in PostgreSQL.
type Store struct {
	server *server
	pool   *pgxpool.Pool
	schema *schema
	limit  time.Duration
	log    *slog.Logger

	heartbeat atomic.Int64 // the highest that the schema's history has had

	ctx   context.Context // of what runs beside the answers, until stop
	stop  context.CancelFunc
	group sync.WaitGroup
}

var _ store.Store = (*Store)(nil)

// maxConns is how many connections a store has at most. A batch needs one at a time, and the
// server's are few: by default 100 for all of its clients.
const maxConns = 8

// New returns a store. The server need not be reachable: it is dialled, and its schema is
// made, when it is asked for the first time.
//
//nolint:contextcheck,nolintlint // a store outlives every call, and ends with Close
func New(o Options) (*Store, error) {
	switch {
	case len(o.Spec.Addresses) == 0:
		return nil, errors.New("store.postgres.addresses: empty; name the server as host:port, such as postgres.shop.svc:5432")
	case o.Spec.Database == "":
		return nil, errors.New("store.postgres.database: empty; name a database that exists")
	case o.Spec.Schema == "":
		return nil, errors.New("store.postgres.schema: empty; the default is dedupd")
	case o.Timeout < time.Millisecond:
		return nil, fmt.Errorf("store timeout %s: at least 1ms", o.Timeout)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	server, err := newServer(o)
	if err != nil {
		return nil, err
	}
	config, err := server.poolConfig()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		stop()
		return nil, fmt.Errorf("store.postgres: %w", err)
	}
	s := &Store{server: server, pool: pool, limit: o.Timeout, log: o.Log, ctx: ctx, stop: stop}
	s.schema = newSchema(o.Spec.Schema, s)
	if o.Sweep != nil {
		s.group.Go(func() { s.sweep(ctx, o.Sweep) })
	}
	return s, nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.stop()
	s.group.Wait()
	s.pool.Close()
	return nil
}
