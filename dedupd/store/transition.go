package store

import (
	"time"

	"github.com/dedupd/dedup-operator/dedupd/record"
)

// Entry is a record and when the store forgets it.
type Entry struct {
	Record    record.Record
	ExpiresAt time.Time
}

// leaseLeft is what is left of the lease of a claim at now; zero or less when it has run out.
func (e Entry) leaseLeft(now time.Time) time.Duration {
	written := e.ExpiresAt.Add(-e.Record.Window)
	return written.Add(e.Record.Lease).Sub(now)
}

// Transition is the meaning of every operation: given what stands under a key (nil: nothing)
// and the store's time, it returns what shall stand there (nil: nothing; prev itself: no
// change) and the answer. The memory store runs it, the model for linearizability is it, and
// every other driver is held to it by storetest.
//
// The order of the rules is the order of the promises: what another has finished is never
// granted again (G3), what another holds is not granted (G2), and Seen is answered only where
// another attempt marked or some attempt completed (G1).
func Transition(prev *Entry, op Op, now time.Time) (*Entry, Result) {
	if prev != nil && !now.Before(prev.ExpiresAt) {
		prev = nil
	}
	switch op.Verb {
	case Mark:
		return mark(prev, op, now)
	case Claim:
		return claim(prev, op, now)
	case Complete, Release, Renew:
		return settle(prev, op, now)
	case Forget:
		if prev == nil {
			return nil, Result{Outcome: Absent}
		}
		return nil, Result{Outcome: Granted}
	default: // Lookup
		return prev, lookup(prev, now)
	}
}

func mark(prev *Entry, op Op, now time.Time) (*Entry, Result) {
	if prev != nil {
		mine := prev.Record.Owner == op.Token.Owner
		if mine && prev.Record.State == record.Marked {
			return prev, Result{Outcome: Granted, Record: prev.Record}
		}
		if r, refused := refuse(prev, op, now); refused {
			return prev, r
		}
	}
	// Nothing stands here, or a claim without a live holder from before the policy's mode
	// was changed, or the attempt's own claim from then.
	return granted(First(op, now), prev, op, now)
}

// First is the record that a Mark or Claim leaves under a key of which nothing is known.
func First(op Op, now time.Time) record.Record {
	r := record.Record{
		State:     record.Marked,
		Owner:     op.Token.Owner,
		FirstSeen: now.UTC().Truncate(time.Millisecond),
		Digest:    op.Digest,
	}
	if op.Verb == Claim {
		r.State, r.Fence, r.Lease, r.Window = record.Claimed, 1, op.Lease, op.TTL
	}
	return r
}

// granted is the answer to a Mark or Claim that puts next in the place of prev. The time a
// message was first seen outlives the holders of its record, so that the record's age is the message's.
func granted(next record.Record, prev *Entry, op Op, now time.Time) (*Entry, Result) {
	if prev != nil {
		next.FirstSeen = prev.Record.FirstSeen
	}
	return &Entry{Record: next, ExpiresAt: now.Add(op.TTL)}, Result{Outcome: Granted, Record: next}
}

func claim(prev *Entry, op Op, now time.Time) (*Entry, Result) {
	next := First(op, now)
	if prev != nil {
		if r, refused := refuse(prev, op, now); refused {
			return prev, r
		}
		next.Fence = prev.Record.Fence + 1
		if prev.Record.State == record.Claimed && prev.Record.Owner == op.Token.Owner {
			// The same attempt asks again: its answer was lost. The same holder, so the same
			// fence, and a whole lease, since it is about to be told one.
			next.Fence = prev.Record.Fence
		}
	}
	return granted(next, prev, op, now)
}

// refuse says whether what stands under the key keeps an attempt from having it. A released
// claim or one whose lease has run out never does; nor does what the attempt itself marked or claimed.
func refuse(prev *Entry, op Op, now time.Time) (Result, bool) {
	rec := prev.Record
	mine := rec.Owner == op.Token.Owner
	var r Result
	switch rec.State {
	case record.Completed:
		r = Result{Outcome: Seen, Record: rec}
	case record.Marked:
		if mine {
			return Result{}, false
		}
		r = Result{Outcome: Seen, Record: rec}
	case record.Claimed:
		left := prev.leaseLeft(now)
		if mine || left <= 0 {
			return Result{}, false
		}
		r = Result{Outcome: Held, Record: rec, RetryAfter: left}
	default: // Released
		return Result{}, false
	}
	if !mine && rec.Digest != (record.Digest{}) && op.Digest != (record.Digest{}) && rec.Digest != op.Digest {
		r = Result{Outcome: Mismatch, Record: rec}
	}
	return r, true
}

// settle is Complete, Release and Renew: for the holder only. Each may be repeated, since its
// answer may have been lost. A lease that has run out does no harm as long as nobody took over.
func settle(prev *Entry, op Op, now time.Time) (*Entry, Result) {
	if prev == nil {
		return nil, Result{Outcome: Absent}
	}
	rec := prev.Record
	if (record.Token{Owner: rec.Owner, Fence: rec.Fence}) != op.Token {
		return prev, Result{Outcome: Stale, Record: rec}
	}
	next := settled(op)
	switch {
	case rec.State == next && op.Verb != Renew:
		return prev, Result{Outcome: Granted, Record: rec}
	case rec.State != record.Claimed:
		return prev, Result{Outcome: Stale, Record: rec}
	}
	rec.State, rec.Window, rec.Lease = next, op.TTL, 0
	if op.Verb == Renew {
		rec.Lease = op.Lease
	}
	return &Entry{Record: rec, ExpiresAt: now.Add(op.TTL)}, Result{Outcome: Granted, Record: rec}
}

// settled is the state in which a settling operation leaves its claim.
func settled(op Op) record.State {
	switch op.Verb {
	case Complete:
		return record.Completed
	case Release:
		return record.Released
	default: // Renew
		return record.Claimed
	}
}

func lookup(prev *Entry, now time.Time) Result {
	if prev == nil {
		return Result{Outcome: Absent}
	}
	r := Result{Outcome: Granted, Record: prev.Record, Remaining: prev.ExpiresAt.Sub(now)}
	if prev.Record.State == record.Claimed {
		r.RetryAfter = max(prev.leaseLeft(now), 0)
	}
	return r
}
