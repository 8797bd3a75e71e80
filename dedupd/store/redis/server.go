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
	"github.com/dedupd/dedup-operator/dedupd/store/unreached"
)

// server is how the server is reached: addresses, TLS and credentials. Every file is read
// when a connection is made, so that what was rotated is in use from the next connection on,
// and within connectionLife everywhere.
type server struct {
	unreached.Server
	spec    v1alpha1.RedisStore
	secrets mounted.Secrets
	now     func() time.Time
	log     *slog.Logger

	// lastDial is why no connection could be made, until one is made. A call that waits for a
	// connection ends at its deadline, and this says what it waited for.
	lastDial  atomic.Pointer[unreached.Dial]
	connected atomic.Bool // once there has been a connection

	refusal atomic.Pointer[refusal] // of the credentials that were shown last; nil: they were accepted
}

func newServer(o Options) *server {
	return &server{
		Server: unreached.Server{Field: "store.redis", Addresses: o.Spec.Addresses, Timeout: o.Timeout},
		spec:   o.Spec, now: o.Now, log: o.Log,
		secrets: mounted.Secrets{Dir: o.SecretsDir, Field: "store.redis"},
	}
}

// dial makes a connection, with TLS if the policy says so.
func (s *server) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := s.connect(ctx, network, addr)
	if err != nil {
		failed := &unreached.Dial{Addr: addr, Err: err}
		s.lastDial.Store(failed)
		return nil, failed
	}
	s.connected.Store(true)
	s.lastDial.Store(nil)
	return conn, nil
}

func (s *server) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: s.Timeout}
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
		s.lastDial.Store(&unreached.Dial{Addr: addr, Err: fmt.Errorf("%w: %w", errHandshake, context.DeadlineExceeded)})
	}
	conn := tls.Client(plain, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = plain.Close() // the handshake's error says more
		return nil, fmt.Errorf("%w: %w", errHandshake, err)
	}
	return conn, nil
}

var errHandshake = errors.New("TLS handshake")
