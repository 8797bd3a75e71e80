// Package store is the contract between the engine and what remembers: the operations, their
// outcomes, and the one pure function that says how a record changes (Transition). The
// drivers stand below it; storetest holds each of them to this contract.
package store

import (
	"context"
	"errors"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/record"
)

// Verb is what an operation asks for.
type Verb uint8

// The verbs.
const (
	Mark     Verb = iota + 1 // check and mark in one step
	Claim                    // check and take a lease
	Complete                 // the holder has processed the message
	Release                  // the holder gives the message back
	Renew                    // the holder needs more time
	Lookup                   // read, change nothing
	Forget                   // delete
)

// Op is one operation on one key. Ops are values; a driver keeps none of their memory.
type Op struct {
	Verb Verb

	// Key is the stored key, prefix included. Any bytes.
	Key string

	// Token says who asks. Mark and Claim use its Owner only; Lookup and Forget ignore it.
	Token record.Token

	// TTL is how long the record shall be remembered from this operation on. Whole
	// milliseconds, at least one. Mark, Claim, Complete, Release and Renew.
	TTL time.Duration

	// Lease is the lease that a claim is granted. Whole milliseconds, shorter than TTL.
	// Claim and Renew.
	Lease time.Duration

	// Digest is the content's, zero where it is not verified. Mark and Claim.
	Digest record.Digest
}

// Outcome is what became of an operation.
type Outcome uint8

// The outcomes.
const (
	// Granted: Mark and Claim: the caller's attempt is the one to process the message; also
	// when the same attempt asks again. Complete, Release, Renew, Forget: done, or had been
	// done by the same holder before. Lookup: there is a record.
	Granted Outcome = iota + 1

	// Seen: another attempt marked the message, or some attempt completed it.
	Seen

	// Held: another attempt's lease runs for another Result.RetryAfter.
	Held

	// Mismatch: another attempt's record under this key is of other content.
	Mismatch

	// Stale: the token is not the holder's any more. Result.Record says what stands there.
	Stale

	// Absent: Lookup, Forget: no record. Complete, Release, Renew: as Stale, with no record.
	Absent
)

// Result is the answer to one operation.
type Result struct {
	Outcome Outcome

	// Record is what stands under the key after the operation; zero with Absent, after
	// Forget, and with Err. After Release its state is Released.
	Record record.Record

	// Remaining is how long the record will be remembered. Set by Lookup.
	Remaining time.Duration

	// RetryAfter is what is left of another holder's lease. Set with Held, and by Lookup
	// for a claim whose lease runs.
	RetryAfter time.Duration

	// Err is set where the operation's outcome is not known: it may or may not have taken
	// effect. It wraps one of the errors of this package. Outcome is zero then.
	Err error
}

// Errors that stores wrap. Whatever else goes wrong wraps ErrUnavailable too.
var (
	// ErrUnavailable: the store did not answer, or refused: the message should be retried.
	ErrUnavailable = errors.New("store unavailable")

	// ErrOverloaded: more is asked of the store than may wait for it. The one error of an
	// operation that has had no effect and will have none. Not an ErrUnavailable: the store is
	// well, and a caller that goes on as if it were not would add to the load.
	ErrOverloaded = errors.New("store overloaded")

	// ErrFull: the store takes no new records (OOM, a bounded memory store). Also an ErrUnavailable.
	ErrFull = errors.New("store full")

	// ErrCorrupt: what stands under the key is no record of ours.
	ErrCorrupt = record.ErrCorrupt
)

// Problem is an error in the words of the one who wrote the policy: the field, its value and
// what would be right.
type Problem struct {
	Text string

	// Kinds are the errors that it is, for errors.Is and errors.As.
	Kinds []error
}

func (p *Problem) Error() string   { return p.Text }
func (p *Problem) Unwrap() []error { return p.Kinds }

// Store remembers. Implementations are safe for concurrent use.
type Store interface {
	// Apply carries out ops in order and sets results[i] for ops[i]; the slices have equal
	// lengths. Operations on one key take effect in their order. Each operation is atomic,
	// a batch is not. Apply returns when every result is set, and by the deadline of ctx
	// at the latest, and touches neither slice afterwards. It needs one round trip, and a
	// second only for operations that meet another's claim, or change what another left.
	Apply(ctx context.Context, ops []Op, results []Result)

	// Health asks the store how it is, by the deadline of ctx.
	Health(ctx context.Context) Health

	// Close lets go of every resource. No call may follow.
	Close() error
}

// Safety is what is known of a store's promise to keep what it acknowledged.
type Safety string

// The safeties.
const (
	Safe          Safety = "Safe"
	Unsafe        Safety = "Unsafe"
	SafetyUnknown Safety = "Unknown"
)

// Health is the state of a store.
type Health struct {
	// Err is nil if the store answers and can be used.
	Err error

	// Safety says whether marks may vanish before their time, Reason why.
	Safety Safety
	Reason string

	// HistorySince is when the store's history begins: what was acknowledged since then, and has
	// not expired, is remembered. Zero where it is not known, as with Err.
	//
	// A store that can lose what it acknowledged keeps a birth marker beside the records, in the
	// same fate as they: the time of its birth, and a heartbeat that each Health raises. Where
	// the marker is gone, or its heartbeat is lower than this process has seen it, history was lost:
	// the marker is born anew. So a HistorySince that is later than the one of before is a loss, and
	// every process that asks the same store sees it. A marker outlives the processes that
	// raise it long enough for an outage, and expires by itself.
	HistorySince time.Time
}
