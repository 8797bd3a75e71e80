package redis

import (
	"crypto/sha1" // #nosec G505 -- the name under which Redis caches a script
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

//go:embed transition.lua
var transitionLua string

// script is a Lua script and the name by which the server knows it.
type script struct {
	source string
	sha    string
}

func newScript(flags string) script {
	source := "#!lua" + flags + "\n" + transitionLua
	sum := sha1.Sum([]byte(source)) // #nosec G401 -- as above
	return script{source: source, sha: hex.EncodeToString(sum[:])}
}

// The same script twice. A server out of memory refuses what would add a record. What is
// settled takes the place of a record of its size, and refusing it would have the message
// processed again.
var (
	acquireScript = newScript("")
	settleScript  = newScript(" flags=allow-oom")
)

func scriptFor(ops []store.Op, indices []int) script {
	for _, i := range indices {
		if v := ops[i].Verb; v == store.Mark || v == store.Claim {
			return acquireScript
		}
	}
	return settleScript
}

// argsPerOp is how many arguments an operation has in the script, and how many values its answer has.
const argsPerOp = 4

// appendArgs appends the script's arguments for an operation. now is the server's time as far
// as it is known, for the first-seen time of a first grant.
func appendArgs(args []any, op store.Op, now time.Time) []any {
	var subject, terms []byte
	switch op.Verb {
	case store.Mark, store.Claim:
		subject = store.First(op, now).Append(nil)
	case store.Complete, store.Release, store.Renew:
		subject = binary.BigEndian.AppendUint64(op.Token.Owner[:], op.Token.Fence)
		terms = settledTerms(op)
	case store.Lookup, store.Forget:
	}
	return append(args, strconv.Itoa(int(op.Verb)), subject, op.TTL.Milliseconds(), terms)
}

// settledTerms is the lease and window of a settled record: the end of its binary form.
func settledTerms(op store.Op) []byte {
	r := record.Record{State: record.Claimed, Window: op.TTL}
	if op.Verb == store.Renew {
		r.Lease = op.Lease
	}
	form := r.Append(nil)
	return form[len(form)-10:]
}

// Answers of the script that are no outcomes.
const (
	notARecord    = -1
	withoutExpiry = -2
)

var errReply = errors.New("not an answer of dedupd's script")

// scriptResult reads an operation's part of the script's answer.
func scriptResult(op store.Op, reply []any) (store.Result, error) {
	var n [argsPerOp]int64
	var value string
	for i, v := range reply {
		var ok bool
		if i == 1 {
			value, ok = v.(string)
		} else {
			n[i], ok = v.(int64)
		}
		if !ok {
			return store.Result{}, fmt.Errorf("%w: %T in place %d", errReply, v, i)
		}
	}
	r := store.Result{Outcome: store.Outcome(n[0])}
	if n[0] == withoutExpiry {
		return store.Result{}, fmt.Errorf("%w: it has no expiry, which dedupd's records always have", store.ErrCorrupt)
	}
	if value != "" || n[0] == notARecord {
		var err error
		if r.Record, err = record.Decode([]byte(value)); err != nil {
			return store.Result{}, err
		}
	}
	if r.Outcome < store.Granted || r.Outcome > store.Absent {
		return store.Result{}, fmt.Errorf("%w: outcome %d", errReply, n[0])
	}
	if op.Verb == store.Lookup {
		r.Remaining = time.Duration(n[2]) * time.Millisecond
	}
	if op.Verb == store.Lookup || r.Outcome == store.Held {
		r.RetryAfter = time.Duration(n[3]) * time.Millisecond
	}
	return r, nil
}
