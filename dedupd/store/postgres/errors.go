package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/mounted"
	"github.com/dedupd/dedup-operator/dedupd/store/unreached"
)

// explain turns what went wrong with an operation on key into a problem.
func (s *server) explain(err error, key string) error {
	switch code(err) {
	case codeDiskFull:
		return &store.Problem{
			Text:  s.At("", "the server's disk is full: give it more, or shorten ttl"),
			Kinds: []error{store.ErrUnavailable, store.ErrFull, err},
		}
	case codeTooLong:
		return &store.Problem{
			Text:  fmt.Sprintf("the key %.64q… of %d bytes is longer than an index of PostgreSQL takes", key, len(key)),
			Kinds: []error{store.ErrUnavailable, err},
		}
	}
	return &store.Problem{Text: s.unavailable(err), Kinds: []error{store.ErrUnavailable, err}}
}

func (s *server) unavailable(err error) string {
	if failed := s.lastDial.Load(); failed != nil && errors.Is(err, context.DeadlineExceeded) {
		// The call has waited for a connection that could not be made: the last attempt says why.
		err = failed.err
	}
	var (
		secret  *mounted.Error
		answer  *pgconn.PgError
		connect *pgconn.ConnectError
		notTLS  tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &secret):
		return secret.Error()
	case errors.Is(err, pgconn.ErrReadOnlyConnection):
		return s.At("", readOnly)
	case errors.As(err, &answer):
		return s.refused(err, answer)
	case errors.As(err, &notTLS), strings.Contains(err.Error(), "server refused TLS connection"):
		return s.At("", "the server does not speak TLS: set ssl = on there, or remove store.postgres.tls")
	case errors.Is(err, errMaking):
		return s.At("", fmt.Sprintf("dedupd's schema is not there yet, and is not made within %s: the next calls wait for it as well", s.Timeout))
	}
	if why := s.Why(err); why != "" {
		return why
	}
	var dial *unreached.Dial
	switch {
	case errors.As(err, &connect) && isLost(err) && s.spec.TLS != nil:
		// With TLS 1.3 the server judges the client's certificate after the handshake, and what it says of it may get lost.
		return s.At("", "the server closed the connection: it goes down, or it does not accept the client certificate, see store.postgres.tls.clientSecretRef")
	case errors.As(err, &connect) && isLost(err):
		return s.At("", "what answers there closes the connection: it is no PostgreSQL server, or one that goes down")
	case errors.As(err, &connect) && strings.Contains(err.Error(), "failed to receive message"):
		return s.At("", "what answers there is no PostgreSQL server: "+lastLine(err))
	case isLost(err):
		return s.At("", "the server closed the connection: it went down, or someone ended the session")
	case errors.As(err, &dial):
		return s.At(dial.Addr, lastLine(err))
	}
	return s.At("", lastLine(err))
}

const readOnly = "the server takes no writes: it is a standby, or default_transaction_read_only is on; name the primary, among others if it may change"

func isLost(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// refused explains an answer of the server that is an error. User and database are those of
// the policy; passwords are in none of the server's messages.
func (s *server) refused(err error, answer *pgconn.PgError) string {
	ref := s.spec.CredentialsSecretRef.Name
	said := answer.Message
	switch answer.Code {
	case codePassword, codeNotAllowed:
		if strings.Contains(said, "pg_hba.conf") && !strings.Contains(said, "authentication failed") {
			return s.At("", "the server's pg_hba.conf lets this user not in from here, or only with store.postgres.tls: "+said)
		}
		if strings.Contains(said, "certificate") {
			return s.At("", "the server wants a client certificate: name the Secret with tls.crt and tls.key in store.postgres.tls.clientSecretRef: "+said)
		}
		return fmt.Sprintf("%s %s: the server does not accept this username and password: correct the Secret, it is read again for the next connection", s.secrets.CredentialsField(), ref)
	case codeNoDatabase:
		return fmt.Sprintf("store.postgres.database %s: the server has no database of that name: create it, dedupd does not", s.spec.Database)
	case codeForbidden:
		return s.forbidden(err, said)
	case codeNoSchema, codeNoTable, codeNoFunction:
		return fmt.Sprintf("store.postgres.schema %s: dedupd's tables or functions are missing (%s): has another software, or a restore, changed it?", s.spec.Schema, said)
	case codeReadOnly:
		return s.At("", readOnly)
	case codeConnections:
		return s.At("", "the server takes no more connections: raise its max_connections or the role's CONNECTION LIMIT: "+said)
	case codeStarting:
		return s.At("", "the server is starting up or shutting down: "+said)
	case codeShutdown, codeCrashed:
		return s.At("", "the server, or an administrator, ended the connection: "+said)
	case codeCancelled, codeLockTimeout:
		return s.At("", fmt.Sprintf("no answer in time, which is %s at most: the server is overloaded, or waits for a lock: %s", s.Timeout, said))
	case codeMemory:
		return s.At("", "the server is out of memory: "+said)
	case codeDeadlock:
		return s.At("", "the server ended a deadlock: does anything but dedupd write to its tables? "+said)
	}
	return s.At("", fmt.Sprintf("%s (SQLSTATE %s)", said, answer.Code))
}

// forbidden says which permission is missing, and how it is granted.
func (s *server) forbidden(err error, said string) string {
	schema, database := s.spec.Schema, s.spec.Database
	user, _, unread := s.secrets.Credentials(&s.spec.CredentialsSecretRef, "password")
	if unread != nil {
		user = "the user"
	}
	var step *schemaError
	making := errors.As(err, &step)
	switch {
	case making && strings.Contains(said, "for database"):
		return fmt.Sprintf("store.postgres.schema %s: there is none, and %s may not create one: GRANT CREATE ON DATABASE %s TO %s, or CREATE SCHEMA %s AUTHORIZATION %s",
			schema, user, database, user, schema, user)
	case making && strings.Contains(said, "for schema"):
		return fmt.Sprintf("store.postgres.schema %s: %s may not create tables in it: ALTER SCHEMA %s OWNER TO %s, or GRANT USAGE, CREATE ON SCHEMA %s TO %s",
			schema, user, schema, user, schema, user)
	case making && strings.Contains(said, "must be owner"):
		return fmt.Sprintf("store.postgres.schema %s: %s does not own what is in it and so cannot migrate it: %s", schema, user, said)
	case strings.Contains(said, "for database"):
		return fmt.Sprintf("store.postgres.database %s: %s may not connect to it: GRANT CONNECT ON DATABASE %s TO %s", database, user, database, user)
	case strings.Contains(said, "for schema"):
		return fmt.Sprintf("store.postgres.schema %s: %s may not use it: GRANT USAGE ON SCHEMA %s TO %s", schema, user, schema, user)
	case strings.Contains(said, "for table"):
		return fmt.Sprintf("store.postgres.schema %s: %s may not use its tables: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %s TO %s: %s",
			schema, user, schema, user, said)
	}
	return fmt.Sprintf("store.postgres.schema %s: %s lacks a permission: %s", schema, user, said)
}

// lastLine is the end of an error, without the list of attempts that pgx makes of it.
func lastLine(err error) string {
	text := strings.TrimSpace(err.Error())
	return strings.TrimSpace(text[strings.LastIndexByte(text, '\n')+1:])
}
