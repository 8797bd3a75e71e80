package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/mounted"
	"github.com/dedupd/dedup-operator/dedupd/store/unreached"
)

// isReply says whether the error is the server's answer, and not the lack of one.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// explain turns what went wrong with an operation on key into a problem.
func (s *server) explain(err error, key string) error {
	if errors.Is(err, store.ErrCorrupt) || redis.HasErrorPrefix(err, "WRONGTYPE ") {
		what := err.Error()
		if isReply(err) {
			what = store.ErrCorrupt.Error() + ": a value of another type"
		}
		return &store.Problem{
			Text:  fmt.Sprintf("store.redis.keyPrefix: under the key %q stands %s; give dedupd a prefix, or a server, that nothing else writes to", key, what),
			Kinds: []error{store.ErrCorrupt, store.ErrUnavailable, err},
		}
	}
	if redis.HasErrorPrefix(err, "OOM ") {
		return &store.Problem{
			Text:  s.At("", "the server is out of memory (OOM) and evicts nothing: raise its maxmemory, or shorten ttl"),
			Kinds: []error{store.ErrUnavailable, store.ErrFull, err},
		}
	}
	return &store.Problem{Text: s.unavailable(err), Kinds: []error{store.ErrUnavailable, err}}
}

func (s *server) unavailable(err error) string {
	var secret *mounted.Error
	if errors.As(err, &secret) {
		return secret.Error()
	}
	if errors.Is(err, redis.Nil) && s.spec.Mode == v1alpha1.RedisSentinel {
		return fmt.Sprintf("store.redis.masterName %s: the sentinels at %s know no primary of that name", s.spec.MasterName, strings.Join(s.spec.Addresses, ", "))
	}
	if isReply(err) {
		return s.refused(err)
	}
	var (
		dial   *unreached.Dial
		notTLS tls.RecordHeaderError
	)
	if !errors.As(err, &dial) && errors.Is(err, context.DeadlineExceeded) {
		// The call has waited for a connection that could not be made: the last attempt says why.
		if dial = s.lastDial.Load(); dial != nil {
			err = dial
		}
	}
	switch {
	case dial != nil && errors.As(err, &notTLS):
		return s.At(dial.Addr, "the server does not speak TLS there: name its TLS port, or remove store.redis.tls")
	case dial != nil && errors.Is(err, errHandshake) && unreached.IsTimeout(err):
		return s.At(dial.Addr, fmt.Sprintf("no answer to the TLS handshake within %s: name the server's TLS port, or remove store.redis.tls", s.Timeout))
	case errors.Is(err, redis.ErrPoolTimeout):
		return s.At("", "every connection is busy: the server is too slow for what is asked of it")
	}
	if why := s.Why(err); why != "" {
		return why
	}
	switch {
	case dial != nil:
		return s.At(dial.Addr, dial.Err.Error())
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		other := "it wants TLS, for which store.redis.tls has to be set"
		if s.spec.TLS != nil {
			other = "it does not accept the client certificate, see store.redis.tls.clientSecretRef"
		}
		return s.At("", "the server closed the connection: it went down, or "+other)
	case strings.HasPrefix(err.Error(), "redis: can't parse"):
		return s.At("", "what answers there is no Redis server: "+err.Error())
	}
	return s.At("", err.Error())
}

// refusals are the server's answers that a user can do something about, by how they begin.
var refusals = []struct{ prefix, advice string }{
	{"READONLY ", "the server is a read-only replica: name the primary, or with mode: Sentinel the sentinels that know it"},
	{"LOADING ", "the server is loading its data after a start: it will answer when it is done"},
	{"CLUSTERDOWN ", "the cluster is down: some of its slots have no node"},
	{"MASTERDOWN ", "the server is a replica that has lost its primary: name the primary"},
	{"TRYAGAIN ", "the cluster is moving slots: try again"},
	{"MISCONF ", "the server cannot save to its disk and so takes no writes: see its log, and free or repair the disk"},
	{"NOREPLICAS ", "the server has fewer replicas than its min-replicas-to-write and so takes no writes"},
	{"BUSY ", "the server is busy with another client's script"},
	{"MOVED ", "the server is a node of a cluster: set store.redis.mode: Cluster"},
	{"ASK ", "the server is a node of a cluster: set store.redis.mode: Cluster"},
	{"This instance has cluster support disabled", "the server is no cluster: set store.redis.mode: Standalone"},
	{"max number of clients reached", "the server takes no more connections: raise its maxclients"},
	{"syntax error", oldServer},
	{"Error compiling script", oldServer},
}

const oldServer = "the server does not know SET with NX and GET together: dedupd needs Redis 7.0 or newer, or Valkey 7.2 or newer"

const aSentinel = "a sentinel, for which store.redis.mode has to be Sentinel"

// refused explains an answer of the server that is an error. The answers to commands that
// carry a password are not repeated: some servers quote the command.
func (s *server) refused(err error) string {
	for _, r := range refusals {
		if redis.HasErrorPrefix(err, r.prefix) {
			return s.At("", r.advice)
		}
	}
	ref := s.spec.CredentialsSecretRef
	switch {
	case redis.HasErrorPrefix(err, "unknown command") && s.spec.Mode == v1alpha1.RedisSentinel:
		return s.At("", "what answers there is no sentinel: name the sentinels, or set store.redis.mode: Standalone")
	case redis.HasErrorPrefix(err, "unknown command"):
		return s.At("", "the server lacks a command that dedupd needs: it is "+aSentinel+", or older than Redis 7.0 or Valkey 7.2")
	case redis.HasErrorPrefix(err, "NOPERM "):
		needed := "set, get, pttl, del, eval, evalsha"
		if layout(s.spec) != nil {
			needed += ", hget, hset, hdel, hlen, hscan, pexpire, time"
		}
		return s.At("", fmt.Sprintf("the server's user may not do what dedupd has to, which is %s, ping and info on the keys of keyPrefix: %s", needed, reply(err)))
	case redis.IsAuthError(err) && ref == nil:
		return "store.redis.credentialsSecretRef: not set, but the server wants a password: name a Secret with the key password, and username if it has users"
	case redis.IsAuthError(err):
		return fmt.Sprintf("%s %s: the server does not accept this username and password: correct the Secret, it is read again for the next connection", s.secrets.CredentialsField(), ref.Name)
	case redis.HasErrorPrefix(err, "AUTH "):
		return fmt.Sprintf("%s: the server has no password: remove it", s.secrets.CredentialsField())
	}
	return s.At("", reply(err))
}

// reply is the text of the server's answer.
func reply(err error) string {
	var r redis.Error
	if errors.As(err, &r) {
		return r.Error()
	}
	return err.Error()
}
