package redis

import (
	"context"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

// How a rotated password gets into use without a failed check.
//
// A new connection reads the Secret's files. The file may be ahead of the server or behind it, by as
// much as it takes the kubelet or the one who rotates: so a connection whose credentials are refused
// reads them again, and shows them again, until they are accepted or the call has no time left.
// An old connection goes on as it is: servers ask once. Only where the user that it has shown loses its
// rights, the commands that were refused, which have changed nothing, go out once more behind an
// AUTH.
//
// Waiting is for what changes. Once the same credentials have been refused for as long as patience, calls
// fail at once, until the file is another.

const (
	// recheck is how often the file is read while credentials are refused.
	recheck = 20 * time.Millisecond

	// patience is for how long after their first refusal credentials are worth waiting.
	patience = 10 * time.Second
)

// refusal is since when the server has refused credentials.
type refusal struct {
	credentials
	since time.Time
}

// credentials are a user and password. An empty user is Redis's default one.
type credentials struct{ username, password string }

// credentials reads what the Secret holds now.
func (s *server) credentials() (credentials, error) {
	username, password, err := s.secrets.Credentials(s.spec.CredentialsSecretRef, "username")
	return credentials{username, password}, err
}

// auth is the command that shows credentials.
func (c credentials) auth(ctx context.Context) *redis.StatusCmd {
	if c.username == "" {
		return redis.NewStatusCmd(ctx, "auth", c.password)
	}
	return redis.NewStatusCmd(ctx, "auth", c.username, c.password)
}

// authenticate shows the credentials on a new connection.
func (s *server) authenticate(ctx context.Context, conn *redis.Conn) error {
	return s.untilAccepted(ctx, func(c credentials) error {
		cmd := c.auth(ctx)
		err := conn.Process(ctx, cmd)
		switch {
		case redis.HasErrorPrefix(err, "AUTH "):
			// Nobody is asked for a password yet: that may come after the Secret.
			return nil
		case redis.IsAuthError(err) && s.spec.MasterName != "" && isOpenSentinel(ctx, conn):
			return nil
		}
		return err
	})
}

// isOpenSentinel says whether the connection is to a sentinel that wants no credentials. They may be the
// servers' alone.
func isOpenSentinel(ctx context.Context, conn *redis.Conn) bool {
	info, err := conn.Info(ctx, "server").Result()
	return err == nil && parseInfo(info)["redis_mode"] == "sentinel"
}

// untilAccepted calls try with what the Secret holds until it is not refused any more, or until
// the call that wants it has to say why it failed.
func (s *server) untilAccepted(ctx context.Context, try func(credentials) error) error {
	waiting, cancel := s.almost(ctx)
	defer cancel()
	for {
		shown, err := s.credentials()
		if err == nil {
			if err = try(shown); !isRefusal(err) {
				s.refusal.Store(nil)
				return err
			}
		}
		if !s.worthWaiting(shown) {
			return err
		}
		timer := time.NewTimer(recheck)
		select {
		case <-timer.C:
		case <-waiting.Done():
			timer.Stop()
			return err
		}
	}
}

// worthWaiting notes that credentials were refused, and says whether that may pass.
func (s *server) worthWaiting(shown credentials) bool {
	now := s.now()
	r := s.refusal.Load()
	if r == nil || r.credentials != shown {
		s.refusal.Store(&refusal{shown, now})
		return true
	}
	return now.Sub(r.since) < patience
}

// almost ends shortly before ctx does, so that there is time to say why.
func (s *server) almost(ctx context.Context) (context.Context, context.CancelFunc) {
	if end, ok := ctx.Deadline(); ok {
		return context.WithDeadline(ctx, end.Add(-s.Timeout/10))
	}
	return context.WithTimeout(ctx, s.Timeout)
}

// isRefusal says whether the server does not let this user in, or not do this.
func isRefusal(err error) bool {
	return redis.IsAuthError(err) || redis.HasErrorPrefix(err, "NOPERM ")
}

// reauth is the hook that shows credentials again where commands are refused on a connection
// that was made before they changed.
type reauth struct{ server *server }

var _ redis.Hook = reauth{}

// DialHook implements redis.Hook.
func (reauth) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook implements redis.Hook.
func (reauth) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return next(ctx, cmd) }
}

// ProcessPipelineHook implements redis.Hook.
func (h reauth) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		if refused(cmds) == nil || ctx.Value(mayRefuse{}) != nil {
			return err
		}
		return h.server.untilAccepted(ctx, func(c credentials) error {
			auth := c.auth(ctx)
			again := append([]redis.Cmder{auth}, refused(cmds)...)
			for _, cmd := range again {
				cmd.SetErr(nil)
			}
			err := next(ctx, again)
			if first := refused(again); first != nil {
				return first[0].Err()
			}
			return err
		})
	}
}

// mayRefuse is the key of a context value: with it, what a server refuses stays refused.
type mayRefuse struct{}

// refused are the commands that the server has refused to carry out.
func refused(cmds []redis.Cmder) []redis.Cmder {
	var all []redis.Cmder
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil && isRefusal(err) {
			all = append(all, cmd)
		}
	}
	return all
}
