package engine

import (
	"context"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Settle is what a holder does with its claim.
type Settle struct {
	// Verb is store.Complete, store.Release or store.Renew.
	Verb store.Verb

	// Key and Token are those of the answer that granted the claim.
	Key, Token string
}

// Settled is what became of it: a state, or Err.
type Settled struct {
	// State is the record's state after the operation: COMPLETED, RELEASED or CLAIMED. It is
	// StateNone where there was no claim to settle.
	State string

	// Lease is how long the claim runs from now on, after Renew.
	Lease time.Duration

	// Err is an *Error.
	Err error
}

// StateNone is the state after settling the token NoClaim.
const StateNone = "NONE"

// Settle carries out ops in order, with one call of the store for all of them. Each may be
// repeated by the same holder. A claim from before the policy's mode became Mark is settled
// as well.
func (e *Engine) Settle(ctx context.Context, ops []Settle) []Settled {
	out := make([]Settled, len(ops))
	b := newBatch(len(ops))
	index := make([]int, 0, len(ops))
	for i, s := range ops {
		if s.Token == NoClaim {
			out[i].State = StateNone
			continue
		}
		op, err := e.settleOp(s)
		if err != nil {
			out[i].Err = err
			continue
		}
		b.ops = append(b.ops, op)
		index = append(index, i)
	}
	left := e.apply(ctx, b)
	for n, i := range index {
		out[i] = settled(ops[i].Verb, &b.results[n], left)
		if e.observe.Settled != nil {
			e.observe.Settled(ops[i].Verb, out[i].Err)
		}
	}
	b.done()
	return out
}

func (e *Engine) settleOp(s Settle) (store.Op, error) {
	switch s.Verb {
	case store.Complete, store.Release, store.Renew:
	default:
		return store.Op{}, invalidArgument("verb", "%d; want complete, release or renew", s.Verb)
	}
	if err := checkKey(s.Key); err != nil {
		return store.Op{}, err
	}
	token, err := record.ParseToken(s.Token)
	if err != nil {
		return store.Op{}, invalidArgument("token", "%w, or %q where there was no claim", err, NoClaim)
	}
	return e.op(s.Verb, e.policy.StoreKey(s.Key), token), nil
}

// checkKey refuses what no answer ever named as a key.
func checkKey(k string) error {
	switch {
	case k == "":
		return invalidArgument("key", "missing; want the key that the check's answer named")
	case len(k) > key.MaxReadable:
		return invalidArgument("key", "%d bytes, at most %d; want the key that the check's answer named", len(k), key.MaxReadable)
	}
	return nil
}

func settled(verb store.Verb, r *store.Result, left error) Settled {
	switch {
	case left != nil:
		return Settled{Err: left}
	case r.Err != nil:
		return Settled{Err: storeError(r.Err)}
	}
	switch r.Outcome {
	case store.Granted:
		s := Settled{State: r.Record.State.String()}
		if verb == store.Renew {
			s.Lease = r.Record.Lease
		}
		return s
	case store.Stale, store.Absent:
		return Settled{Err: &Error{Code: StaleToken, Field: "token", Message: "token: " + staleReason(r)}}
	default:
		return Settled{Err: outcomeError(r.Outcome)}
	}
}

// staleReason says why a token no longer holds, as far as the record tells.
func staleReason(r *store.Result) string {
	if r.Outcome == store.Absent {
		return "nothing is remembered under this key any more: its ttl has passed, or it was forgotten"
	}
	switch r.Record.State {
	case record.Completed:
		return "the claim is not yours any more: the message was completed; do not process it again"
	case record.Released:
		return "the claim is not yours any more: it was released; check the message again"
	case record.Claimed:
		return "the claim is not yours any more: its lease ran out and another attempt took it over"
	default:
		return "the claim is not yours any more: the message was marked"
	}
}

// Found is what is remembered under a key.
type Found struct {
	Key       string
	State     string // MARKED, CLAIMED, COMPLETED or RELEASED
	FirstSeen time.Time
	Fence     uint64

	// Remaining is how long it will be remembered, LeaseLeft what is left of a claim's lease.
	Remaining time.Duration
	LeaseLeft time.Duration
}

// Lookup returns what is remembered under a key. Its error is an *Error, of code NotFound
// where that is nothing.
func (e *Engine) Lookup(ctx context.Context, key string) (Found, error) {
	r, err := e.one(ctx, store.Lookup, key)
	if err != nil {
		return Found{}, err
	}
	switch r.Outcome {
	case store.Granted:
		return Found{
			Key:       key,
			State:     r.Record.State.String(),
			FirstSeen: r.Record.FirstSeen,
			Fence:     r.Record.Fence,
			Remaining: r.Remaining,
			LeaseLeft: r.RetryAfter,
		}, nil
	case store.Absent:
		return Found{}, &Error{Code: NotFound, Field: "key", Message: "key: nothing is remembered under " + key}
	default:
		return Found{}, outcomeError(r.Outcome)
	}
}

// Forget removes what is remembered under a key, so that its message is FRESH again, and says
// whether there was anything. Its error is an *Error.
func (e *Engine) Forget(ctx context.Context, key string) (existed bool, err error) {
	r, err := e.one(ctx, store.Forget, key)
	if err != nil {
		return false, err
	}
	switch r.Outcome {
	case store.Granted:
		return true, nil
	case store.Absent:
		return false, nil
	default:
		return false, outcomeError(r.Outcome)
	}
}

// one carries out a single operation that needs no token.
func (e *Engine) one(ctx context.Context, verb store.Verb, key string) (store.Result, error) {
	if err := checkKey(key); err != nil {
		return store.Result{}, err
	}
	b := newBatch(1)
	b.ops = append(b.ops, e.op(verb, e.policy.StoreKey(key), record.Token{}))
	left := e.apply(ctx, b)
	r := b.results[0]
	b.done()
	switch {
	case left != nil:
		return store.Result{}, left
	case r.Err != nil:
		return store.Result{}, storeError(r.Err)
	}
	return r, nil
}
