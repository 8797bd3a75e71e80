package redis

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Apply implements store.Store: a pipeline of the whole batch, and a second one for what
// cannot be decided by what a native command returns.
//
// In the first, a Mark or Claim is a SET NX GET; it is decided by that unless it meets a
// claim, or its own mark. Then the second runs it as a script. Operations on one key keep
// their order in this way: the native commands of a key come first and in their order, and
// from its first operation on that needs a script all others of the batch on that key are
// arguments of the same call of it, even where a native command has already looked, since
// that changed nothing. (Should the claim that the first of two met vanish before the second
// looked, by its expiry or by another's Forget, then the second is granted and the first
// finds that. They were asked at the same time: one is granted, the other is told of it.)
//
// A pipeline that is sent again because its answers were lost finds its own records, which
// hold the attempts' owners, and so has the answers that it would have had.
func (s *Store) Apply(ctx context.Context, ops []store.Op, results []store.Result) {
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	b := &batch{ctx: ctx, store: s, ops: ops, results: results}
	for calls := b.first(); len(calls) > 0; {
		s.send(ctx, calls)
		var again []*call
		for _, c := range calls {
			again = append(again, b.settle(c)...)
		}
		calls = slices.Concat(again, b.deferred())
	}
}

// batch is an Apply at work.
type batch struct {
	ctx     context.Context
	store   *Store
	ops     []store.Op
	results []store.Result

	keys map[string]*keyed
	late []*keyed // those with something for the second pipeline, each once
}

// keyed is one key's operations in a batch.
type keyed struct {
	scripted *call // the script call of the first pipeline, which later operations join
	met      []int // native commands that have not decided
	after    []int // operations that come after native ones
	late     bool  // it is in batch.late
}

// call is a command of a pipeline and the operations, all on one key, that it answers.
type call struct {
	indices []int
	cmd     redis.Cmder

	// fresh is the result of a native Mark or Claim if nothing stood under the key.
	fresh store.Result

	// script is run by a script call; whole says that the server is sent its source, because
	// it does not know it by name.
	script script
	whole  bool
}

// first lays out the first pipeline.
func (b *batch) first() []*call {
	b.keys = make(map[string]*keyed, len(b.ops))
	calls := make([]*call, 0, len(b.ops))
	for i, op := range b.ops {
		k := b.keys[op.Key]
		acquires := op.Verb == store.Mark || op.Verb == store.Claim
		switch {
		case k == nil:
			k = &keyed{}
			b.keys[op.Key] = k
			c := &call{indices: []int{i}}
			if !acquires {
				k.scripted = c
			}
			calls = append(calls, c)
		case k.scripted != nil:
			k.scripted.indices = append(k.scripted.indices, i)
		case acquires && len(k.after) == 0:
			calls = append(calls, &call{indices: []int{i}})
		default:
			k.after = append(k.after, i)
			b.putOff(k)
		}
	}
	for _, c := range calls {
		b.command(c)
	}
	return calls
}

func (b *batch) putOff(k *keyed) {
	if !k.late {
		k.late = true
		b.late = append(b.late, k)
	}
}

// deferred lays out the script calls of what has been put off.
func (b *batch) deferred() []*call {
	var calls []*call
	for _, k := range b.late {
		c := &call{indices: append(k.met, k.after...)}
		b.scriptCommand(c)
		calls = append(calls, c)
	}
	b.late = nil
	return calls
}

// command gives a call of the first pipeline its command.
func (b *batch) command(c *call) {
	op := b.ops[c.indices[0]]
	switch {
	case op.Verb == store.Mark || op.Verb == store.Claim:
		entry, fresh := store.Transition(nil, op, b.store.clock.Now())
		c.fresh = fresh
		c.cmd = redis.NewStringCmd(b.ctx, "set", op.Key, entry.Record.Append(nil), "nx", "get", "px", op.TTL.Milliseconds())
	case op.Verb == store.Forget && len(c.indices) == 1:
		c.cmd = redis.NewIntCmd(b.ctx, "del", op.Key)
	default:
		b.scriptCommand(c)
	}
}

