// Package redis is the store in a Redis or Valkey server: one native command for each message
// that is new or a duplicate, and a script for everything that has to be compared first.
package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Options are the settings of a Store.
type Options struct {
	// Spec says where the server is and how it is spoken to, with defaults filled in.
	Spec v1alpha1.RedisStore

	// SecretsDir holds a folder for each Secret that Spec names, with a file for each key.
	SecretsDir string

	// BirthKey is the key of the marker by which a loss of the server's history is noticed. In a
	// cluster it is what the markers' keys begin with. Empty: there is none, and HistorySince is not known.
	BirthKey string

	// Timeout bounds every Apply and every Health, retries included. At least a millisecond.
	Timeout time.Duration

	// Now is this process's clock. The server's is derived from it, for first-seen times only.
	Now func() time.Time

	// Log gets what happens beside the answers. Nil: nothing is logged.
	Log *slog.Logger
}

// Store remembers in Redis.
type Store struct {
	client  redis.UniversalClient
	server  *server
	history *history
	grants  grants
	durable *durable // nil: the replicas do not count
	clock   *clock
	limit   time.Duration
	hashes  *hashes // nil: each message has a key of its own
}

var _ store.Store = (*Store)(nil)

// connectionLife is how long a connection is used, give or take a tenth: a server asks for
// credentials and certificates once, and who takes an old one out of use wants it gone.
const connectionLife = 5 * time.Minute

// silence keeps go-redis from writing to standard error: what it has to say is in the errors
// that Apply and Health return.
var silence = sync.OnceFunc(logging.Disable)

// New returns a store. The server need not be reachable: it is dialled when it is asked.
func New(o Options) (*Store, error) {
	switch {
	case len(o.Spec.Addresses) == 0:
		return nil, errors.New("store.redis.addresses: empty; name the server as host:port, such as redis.shop.svc:6379")
	case o.Timeout < time.Millisecond:
		return nil, fmt.Errorf("store timeout %s: at least 1ms", o.Timeout)
	case o.Now == nil:
		return nil, errors.New("redis.Options.Now: nil; pass the clock")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	silence()
	s := &Store{
		server:  newServer(o),
		history: newHistory(o.BirthKey, o.Spec.Mode),
		clock:   &clock{now: o.Now},
		limit:   o.Timeout,
		hashes:  layout(o.Spec),
	}
	u := &redis.UniversalOptions{
		Addrs:         slices.Clone(o.Spec.Addresses), // the cluster's client appends to it
		MasterName:    o.Spec.MasterName,
		IsClusterMode: o.Spec.Mode == v1alpha1.RedisCluster,

		Dialer:    s.server.dial,
		OnConnect: s.onConnect,

		// Every wait ends with the caller's context, and so with the limit.
		ContextTimeoutEnabled: true,
		DialTimeout:           o.Timeout,
		ReadTimeout:           o.Timeout,
		WriteTimeout:          o.Timeout,
		PoolTimeout:           o.Timeout,

		// A command that failed is dialled for again, within the limit; an inner loop of
		// dials would only hide why the first of them failed until the limit is reached.
		DialerRetries: 1,

		// What was rotated is in use everywhere after this time.
		ConnMaxLifetime:       connectionLife,
		ConnMaxLifetimeJitter: connectionLife / 10,

		// The plain protocol: nothing here needs what RESP3 adds.
		Protocol:         2,
		DisableIdentity:  true,
		PipelinePoolSize: -1, // every call is a pipeline: one pool is enough
	}
	s.client = redis.NewUniversalClient(u)
	if o.Spec.CredentialsSecretRef != nil {
		s.hook(reauth{s.server})
	}
	// The inner one: what reauth sends again is waited for as well.
	if s.durable = newDurable(s); s.durable != nil {
		s.hook(s.durable)
	}
	return s, nil
}

// hook adds a hook to the pipelines of every server that holds data.
func (s *Store) hook(h redis.Hook) {
	if cluster, ok := s.client.(*redis.ClusterClient); ok {
		cluster.OnNewNode(func(node *redis.Client) { node.AddHook(h) })
		return
	}
	s.client.AddHook(h)
}

// onConnect makes a new connection ready. A connection that the server will not serve is
// refused here, so that it is not kept and the next one reads the credentials anew.
func (s *Store) onConnect(ctx context.Context, conn *redis.Conn) error {
	if s.server.spec.CredentialsSecretRef != nil {
		if err := s.server.authenticate(ctx, conn); err != nil {
			return err
		}
	}
	if err := conn.Ping(ctx).Err(); err != nil && (redis.IsAuthError(err) || !isReply(err)) {
		return err
	}
	if err := s.clock.sample(ctx, conn); err != nil {
		// Sentinels, and users without the permission, have no TIME.
		s.server.log.DebugContext(ctx, "server's time not known, first-seen times are by this process's clock", "error", err)
		if !isReply(err) {
			return err
		}
	}
	return nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	return s.client.Close()
}
