package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/mounted"
)

// problem is an error in the words of the one who wrote the policy: the field, its value and
// what would be right.
type problem struct {
	text  string
	kinds []error
}

func (p *problem) Error() string   { return p.text }
func (p *problem) Unwrap() []error { return p.kinds }

// explain turns what went wrong with an operation on key into a problem.
func (s *server) explain(err error, key string) error {
	switch code(err) {
	case codeDiskFull:
		return &problem{
			text:  s.at("", "the server's disk is full: give it more, or shorten ttl"),
			kinds: []error{store.ErrUnavailable, store.ErrFull, err},
		}
	case codeTooLong:
		return &problem{
			text:  fmt.Sprintf("the key %.64q… of %d bytes is longer than an index of PostgreSQL takes", key, len(key)),
			kinds: []error{store.ErrUnavailable, err},
		}
	}
	return &problem{text: s.unavailable(err), kinds: []error{store.ErrUnavailable, err}}
}

// at names the addresses, of which the one at fault if it is known.
func (s *server) at(addr, what string) string {
	if addr == "" {
		addr = strings.Join(s.spec.Addresses, ", ")
	}
	return fmt.Sprintf("store.postgres.addresses %s: %s", addr, what)
}

func (s *server) unavailable(err error) string {
	if failed := s.lastDial.Load(); failed != nil && errors.Is(err, context.DeadlineExceeded) {
		// The call has waited for a connection that could not be made: the last attempt says why.
		err = failed.err
	}
	var (
		secret  *mounted.Error
		answer  *pgconn.PgError
		dial    *dialError
		connect *pgconn.ConnectError
	)
	switch {
	case errors.As(err, &secret):
		return secret.Error()
	case errors.Is(err, pgconn.ErrReadOnlyConnection):
		return s.at("", readOnly)
	case errors.As(err, &answer):
		return s.refused(err, answer)
	}
	addr := ""
	if errors.As(err, &dial) {
		addr = dial.addr
	}
	if text := s.untrusted(addr, err); text != "" {
		return text
	}
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return s.at(dns.Name, "no such host")
	case errors.As(err, &dns):
		return s.at(dns.Name, "the name is not resolved: "+dns.Err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return s.at(addr, "connection refused: nothing listens there")
	case errors.Is(err, errMaking):
		return s.at("", fmt.Sprintf("dedupd's schema is not there yet, and is not made within %s: the next calls wait for it as well", s.timeout))
	case isTimeout(err) && dial != nil:
		return s.at(addr, fmt.Sprintf("no connection within %s: the server is down or behind a firewall", s.timeout))
	case isTimeout(err):
		return s.at("", fmt.Sprintf("no answer in time, which is %s at most: the server is down, overloaded or behind a firewall", s.timeout))
	case errors.Is(err, context.Canceled):
		return s.at("", "the caller gave up before the server answered")
	case errors.As(err, &connect) && isLost(err) && s.spec.TLS != nil:
		// With TLS 1.3 the server judges the client's certificate after the handshake, and what it says of it may get lost.
		return s.at("", "the server closed the connection: it goes down, or it does not accept the client certificate, see store.postgres.tls.clientSecretRef")
	case errors.As(err, &connect) && isLost(err):
		return s.at("", "what answers there closes the connection: it is no PostgreSQL server, or one that goes down")
	case errors.As(err, &connect) && strings.Contains(err.Error(), "failed to receive message"):
		return s.at("", "what answers there is no PostgreSQL server: "+lastLine(err))
	case isLost(err):
		return s.at("", "the server closed the connection: it went down, or someone ended the session")
	}
	return s.at(addr, lastLine(err))
}

const readOnly = "the server takes no writes: it is a standby, or default_transaction_read_only is on; name the primary, among others if it may change"

// untrusted says what is wrong with TLS, if something is.
func (s *server) untrusted(addr string, err error) string {
	var (
		authority x509.UnknownAuthorityError
		misnamed  x509.HostnameError
		invalid   x509.CertificateInvalidError
		notTLS    tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &authority):
		return s.at(addr, "the server's certificate is of an unknown authority: name the Secret with its ca.crt in store.postgres.tls.caSecretRef")
	case errors.As(err, &misnamed):
		return s.at(addr, misnamed.Error()+": set store.postgres.tls.serverName to a name that the certificate bears")
	case errors.As(err, &invalid):
		return s.at(addr, "the server's certificate is not valid: "+invalid.Error())
	case errors.As(err, &notTLS), strings.Contains(err.Error(), "server refused TLS connection"):
		return s.at(addr, "the server does not speak TLS: set ssl = on there, or remove store.postgres.tls")
	case isAlert(err):
		// With TLS 1.3 the server speaks of the client's certificate after the handshake.
		return s.at(addr, "the server ends the TLS connection: if it wants a client certificate of its authority, name the Secret with tls.crt and tls.key in store.postgres.tls.clientSecretRef")
	}
	return ""
}

func isTimeout(err error) bool {
	var netErr net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &netErr) && netErr.Timeout() || errors.Is(err, os.ErrDeadlineExceeded)
}

func isLost(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// isAlert says whether the server itself ended the TLS connection. The type of its alert is
// not exported.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// refused explains an answer of the server that is an error. User and database are those of
// the policy; passwords are in none of the server's messages.
func (s *server) refused(err error, answer *pgconn.PgError) string {
	ref := s.spec.CredentialsSecretRef.Name
	said := answer.Message
	switch answer.Code {
	case codePassword, codeNotAllowed:
		if strings.Contains(said, "pg_hba.conf") && !strings.Contains(said, "authentication failed") {
			return s.at("", "the server's pg_hba.conf lets this user not in from here, or only with store.postgres.tls: "+said)
		}
		if strings.Contains(said, "certificate") {
			return s.at("", "the server wants a client certificate: name the Secret with tls.crt and tls.key in store.postgres.tls.clientSecretRef: "+said)
		}
		return fmt.Sprintf("%s %s: the server does not accept this username and password: correct the Secret, it is read again for the next connection", s.secrets.CredentialsField(), ref)
	case codeNoDatabase:
		return fmt.Sprintf("store.postgres.database %s: the server has no database of that name: create it, dedupd does not", s.spec.Database)
	case codeForbidden:
		return s.forbidden(err, said)
	case codeNoSchema, codeNoTable, codeNoFunction:
		return fmt.Sprintf("store.postgres.schema %s: dedupd's tables or functions are missing (%s): has another software, or a restore, changed it?", s.spec.Schema, said)
	case codeReadOnly:
		return s.at("", readOnly)
	case codeConnections:
		return s.at("", "the server takes no more connections: raise its max_connections or the role's CONNECTION LIMIT: "+said)
	case codeStarting:
		return s.at("", "the server is starting up or shutting down: "+said)
	case codeShutdown, codeCrashed:
		return s.at("", "the server, or an administrator, ended the connection: "+said)
	case codeCancelled, codeLockTimeout:
		return s.at("", fmt.Sprintf("no answer in time, which is %s at most: the server is overloaded, or waits for a lock: %s", s.timeout, said))
	case codeMemory:
		return s.at("", "the server is out of memory: "+said)
	case codeDeadlock:
		return s.at("", "the server ended a deadlock: does anything but dedupd write to its tables? "+said)
	}
	return s.at("", fmt.Sprintf("%s (SQLSTATE %s)", said, answer.Code))
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
