package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrStale says that the claim is not the caller's any more: its lease ran out and another
// has taken the message over, or has finished it.
var ErrStale = errors.New("the claim was lost")

const (
	firstPause = 50 * time.Millisecond
	longPause  = 2 * time.Second
)

// retry calls until there is an answer, for as long as the configuration and ctx allow. Every
// call of this package may be repeated: a check by its attempt, a settlement by its token.
func (c *Client) retry(ctx context.Context, call func(context.Context) error) error {
	err := c.try(ctx, call)
	if err == nil || ctx.Err() != nil || !c.again(err) {
		return c.translate(err)
	}
	enough, cancel := context.WithTimeout(ctx, max(c.config.Retry, 0))
	defer cancel() // not before the first try, which mostly is the only one
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		spread := rand.N(pause) //nolint:gosec // keeps callers apart, hides nothing
		timer := time.NewTimer(max(pause/2+spread, min(advised(err), longPause)))
		select {
		case <-timer.C:
		case <-enough.Done():
			timer.Stop()
			return c.translate(err)
		}
		if err = c.try(ctx, call); err == nil || ctx.Err() != nil || !c.again(err) {
			return c.translate(err)
		}
	}
}

// try calls once, within the time that a try has. It is a whole one also at the end of a retry.
func (c *Client) try(ctx context.Context, call func(context.Context) error) error {
	one, done := context.WithTimeout(ctx, c.config.Timeout)
	defer done()
	return call(one)
}

// again says whether another try may help. A deadline that passed is that of one try. A token
// that is not accepted may be renewed already, and a new key of its issuer's on its way to dedupd.
func (c *Client) again(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	case codes.Unauthenticated:
		return c.token != nil
	default:
		return false
	}
}

// advised is the wait that the server asks for.
func advised(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if retry, ok := d.(*errdetails.RetryInfo); ok {
			return retry.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// translate gives the one code that consumers act on a name of its own, and says why no token
// was shown where that is what is missing.
func (c *Client) translate(err error) error {
	if c.token != nil && status.Code(err) == codes.Unauthenticated {
		return errors.Join(err, c.token.unread())
	}
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetReason() == "STALE_TOKEN" {
			return errors.Join(ErrStale, err)
		}
	}
	return err
}
