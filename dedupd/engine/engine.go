// Package engine decides: a policy, a store, and the answer to each message. One check is a
// batch of one, and a batch is one call of the store.
package engine

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Decision is the answer to a check.
type Decision string

// The decisions.
const (
	Fresh      Decision = "FRESH"       // first time: process; in mode Claim, then settle the token
	Duplicate  Decision = "DUPLICATE"   // marked or completed within ttl: acknowledge and drop
	InProgress Decision = "IN_PROGRESS" // another holder's lease runs: retry later, do not acknowledge
	Conflict   Decision = "CONFLICT"    // a known identifier with other content: dead-letter
	Unchecked  Decision = "UNCHECKED"   // nothing was decided and the policy lets it pass: process, at own risk
)

// Request is one message to check.
type Request struct {
	// Consumer is the name of the consumer, 1 to 253 bytes under scope Consumer.
	Consumer string

	// Attempt identifies one logical attempt. A caller that repeats a call because it got no
	// answer repeats the attempt as well, and is then answered as the first time. Empty: a
	// random one is made.
	Attempt string

	Message key.Message
}

// NoClaim is the token of an answer in mode Claim that lets a message pass without a claim.
// Settling it succeeds and does nothing, so that a consumer needs no special case.
const NoClaim = "none"

// Answer is what became of one check: a Decision, or Err.
type Answer struct {
	Decision Decision

	// Key is the message's key; empty where none could be formed.
	Key string

	// Token, Fence and Lease are of the claim that FRESH grants in mode Claim. Token is NoClaim,
	// and the others are zero, where a message passes without one.
	Token string
	Fence uint64
	Lease time.Duration

	// RetryAfter is what is left of the other holder's lease, with IN_PROGRESS.
	RetryAfter time.Duration

	// FirstSeen is when the message was first let through, on the store's clock; zero where
	// the store was not asked or did not answer.
	FirstSeen time.Time

	// Shadow is what would have been answered without enforcement: Shadow: a decision or an
	// error's code. Empty for a policy that is enforced.
	Shadow string

	// Reason says in words why a message is UNCHECKED, or what was wrong under Shadow.
	Reason string

	// Err, an *Error, says why there is no decision; it is never set together with one.
	Err error
}

// Options are what an engine needs besides its policy and store.
type Options struct {
	// Timeout bounds each call of the store. Zero: DefaultTimeout.
	Timeout time.Duration

	// Now is the clock for the ages of duplicates; decisions go by the store's. Required.
	Now func() time.Time

	// Observe is told what happens. Optional.
	Observe Observer
}

// DefaultTimeout bounds a call of the store where the options do not.
const DefaultTimeout = time.Second

// Observer is told what an engine does, for metrics. Functions are called synchronously, from
// many goroutines; one that is nil is not called.
type Observer struct {
	// Checked is called with each answer of Check. The answer is not to be kept.
	Checked func(a *Answer)

	// Duplicate is called with the age of each repeat, DUPLICATE or CONFLICT, also under
	// Shadow: how long ago the message was first let through.
	Duplicate func(age time.Duration)

	// Settled is called with each operation of Settle that had a claim, and its error.
	Settled func(verb store.Verb, err error)
}

// Engine decides for one policy. It is safe for concurrent use.
type Engine struct {
	policy  *policy.Policy
	store   store.Store
	timeout time.Duration
	now     func() time.Time
	observe Observer
}

// New returns an engine. The store stays the caller's to close, after the last call returned.
func New(p *policy.Policy, s store.Store, o Options) *Engine {
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	return &Engine{policy: p, store: s, timeout: o.Timeout, now: o.Now, observe: o.Observe}
}

// Policy is the policy that the engine decides by.
func (e *Engine) Policy() *policy.Policy { return e.policy }

// apply has the store carry out a batch. It does not end with the caller: a write that has
// begun runs to its end under its own deadline. It returns the error for a caller that has left
// meanwhile, who can no longer be told an outcome that it may act on.
func (e *Engine) apply(ctx context.Context, b *batch) error {
	b.results = slices.Grow(b.results, len(b.ops))[:len(b.ops)]
	if len(b.ops) == 0 {
		return nil
	}
	if ctx.Err() != nil {
		return indeterminate(ctx)
	}
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.timeout)
	defer cancel()
	e.store.Apply(own, b.ops, b.results)
	if ctx.Err() != nil {
		return indeterminate(ctx)
	}
	return nil
}

// op is an operation of this policy on a key of the store.
func (e *Engine) op(verb store.Verb, stored string, token record.Token) store.Op {
	return store.Op{
		Verb:  verb,
		Key:   stored,
		Token: token,
		TTL:   e.policy.TTL,
		Lease: e.policy.Lease,
	}
}

// batch is what one call of the store works on. The store touches neither slice when it has
// returned, so that the next call may have them.
type batch struct {
	ops     []store.Op
	results []store.Result
}

var batches = sync.Pool{New: func() any { return &batch{} }}

// newBatch returns an empty batch for n operations. Who is done with it calls done, unless
// something panics: then nobody knows who may still use it.
func newBatch(n int) *batch {
	b := batches.Get().(*batch)
	b.ops = slices.Grow(b.ops, n)
	return b
}

func (b *batch) done() {
	clear(b.ops)
	clear(b.results)
	b.ops, b.results = b.ops[:0], b.results[:0]
	batches.Put(b)
}
