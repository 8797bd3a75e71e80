package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dedupd/dedup-operator/dedupd/store"
)

// minVersion is the oldest server that has what dedupd uses, which is the range scan by ctid.
const minVersion = 14

// Health implements store.Store.
func (s *Store) Health(ctx context.Context) store.Health {
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	unknown := func(err error) store.Health {
		return store.Health{Err: s.server.explain(err, ""), Safety: store.SafetyUnknown}
	}
	f, err := ask(ctx, s.pool, s.schema.name)
	if err != nil {
		return unknown(err)
	}
	if f.version/10000 < minVersion {
		return store.Health{Safety: store.SafetyUnknown, Err: &store.Problem{
			Text:  s.server.At("", fmt.Sprintf("the server is PostgreSQL %d: dedupd needs %d or newer", f.version/10000, minVersion)),
			Kinds: []error{store.ErrUnavailable},
		}}
	}
	if f.readOnly {
		return store.Health{Safety: store.SafetyUnknown, Err: &store.Problem{Text: s.server.At("", readOnly), Kinds: []error{store.ErrUnavailable}}}
	}
	if err := s.schema.ready(ctx); err != nil {
		return unknown(err)
	}
	since, err := s.pulse(ctx)
	if err != nil {
		if judge(err).schema {
			s.schema.forget()
		}
		return unknown(err)
	}
	safety, reason := f.judge()
	return store.Health{Safety: safety, Reason: reason, HistorySince: since}
}

// pulse raises the heartbeat of the schema's history and returns since when that is complete.
func (s *Store) pulse(ctx context.Context) (time.Time, error) {
	var since time.Time
	var heartbeat int64
	err := s.pool.QueryRow(ctx, "SELECT born_at, heartbeat FROM "+s.schema.ident+".pulse_1($1)", s.heartbeat.Load()).Scan(&since, &heartbeat)
	if err == nil {
		s.heartbeat.Store(max(heartbeat, s.heartbeat.Load()))
	}
	return since.UTC(), err
}

// facts are what the server says of itself.
type facts struct {
	version           int
	readOnly          bool
	fsync             string
	fullPageWrites    string
	synchronousCommit string
	synchronousNames  string
	standbys          int
	unlogged          bool // a table that a crash empties
}

func ask(ctx context.Context, pool *pgxpool.Pool, schema string) (facts, error) {
	var f facts
	err := pool.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int,
		       current_setting('transaction_read_only')::boolean,
		       current_setting('fsync'), current_setting('full_page_writes'),
		       current_setting('synchronous_commit'), current_setting('synchronous_standby_names'),
		       (SELECT count(*) FROM pg_stat_replication),
		       EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		               WHERE n.nspname = $1 AND c.relpersistence = 'u')`, schema).
		Scan(&f.version, &f.readOnly, &f.fsync, &f.fullPageWrites, &f.synchronousCommit, &f.synchronousNames, &f.standbys, &f.unlogged)
	return f, err
}

// judge says whether what was acknowledged outlives a crash, and what a failover loses.
func (f facts) judge() (store.Safety, string) {
	var faults []string
	if f.fsync != "on" {
		faults = append(faults, "fsync is off: a crash of the machine may lose everything; set fsync = on")
	}
	if f.fullPageWrites != "on" {
		faults = append(faults, "full_page_writes is off: a crash of the machine may damage the tables; set full_page_writes = on")
	}
	if f.synchronousCommit == "off" {
		faults = append(faults, "synchronous_commit is off: a crash forgets the marks of the last moments, and their messages pass again; set synchronous_commit = on")
	}
	if f.unlogged {
		faults = append(faults, "a table of the schema is UNLOGGED: a crash empties it; ALTER TABLE ... SET LOGGED")
	}
	if len(faults) > 0 {
		return store.Unsafe, strings.Join(faults, "; ")
	}
	return store.Safe, "what is acknowledged is on the server's disk; " + f.replication()
}

func (f facts) replication() string {
	switch {
	case f.synchronousNames != "" && f.synchronousCommit != "local":
		return "a synchronous standby has it as well (synchronous_standby_names)"
	case f.synchronousNames != "":
		return "synchronous_commit is local, so that a failover forgets what no standby had yet"
	case f.standbys > 0:
		return fmt.Sprintf("replication to %d standbys is asynchronous: a failover forgets what they had not yet", f.standbys)
	}
	return "the server has no standby"
}
