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
	if s.durable != nil && waits(ops) {
		s.durable.apply(ctx, ops, results)
		return
	}
	s.apply(ctx, ops, results)
}

// apply is Apply, whatever becomes of the replicas.
func (s *Store) apply(ctx context.Context, ops []store.Op, results []store.Result) {
	if s.hashes != nil {
		s.applyHashes(ctx, ops, results)
		return
	}
	b := &batch{ctx: ctx, store: s, ops: ops, results: results, now: s.clock.Now()}
	for calls := b.lay(); len(calls) > 0; {
		s.send(ctx, calls)
		var again []call
		for i := range calls {
			again = append(again, b.settle(&calls[i])...)
		}
		calls = slices.Concat(again, b.deferred())
	}
	s.grants.note(ops, results)
}

// batch is an Apply at work.
type batch struct {
	ctx     context.Context
	store   *Store
	ops     []store.Op
	results []store.Result
	now     time.Time // the server's, as far as it is known

	first []int32  // of each operation, the first of the batch on its key
	keys  []*keyed // by that first; nil for a key of which this operation is all there is to know
	late  []*keyed // those with something for the second pipeline, each once
}

// keyed is one key's operations in a batch.
type keyed struct {
	scripted bool  // its operations of the first pipeline are a script's
	indices  []int // these
	met      []int // native commands that have not decided
	after    []int // operations that come after native ones
	late     bool  // it is in batch.late
}

// call is a command of a pipeline and the operations that it answers: one, or those of a
// script, which is the same for all their keys.
type call struct {
	indices []int
	cmd     redis.Cmder

	// script is run by a script call; whole says that the server is sent its source, because
	// it does not know it by name.
	script script
	whole  bool

	// compare is what a native command that settles a claim expects; nil for the others.
	compare *comparison
}

// once is a command that is not sent again when its reply is lost: a Forget that was carried out would the
// second time take what somebody has marked since. go-redis then repeats nothing of its pipeline.
type once struct{ redis.Cmder }

// NoRetry implements redis.Cmder.
func (once) NoRetry() bool { return true }

// commanded gives the call its command.
func (c *call) commanded(cmd redis.Cmder, ops []store.Op) {
	c.cmd = cmd
	if slices.ContainsFunc(c.indices, func(i int) bool { return ops[i].Verb == store.Forget }) {
		c.cmd = once{cmd}
	}
}

// answered is the call's command as it was made.
func (c *call) answered() redis.Cmder {
	if o, ok := c.cmd.(once); ok {
		return o.Cmder
	}
	return c.cmd
}

// unknown says that the server does not know the script of a call by its name, because it was
// restarted, or someone emptied its cache. EVAL fills it again.
func (c *call) unknown(cmd *redis.SliceCmd) bool {
	return redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") && !c.whole
}

// lay lays out the first pipeline.
func (b *batch) lay() []call {
	b.first, b.keys = firstOfKeys(b.ops), make([]*keyed, len(b.ops))
	calls := make([]call, 0, len(b.ops))
	natives := natives{b: b}
	var scripted []*keyed
	for i := range b.ops {
		acquires := b.ops[i].Verb == store.Mark || b.ops[i].Verb == store.Claim
		k := b.keys[b.first[i]]
		switch {
		case int(b.first[i]) == i && acquires:
			calls = append(calls, natives.call(i))
		case int(b.first[i]) == i:
			k = b.keyed(i)
			k.scripted, k.indices = true, []int{i}
			scripted = append(scripted, k)
		case k != nil && k.scripted:
			k.indices = append(k.indices, i)
		case acquires && (k == nil || len(k.after) == 0):
			calls = append(calls, natives.call(i))
		default:
			k = b.keyed(i)
			k.after = append(k.after, i)
			b.putOff(k)
		}
	}
	var groups [][]int
	for _, k := range scripted {
		if i := k.indices[0]; len(k.indices) == 1 && b.ops[i].Verb == store.Forget {
			forget := call{indices: k.indices}
			forget.commanded(redis.NewIntCmd(b.ctx, "del", b.ops[i].Key), b.ops)
			calls = append(calls, forget)
			continue
		}
		if len(k.indices) == 1 && len(k.after) == 0 {
			if c, ok := b.compared(k.indices[0]); ok {
				calls = append(calls, c)
				continue
			}
		}
		groups = append(groups, k.indices)
	}
	return append(calls, b.scripted(groups)...)
}

// keyed returns the state of an operation's key.
func (b *batch) keyed(i int) *keyed {
	k := b.keys[b.first[i]]
	if k == nil {
		k = &keyed{}
		b.keys[b.first[i]] = k
	}
	return k
}

func (b *batch) putOff(k *keyed) {
	if !k.late {
		k.late = true
		b.late = append(b.late, k)
	}
}

// deferred lays out the script calls of what has been put off.
func (b *batch) deferred() []call {
	groups := make([][]int, len(b.late))
	for i, k := range b.late {
		groups[i] = append(k.met, k.after...)
	}
	b.late = nil
	return b.scripted(groups)
}

// send runs a pipeline, and one for what is not sent twice. Every command has its answer or its error afterwards.
func (s *Store) send(ctx context.Context, calls []call) {
	queue, unrepeated := make([]redis.Cmder, 0, len(calls)), []redis.Cmder(nil)
	for i := range calls {
		if _, ok := calls[i].cmd.(once); ok {
			unrepeated = append(unrepeated, calls[i].cmd)
			continue
		}
		queue = append(queue, calls[i].cmd)
	}
	s.pipeline(ctx, queue)
	s.pipeline(ctx, unrepeated)
	noteAcks(ctx, calls)
}

func (s *Store) pipeline(ctx context.Context, queue []redis.Cmder) {
	if len(queue) == 0 {
		return
	}
	pipe := s.client.Pipeline()
	_ = pipe.BatchProcess(ctx, queue...) // queues; the error is that of the command
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
func (b *batch) settle(c *call) []call {
	switch cmd := c.answered().(type) {
	case *redis.StringCmd:
		if c.compare != nil {
			b.settleCompared(c, cmd)
			return nil
		}
		b.settleNative(c, cmd)
	case *redis.IntCmd:
		b.settleForget(c, cmd)
	case *redis.SliceCmd:
		if c.unknown(cmd) {
			again := call{indices: c.indices, script: c.script, whole: true}
			b.scriptCommand(&again)
			return []call{again}
		}
		b.settleScript(c, cmd)
	}
	return nil
}

// settleNative decides a Mark or Claim by what its command found.
func (b *batch) settleNative(c *call, cmd *redis.StringCmd) {
	i := c.indices[0]
	op := &b.ops[i]
	found, err := cmd.Bytes()
	if err == redis.Nil { //nolint:errorlint // only the bare error is the command's own answer
		b.results[i] = store.Result{Outcome: store.Granted, Record: store.First(*op, b.now)}
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
	// A command whose key an earlier one of the batch has put off is put off as well.
	k := b.keys[b.first[i]]
	r, decided := decide(rec, *op)
	if r.Outcome == store.Granted && b.store.durable != nil {
		decided = false // its own mark, which this pipeline has not written
	}
	if decided && (k == nil || len(k.met) == 0) {
		b.results[i] = r
		return
	}
	k = b.keyed(i)
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
		r, err := scriptResult(&b.ops[i], reply[argsPerOp*n:argsPerOp*(n+1)])
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
