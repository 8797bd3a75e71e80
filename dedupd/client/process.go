package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrConflict says that the message's identifier is known with other content. A retry will
// not help.
var ErrConflict = errors.New("the same identifier was seen with other content")

// InProgressError says that another consumer holds the message, which is to be left in the queue.
type InProgressError struct {
	// RetryAfter is when the other's lease runs out.
	RetryAfter time.Duration
}

// Error implements error.
func (e *InProgressError) Error() string {
	return fmt.Sprintf("another consumer holds the message, for at most another %s", e.RetryAfter)
}

// Handler processes a message. ctx ends when the claim is lost: then another consumer may
// have the message, and what the handler has not done yet is not to be done. fence is for
// sinks that can refuse a lower one; it is zero where there is no claim.
type Handler func(ctx context.Context, fence uint64) error

// Process checks a message, and has handle process it if it is fresh or unchecked. In mode
// Claim it renews the lease while handle runs, completes the claim when handle succeeds, and
// releases it when handle fails, with handle's error.
//
// No error means that the message is to be acknowledged: it was processed now, or was before.
// With an error it is to be left in the queue, or dead-lettered where it is ErrConflict. The
// error is an *InProgressError where another holds the message, and is ErrStale where the
// claim was lost on the way: the message may be processed again then.
//
// In mode Mark a message is remembered at the check: one whose handler fails is dropped as a
// duplicate when it comes again.
func (c *Client) Process(ctx context.Context, m Message, handle Handler) (Decision, error) {
	asked := c.config.Now()
	answer, err := c.Check(ctx, m)
	if err != nil {
		return "", err
	}
	switch answer.Decision {
	case Duplicate:
		return Duplicate, nil
	case InProgress:
		return InProgress, &InProgressError{RetryAfter: answer.RetryAfter}
	case Conflict:
		return Conflict, ErrConflict
	default: // Fresh, Unchecked
		return answer.Decision, c.hold(ctx, answer.Claim, asked, handle)
	}
}

// hold runs the handler under a claim that was asked for at the time asked.
func (c *Client) hold(ctx context.Context, claim Claim, asked time.Time, handle Handler) error {
	if claim.Lease == 0 {
		return handle(ctx, claim.Fence) // nothing is held
	}
	held, lose := context.WithCancelCause(ctx)
	var renewing sync.WaitGroup
	renewing.Go(func() { c.keep(held, claim, asked, lose) })
	err := func() error {
		// Also when the handler panics: its claim then runs out.
		defer renewing.Wait()
		defer lose(errDone)
		return handle(held, claim.Fence)
	}()

	// The answer counts also for a caller that is about to end.
	settle := context.WithoutCancel(ctx)
	if err == nil {
		// Also of a claim that seemed lost: the server knows whether anybody took over.
		return c.Complete(settle, claim)
	}
	if lost := context.Cause(held); errors.Is(lost, ErrStale) {
		return errors.Join(lost, err)
	}
	return errors.Join(err, c.Release(settle, claim))
}

// errDone is why the context of a handler that has returned ends.
var errDone = errors.New("the handler has returned")

// keep renews a claim until ctx ends, and says when it is lost: when the server says so, or
// when the lease has run out by this process's clock, counted from before it was asked for.
func (c *Client) keep(ctx context.Context, claim Claim, asked time.Time, lose func(error)) {
	ends := asked.Add(claim.Lease)
	for {
		timer := time.NewTimer(min(claim.Lease/3, ends.Sub(c.config.Now())))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		start := c.config.Now()
		if !start.Before(ends) {
			lose(fmt.Errorf("%w: its lease ran out and could not be renewed", ErrStale))
			return
		}
		try, cancel := context.WithDeadline(ctx, ends)
		lease, err := c.Renew(try, claim)
		cancel()
		switch {
		case err == nil:
			ends = start.Add(lease)
		case errors.Is(err, ErrStale):
			lose(err)
			return
		}
	}
}