func (b *batch) scriptCommand(c *call) {
	c.script = scriptFor(b.ops, c.indices)
	args := make([]any, 0, 4+argsPerOp*len(c.indices))
	if c.whole {
		args = append(args, "eval", c.script.source)
	} else {
		args = append(args, "evalsha", c.script.sha)
	}
	args = append(args, 1, b.ops[c.indices[0]].Key)
	for _, i := range c.indices {
		args = appendArgs(args, b.ops[i], b.store.clock.Now())
	}
	c.cmd = redis.NewSliceCmd(b.ctx, args...)
}

// send runs a pipeline. Every command has its answer or its error afterwards.
func (s *Store) send(ctx context.Context, calls []*call) {
	pipe := s.client.Pipeline()
	for _, c := range calls {
		_ = pipe.Process(ctx, c.cmd) // queues; the error is that of the command
	}
	cmds, err := pipe.Exec(ctx)
	if err != nil && !slices.ContainsFunc(cmds, func(c redis.Cmder) bool { return c.Err() != nil }) {
		// There was no connection, and the reason is what a server or sentinel answered, such
		// as a wrong password. go-redis takes that for an answer to some command and so notes
		// it with none. None has run. The wrapping matters: a sentinel that does not know the
		// primary answers nil, which from a SET would mean that the message is new.
		for _, c := range cmds {
			c.SetErr(fmt.Errorf("connect: %w", err))
		}
	}
}

// settle sets the results of a call, puts off the operations that it has not decided, and
// returns the call that has to follow, if any.
func (b *batch) settle(c *call) []*call {
	switch cmd := c.cmd.(type) {
	case *redis.StringCmd:
		b.settleNative(c, cmd)
	case *redis.IntCmd:
		b.settleForget(c, cmd)
	case *redis.SliceCmd:
		if redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") && !c.whole {
			// The server was restarted, or someone emptied its cache. EVAL fills it again.
			again := &call{indices: c.indices, whole: true}
			b.scriptCommand(again)
			return []*call{again}
		}
		b.settleScript(c, cmd)
	}
	return nil
}

// settleNative decides a Mark or Claim by what its command found.
func (b *batch) settleNative(c *call, cmd *redis.StringCmd) {
	i := c.indices[0]
	op := b.ops[i]
	found, err := cmd.Bytes()
	if err == redis.Nil { //nolint:errorlint // only the bare error is the command's own answer
		b.results[i] = c.fresh
		return
	}
	if err != nil {
		b.fail(c.indices, err)
		return
	}
	rec, err := record.Decode(found)
	if err != nil {
		b.fail(c.indices, err)
		return
	}
	k := b.keys[op.Key]
	if r, decided := decide(rec, op); decided && len(k.met) == 0 {
		b.results[i] = r
		return
	}
	k.met = append(k.met, i)
	b.putOff(k)
}

// timeless is when a record that waits for no time is looked at, and when it expires.
var timeless, never = time.UnixMilli(0), time.UnixMilli(1)

// decide says what becomes of a Mark or Claim that finds rec, if that depends on no time and
// changes nothing: then it is decided, whatever has happened since.
func decide(rec record.Record, op store.Op) (store.Result, bool) {
	if rec.State == record.Claimed {
		return store.Result{}, false
	}
	found := &store.Entry{Record: rec, ExpiresAt: never}
	next, r := store.Transition(found, op, timeless)
	return r, next == found
}

func (b *batch) settleForget(c *call, cmd *redis.IntCmd) {
	n, err := cmd.Result()
	switch {
	case err != nil:
		b.fail(c.indices, err)
	case n == 0:
		b.results[c.indices[0]] = store.Result{Outcome: store.Absent}
	default:
		b.results[c.indices[0]] = store.Result{Outcome: store.Granted}
	}
}

func (b *batch) settleScript(c *call, cmd *redis.SliceCmd) {
	reply, err := cmd.Result()
	if err == nil && len(reply) != argsPerOp*len(c.indices) {
		err = errReply
	}
	if err != nil {
		b.fail(c.indices, err)
		return
	}
	for n, i := range c.indices {
		r, err := scriptResult(b.ops[i], reply[argsPerOp*n:argsPerOp*(n+1)])
		if err != nil {
			b.fail([]int{i}, err)
			continue
		}
		b.results[i] = r
	}
}

// fail says of operations that what became of them is not known.
func (b *batch) fail(indices []int, err error) {
	key := strings.Clone(b.ops[indices[0]].Key)
	for _, i := range indices {
		b.results[i] = store.Result{Err: b.store.server.explain(err, key)}
	}
}
