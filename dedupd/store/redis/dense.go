package redis

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// denseShare is how many messages share a hash at most if there are as many as expected, and
// half of it how many at least. The server keeps a hash as a listpack up to
// hash-max-listpack-entries, 512 by default, and in four times the memory beyond: with what is
// forgotten and not yet deleted, there is room for three times as many.
const denseShare = 128

//go:embed dense.lua
var denseLua string

var (
	denseMarkScript = newScript(sweepLua+denseLua, "")
	denseReadScript = newScript(sweepLua+denseLua, allowOOM)
)

// dense is keyFormat Dense: the values are cut to what mode Mark decides by.
func dense(expected int64) *hashes {
	return &hashes{
		format:    v1alpha1.KeyDense,
		letter:    'd',
		bits:      bits.Len64(uint64(max(expected-1, 0)) / denseShare),
		acquires:  denseMarkScript,
		others:    denseReadScript,
		refuses:   denseRefuses,
		arguments: denseArguments,
		perOp:     3,
		result:    denseResult,
		ahead:     1,
		answers:   2,
	}
}

// denseRefuses: a policy that could ask for a claim or for a digest does not compile with this
// format.
func denseRefuses(op *store.Op) error {
	switch {
	case op.Verb == store.Claim:
		return errors.New("it holds no claims")
	case op.Digest != record.Digest{}:
		return errors.New("it holds no digests of contents")
	}
	return nil
}

func denseArguments(args []any, op *store.Op, field string, _ time.Time) []any {
	var what string
	switch op.Verb {
	case store.Mark:
		what = string(op.Token.Owner[:denseOwner])
	case store.Forget:
		what = "F"
	default: // Lookup, and what settles a claim, of which there is none: see denseResult
		what = "L"
	}
	return append(args, field, what, op.TTL.Milliseconds())
}

// The value of a field: see dense.lua.
const (
	denseOwner = 8
	denseSize  = denseOwner + 4
	denseTick  = 250 * time.Millisecond
)

// Answers of the script that are no outcomes.
const (
	notAMark = -1
	notAHash = -2
)

// denseResult reads the time of an answer and an operation's part of it.
func denseResult(op *store.Op, ahead, reply []any) (store.Result, error) {
	at, timed := ahead[0].(int64)
	outcome, counted := reply[0].(int64)
	value, ok := reply[1].(string)
	switch {
	case !timed || !counted || !ok:
		return store.Result{}, fmt.Errorf("%w: %T, %T and %T for a time, an outcome and a value", errReply, ahead[0], reply[0], reply[1])
	case outcome == notAHash && strings.HasPrefix(value, "WRONGTYPE "):
		return store.Result{}, fmt.Errorf("%w: a value of another type", store.ErrCorrupt)
	case outcome == notAHash:
		return store.Result{}, fmt.Errorf("%w: %s", store.ErrUnavailable, value)
	case outcome == notAMark:
		return store.Result{}, fmt.Errorf("%w: a field of %d bytes, want %d", store.ErrCorrupt, len(value), denseSize)
	}
	now, r := time.UnixMilli(at), store.Result{Outcome: store.Outcome(outcome)}
	settles := op.Verb == store.Complete || op.Verb == store.Release || op.Verb == store.Renew
	switch {
	case r.Outcome == store.Absent, r.Outcome == store.Granted && op.Verb == store.Forget:
		return r, nil
	case r.Outcome != store.Granted && r.Outcome != store.Seen || len(value) != denseSize:
		return store.Result{}, fmt.Errorf("%w: outcome %d with %d bytes", errReply, outcome, len(value))
	case settles:
		// Only a holder from before a change of the mode settles, and a mark is nothing to settle.
		r.Outcome = store.Stale
	}
	var forgotten time.Time
	r.Record, forgotten = denseRecord(value, now, op.TTL)
	switch {
	case op.Verb == store.Lookup:
		r.Remaining = forgotten.Sub(now)
	case op.Verb == store.Mark && r.Outcome == store.Granted:
		r.Record.Owner = op.Token.Owner // of which the value holds the beginning
	}
	return r, nil
}

// denseRecord reads a value, and when it is forgotten. First seen is a ttl before: true unless
// the policy had another one then, and for people and metrics only.
func denseRecord(value string, now time.Time, ttl time.Duration) (record.Record, time.Time) {
	r := record.Record{State: record.Marked}
	copy(r.Owner[:], value[:denseOwner])
	tick := now.UnixMilli() / denseTick.Milliseconds()
	left := int32(binary.BigEndian.Uint32([]byte(value[denseOwner:])) - uint32(tick))
	forgotten := time.UnixMilli((tick + int64(left)) * denseTick.Milliseconds())
	r.FirstSeen = forgotten.Add(-denseTick - ttl).UTC()
	return r, forgotten
}
