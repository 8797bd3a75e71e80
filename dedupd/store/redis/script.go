package redis

import (
	"crypto/sha1" // #nosec G505 -- the name under which Redis caches a script
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

//go:embed keys.lua
var keysLua string

//go:embed transition.lua
var transitionLua string

// script is a Lua script and the name by which the server knows it.
type script struct {
	source string
	sha    string
}

// allowOOM lets a script run on a server that is out of memory.
const allowOOM = " flags=allow-oom"

func newScript(lua, flags string) script {
	source := "#!lua" + flags + "\n" + lua
	sum := sha1.Sum([]byte(source)) // #nosec G401 -- as above
	return script{source: source, sha: hex.EncodeToString(sum[:])}
}

// named is the command that runs the script, and by what the server is told which: its source
// if it does not know it by name.
func (s script) named(whole bool) (command, name string) {
	if whole {
		return "eval", s.source
	}
	return "evalsha", s.sha
}

// The same script twice. A server out of memory refuses what would add a record. What is
// settled takes the place of a record of its size, and refusing it would have the message
// processed again.
var (
	acquireScript = newScript(keysLua+transitionLua, "")
	settleScript  = newScript(keysLua+transitionLua, allowOOM)
)

func (b *batch) scriptFor(indices []int) script {
	for _, i := range indices {
		if v := b.ops[i].Verb; v == store.Mark || v == store.Claim {
			return acquireScript
		}
	}
	return settleScript
}

// argsPerOp is how many arguments an operation has in the script, and how many values its answer has.
const argsPerOp = 4

// maxScript is how many operations of different keys one call of a script carries. Many in one
// call save the server a fifth of its time; but while it runs nobody else is served.
const maxScript = 64

// pack makes script calls of groups of operations, each the operations of one key or hash.
// Those of different keys share a call where the server allows it. The calls have no commands yet.
func (s *Store) pack(groups [][]int, scriptFor func(indices []int) script) []call {
	var calls []call
	open := map[string]int{} // by the script's name, the call that takes more
	for _, group := range groups {
		script := scriptFor(group)
		at, found := open[script.sha]
		if !found || len(calls[at].indices)+len(group) > maxScript || s.server.spec.Mode == v1alpha1.RedisCluster {
			at = len(calls)
			open[script.sha] = at
			calls = append(calls, call{script: script})
		}
		calls[at].indices = append(calls[at].indices, group...)
	}
	return calls
}

// scripted makes the script calls of groups of operations.
func (b *batch) scripted(groups [][]int) []call {
	calls := b.store.pack(groups, b.scriptFor)
	for i := range calls {
		b.scriptCommand(&calls[i])
	}
	return calls
}

// scriptCommand gives a call of a script its command.
func (b *batch) scriptCommand(c *call) {
	n := len(c.indices)
	args := make([]any, 0, 3+(1+argsPerOp)*n)
	command, name := c.script.named(c.whole)
	args = append(args, command, name, n)
	for _, i := range c.indices {
		args = append(args, &b.ops[i].Key)
	}
	values := make([]value, 2*n)
	for at, i := range c.indices {
		subject, terms := &values[2*at], &values[2*at+1]
		*subject, *terms = arguments(&b.ops[i], b.now)
		args = append(args, verbs[b.ops[i].Verb], subject, b.ops[i].TTL.Milliseconds(), terms)
	}
	c.commanded(redis.NewSliceCmd(b.ctx, args...), b.ops)
}

// verbs are what the script calls them.
var verbs = [...]any{
	store.Mark: "1", store.Claim: "2", store.Complete: "3", store.Release: "4", store.Renew: "5", store.Lookup: "6", store.Forget: "7",
}

// arguments are the script's arguments for an operation, beside its verb and ttl. now is the
// server's time as far as it is known, for the first-seen time of a first grant.
func arguments(op *store.Op, now time.Time) (subject, terms value) {
	switch op.Verb {
	case store.Mark, store.Claim:
		subject = store.First(*op, now).Append(nil)
	case store.Complete, store.Release, store.Renew:
		subject = binary.BigEndian.AppendUint64(append(make(value, 0, 24), op.Token.Owner[:]...), op.Token.Fence)
		terms = settledTerms(op)
	case store.Lookup, store.Forget:
	}
	return subject, terms
}

// settledTerms is the lease and window of a settled record: the end of its binary form.
func settledTerms(op *store.Op) value {
	r := record.Record{State: record.Claimed, Window: op.TTL}
	if op.Verb == store.Renew {
		r.Lease = op.Lease
	}
	form := r.Append(make([]byte, 0, maxRecord))
	return form[len(form)-10:]
}

// Answers of the script that are no outcomes.
const (
	notARecord    = -1
	withoutExpiry = -2
	otherType     = -3
)

var errReply = errors.New("not an answer of dedupd's script")

// scriptResult reads an operation's part of the script's answer.
func scriptResult(op *store.Op, reply []any) (store.Result, error) {
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
	if n[0] == otherType {
		return store.Result{}, fmt.Errorf("%w: a value of another type", store.ErrCorrupt)
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
