package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/store/mounted"
	"github.com/dedupd/dedup-operator/dedupd/store/unreached"
)

// server is how the server is reached: addresses, TLS and credentials.
type server struct {
	unreached.Server
	spec    v1alpha1.PostgresStore
	hosts   []endpoint
	secrets mounted.Secrets

	// lastDial is why no connection could be made, until one is made. A call that waits for a
	// connection ends at its deadline, and this says what it waited for.
	lastDial atomic.Pointer[failure]
}

// failure is why there is no connection.
type failure struct{ err error }

// endpoint is an address of the policy.
type endpoint struct {
	host string
	port uint16
}

func newServer(o Options) (*server, error) {
	s := &server{
		Server:  unreached.Server{Field: "store.postgres", Addresses: o.Spec.Addresses, Timeout: o.Timeout},
		spec:    o.Spec,
		secrets: mounted.Secrets{Dir: o.SecretsDir, Field: "store.postgres"},
	}
	for _, a := range o.Spec.Addresses {
		host, port, err := net.SplitHostPort(a)
		if err != nil {
			return nil, fmt.Errorf("store.postgres.addresses %s: %w", a, err)
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("store.postgres.addresses %s: %w", a, err)
		}
		s.hosts = append(s.hosts, endpoint{host: host, port: uint16(n)})
	}
	return s, nil
}

// poolConfig is the pool's configuration. pgx makes it from a text and from the process's
// environment; whatever the environment may have said is said again here, by the policy.
func (s *server) poolConfig() (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig("host=localhost user=dedupd passfile=/dev/null sslmode=disable target_session_attrs=any")
	if err != nil {
		return nil, fmt.Errorf("store.postgres: %w", err)
	}
	c := config.ConnConfig
	c.Host, c.Port = s.hosts[0].host, s.hosts[0].port
	c.Database = s.spec.Database
	c.Password = ""
	c.RequireAuth, c.ChannelBinding, c.SSLNegotiation, c.SSLCertMode = "", "prefer", "postgres", "allow"
	c.ConnectTimeout = s.Timeout / time.Duration(len(s.hosts)) // one that swallows leaves time for the next
	// A host that has vanished is noticed on idle connections too, within seconds.
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}}
	c.DialFunc = s.dial(dialer)
	c.LookupFunc = net.DefaultResolver.LookupHost
	c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	c.RuntimeParams = map[string]string{
		"application_name": "dedupd",
		// Every statement of a function has to see what others have committed meanwhile.
		"default_transaction_isolation": "read committed",
		// What nobody waits for any more ends, and a little before, so that the server says why.
		"statement_timeout": strconv.FormatInt(max((s.Timeout-s.Timeout/10).Milliseconds(), 1), 10),
	}
	config.MaxConns = maxConns
	config.MinConns, config.MinIdleConns = 0, 0
	config.MaxConnIdleTime = 5 * time.Minute
	config.MaxConnLifetime, config.MaxConnLifetimeJitter = time.Hour, 10*time.Minute
	config.HealthCheckPeriod = time.Minute
	// A connection that has died is noticed by the call that uses it, which is repeated then.
	config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	config.BeforeConnect = s.prepare
	config.AfterConnect = func(context.Context, *pgx.Conn) error {
		s.lastDial.Store(nil)
		return nil
	}
	return config, nil
}

// prepare reads what a new connection needs from its files.
func (s *server) prepare(_ context.Context, c *pgx.ConnConfig) error {
	err := s.authenticate(c)
	if err == nil {
		err = s.encrypt(c)
	}
	if err != nil {
		s.lastDial.Store(&failure{err})
	}
	return err
}

func (s *server) authenticate(c *pgx.ConnConfig) (err error) {
	var optional []string
	if s.spec.TLS != nil && s.spec.TLS.ClientSecretRef != nil {
		// The certificate may be all that the server asks for; if not, it says so.
		optional = []string{"password"}
	}
	c.User, c.Password, err = s.secrets.Credentials(&s.spec.CredentialsSecretRef, optional...)
	return err
}

// encrypt sets the addresses, each with its own TLS configuration.
func (s *server) encrypt(c *pgx.ConnConfig) error {
	c.Fallbacks = nil
	for i, h := range s.hosts {
		var config *tls.Config
		if s.spec.TLS != nil {
			var err error
			if config, err = s.secrets.TLS(s.spec.TLS, h.host); err != nil {
				return err
			}
		}
		if i == 0 {
			c.TLSConfig = config
			continue
		}
		c.Fallbacks = append(c.Fallbacks, &pgconn.FallbackConfig{Host: h.host, Port: h.port, TLSConfig: config})
	}
	return nil
}

// dial notes what is being dialled: an address that swallows does not answer by the deadline
// of a call, which then has nothing else to say why.
func (s *server) dial(dialer *net.Dialer) pgconn.DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			failed := &unreached.Dial{Addr: addr, Err: err}
			if !errors.Is(err, context.Canceled) {
				s.lastDial.Store(&failure{failed})
			}
			return nil, failed
		}
		return conn, nil
	}
}
