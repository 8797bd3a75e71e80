package postgres

import (
	"fmt"
	"strings"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// settle sets the results of a call that was answered, and returns the operations that are not
// decided by the answer.
func (b *batch) settle(c *call, answers []answer) []int {
	var late []int
	var began time.Time
	answered := make([]bool, len(c.indices))
	for _, a := range answers {
		if a.place == 0 {
			began = a.at
			continue
		}
		if a.place > len(c.indices) || answered[a.place-1] {
			b.fail(c.indices, fmt.Errorf("%w: place %d", errAnswer, a.place))
			return nil
		}
		answered[a.place-1] = true
		i := c.indices[a.place-1]
		r, decided := decide(b.ops[i], a)
		if !decided {
			late = append(late, i)
			continue
		}
		b.results[i] = c.known(b.ops[i], r)
	}
	for n, i := range c.indices {
		switch {
		case answered[n]:
		case c.function == acquire && !began.IsZero():
			// Nothing stood under the key, and now the record does that says so.
			_, b.results[i] = store.Transition(nil, b.ops[i], began)
		default:
			b.fail([]int{i}, fmt.Errorf("%w: nothing in place %d", errAnswer, n+1))
		}
	}
	return late
}

// decide turns an answer into a result. The server has decided where it changed something; where
// nothing needs to change, what it found decides; else the operation is still to be done.
func decide(op store.Op, a answer) (store.Result, bool) {
	if a.outcome == 0 {
		next, r := store.Transition(a.entry, op, a.at)
		return r, next == a.entry || next == nil
	}
	r := store.Result{Outcome: a.outcome}
	if a.entry == nil {
		return r, true
	}
	r.Record = a.entry.Record
	left := time.Duration(0)
	if r.Record.State == record.Claimed {
		left = max(a.entry.ExpiresAt.Add(r.Record.Lease-r.Record.Window).Sub(a.at), 0)
	}
	switch {
	case op.Verb == store.Lookup:
		r.Remaining, r.RetryAfter = a.entry.ExpiresAt.Sub(a.at), left
	case r.Outcome == store.Held:
		r.RetryAfter = left
	}
	return r, true
}

// known is the result of an operation whose call was answered. Where an earlier try may have
// taken effect, a token that is not the holder's any more may have been it then: the operation may have
// been done, and undone by another.
func (c *call) known(op store.Op, r store.Result) store.Result {
	lost := r.Outcome == store.Stale || r.Outcome == store.Absent
	if c.again && lost && settled(op.Verb) != 0 {
		return store.Result{Err: fmt.Errorf("%w: the connection was lost, and whether the operation was done before is not known: ask again", store.ErrUnavailable)}
	}
	return r
}

// fail says of operations that what became of them is not known.
func (b *batch) fail(indices []int, err error) {
	if len(indices) == 0 {
		return
	}
	err = b.store.server.explain(err, strings.Clone(b.ops[indices[0]].Key))
	for _, i := range indices {
		b.results[i] = store.Result{Err: err}
	}
}
