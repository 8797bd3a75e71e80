package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/store/mounted"
)

// server is how the server is reached: addresses, TLS and credentials. Every file is read
// when a connection is made, so that what was rotated is in use from the next connection on,
// and within connectionLife everywhere.
type server struct {
	spec    v1alpha1.RedisStore
	secrets mounted.Secrets
	timeout time.Duration
	now     func() time.Time
	log     *slog.Logger

	// lastDial is why no connection could be made, until one is made. A call that waits for a
	// connection ends at its deadline, and this says what it waited for.
	lastDial  atomic.Pointer[dialError]
	connected atomic.Bool // once there has been a connection

	refusal atomic.Pointer[refusal] // of the credentials that were shown last; nil: they were accepted
}

func newServer(o Options) *server {
	return &server{
		spec: o.Spec, timeout: o.Timeout, now: o.Now, log: o.Log,
		secrets: mounted.Secrets{Dir: o.SecretsDir, Field: "store.redis"},
	}
}

// dialError is why there is no connection to an address.
type dialError struct {
	addr string
	err  error
}

func (e *dialError) Error() string { return fmt.Sprintf("dial %s: %v", e.addr, e.err) }
func (e *dialError) Unwrap() error { return e.err }

// dial makes a connection, with TLS if the policy says so.
func (s *server) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := s.connect(ctx, network, addr)
	if err != nil {
		failed := &dialError{addr: addr, err: err}
		s.lastDial.Store(failed)
		return nil, failed
	}
	s.connected.Store(true)
	s.lastDial.Store(nil)
	return conn, nil
}

func (s *server) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: s.timeout}
	if s.spec.TLS == nil {
		return dialer.DialContext(ctx, network, addr)
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	config, err := s.secrets.TLS(s.spec.TLS, host)
	if err != nil {
		return nil, err
	}
	plain, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if !s.connected.Load() {
		// A server that speaks no TLS does not answer, and the call's deadline may come first.
		s.lastDial.Store(&dialError{addr: addr, err: fmt.Errorf("%w: %w", errHandshake, context.DeadlineExceeded)})
	}
	conn := tls.Client(plain, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = plain.Close() // the handshake's error says more
		return nil, fmt.Errorf("%w: %w", errHandshake, err)
	}
	return conn, nil
}

var errHandshake = errors.New("TLS handshake")
