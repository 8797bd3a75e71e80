package engine

import (
	"context"
	"crypto/rand"
	"errors"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Check answers each request, in order, with one call of the store for all of them. Of two
// requests with one key the first is decided first.
func (e *Engine) Check(ctx context.Context, reqs []Request) []Answer {
	answers := make([]Answer, len(reqs))
	b := newBatch(len(reqs))
	for i := range reqs {
		op, err := e.checkOp(&reqs[i], &answers[i])
		if err != nil {
			answers[i].Err = err
			continue
		}
		b.ops = append(b.ops, op)
	}
	left := e.apply(ctx, b)
	next := 0
	for i := range answers {
		a := &answers[i]
		if a.Err == nil {
			e.decide(a, &b.results[next], left)
			next++
		}
		e.enforce(a)
		if e.observe.Checked != nil {
			e.observe.Checked(a)
		}
	}
	b.done()
	return answers
}

// checkOp forms the key of a request, which it writes into the answer, and the operation.
func (e *Engine) checkOp(r *Request, a *Answer) (store.Op, error) {
	key, stored, err := e.policy.Keys(r.Consumer, r.Message)
	if err != nil {
		return store.Op{}, keyError(err)
	}
	a.Key = key
	verb := store.Mark
	if e.policy.Mode == v1alpha1.ModeClaim {
		verb = store.Claim
	}
	op := e.op(verb, stored, record.Token{Owner: owner(r.Attempt)})
	op.Digest = e.policy.Digest(r.Message.Body)
	return op, nil
}

// owner is the owner of an attempt. It is made here, once, outside every retry loop below, so
// that a retry after a lost reply finds its own record and not a stranger's.
func owner(attempt string) record.Owner {
	if attempt != "" {
		return record.OwnerOf(attempt)
	}
	var o record.Owner
	rand.Read(o[:]) // never fails, see crypto/rand
	return o
}

// decide turns the store's result into an answer. Only Seen, which the store has read from
// another attempt's record, ever becomes DUPLICATE.
func (e *Engine) decide(a *Answer, r *store.Result, left error) {
	switch {
	case left != nil:
		a.Err = left
		return
	case r.Err != nil:
		a.Err = storeError(r.Err)
		return
	}
	a.FirstSeen = r.Record.FirstSeen
	switch r.Outcome {
	case store.Granted:
		a.Decision = Fresh
		if r.Record.State == record.Claimed {
			a.Token = record.Token{Owner: r.Record.Owner, Fence: r.Record.Fence}.String()
			a.Fence = r.Record.Fence
			a.Lease = r.Record.Lease
		}
	case store.Seen:
		a.Decision = Duplicate
	case store.Held:
		a.Decision = InProgress
		a.RetryAfter = r.RetryAfter
	case store.Mismatch:
		a.Decision = Conflict
	default:
		a.Err = outcomeError(r.Outcome)
		return
	}
	if e.observe.Duplicate != nil && (a.Decision == Duplicate || a.Decision == Conflict) {
		e.observe.Duplicate(max(e.now().Sub(a.FirstSeen), 0))
	}
}

// enforce applies what the policy says of messages that could not be decided, and of
// decisions that do not bind.
func (e *Engine) enforce(a *Answer) {
	p := e.policy
	if a.Err != nil {
		e.excuse(a)
	} else {
		a.Shadow = string(a.Decision)
	}
	if p.Shadow {
		a.Decision, a.RetryAfter = Fresh, 0
	} else {
		a.Shadow = ""
	}
	if p.Mode == v1alpha1.ModeClaim && a.Token == "" && (a.Decision == Fresh || a.Decision == Unchecked) {
		a.Token = NoClaim
	}
}

// excuse lets a message pass that met an error, where the policy says so.
func (e *Engine) excuse(a *Answer) {
	var err *Error
	if !errors.As(a.Err, &err) {
		return
	}
	p := e.policy
	open := p.FailOpen && err.Code == Unavailable
	process := p.ProcessMissing && err.ofMessage
	switch {
	case open || process:
		a.pass(Unchecked, err.Message)
		a.Shadow = string(Unchecked)
	case p.Shadow:
		a.pass(Fresh, err.Message)
		a.Shadow = string(err.Code)
	}
}

// pass lets a message through that met an error.
func (a *Answer) pass(d Decision, reason string) {
	a.Decision, a.Reason, a.Err = d, reason, nil
}
