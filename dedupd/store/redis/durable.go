package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// With store.redis.durability nothing is granted before enough replicas have it.
//
// WAIT speaks of what its own connection has written, so it goes at the end of the pipeline that
// writes: one for the batch, or for each node of a cluster that has a part of it. A hook puts it
// there, where go-redis has decided which commands go to which node, and again for what it sends
// once more, after a lost reply or a MOVED: an acknowledgement is always of the very pipeline that carried the
// command. (Sent on its own, a WAIT could reach a server that was promoted in between, whose replicas
// have everything but the mark.)
//
// For the same reason what is granted has to be written by the pipeline that is waited for. A
// native command that finds its attempt's own mark writes nothing; such a mark goes on to the script,
// which in all it grants writes the record, be it once more. Replication is one stream in order, so the
// acknowledgement of that is also one of the mark that was there.
type durable struct {
	store    *Store
	replicas int
	timeout  time.Duration

	// behind says that the last WAIT had too few acknowledgements. Then repeats are looked up
	// first: behind a WAIT they would wait, and they have nothing to wait for.
	behind atomic.Bool
}

// newDurable returns nil if nothing is to be waited for.
func newDurable(s *Store) *durable {
	spec := s.server.spec.Durability
	if spec == nil {
		return nil
	}
	timeout, err := time.ParseDuration(string(spec.Timeout))
	if err != nil {
		timeout = defaultDurabilityTimeout
	}
	// The answer has to come before the call's own end.
	return &durable{store: s, replicas: int(spec.Replicas), timeout: min(timeout, s.limit/2)}
}

// defaultDurabilityTimeout is what the CRD fills in.
const defaultDurabilityTimeout = 50 * time.Millisecond

// waits says whether any of the operations has something to be waited for.
func waits(ops []store.Op) bool {
	return slices.ContainsFunc(ops, func(op store.Op) bool { return op.Verb <= store.Renew })
}

// apply is Apply for operations of which some are waited for.
func (d *durable) apply(ctx context.Context, ops []store.Op, results []store.Result) {
	// The records of keyFormat Dense hold the beginning of their owner only: looking it up does not
	// tell a repeat from the attempt itself.
	if h := d.store.hashes; !d.behind.Load() || h != nil && h.format == v1alpha1.KeyDense {
		d.await(ctx, ops, results)
		return
	}
	rest := d.answerRepeats(ctx, ops, results)
	if len(rest) == 0 {
		return
	}
	left := make([]store.Op, len(rest))
	for n, i := range rest {
		left[n] = ops[i]
	}
	answers := make([]store.Result, len(rest))
	d.await(ctx, left, answers)
	for n, i := range rest {
		results[i] = answers[n]
	}
}

// await applies operations and takes back the grants that are not durable: what became of them
// is not known, until the same attempt asks again.
func (d *durable) await(ctx context.Context, ops []store.Op, results []store.Result) {
	acks := &acknowledgements{of: map[redis.Cmder]acknowledged{}, ops: make([]acknowledged, len(ops))}
	d.store.apply(context.WithValue(ctx, acksKey{}, acks), ops, results)
	for i := range results {
		r := &results[i]
		if r.Err != nil || r.Outcome != store.Granted || ops[i].Verb > store.Renew {
			continue
		}
		if err := d.missing(acks.ops[i]); err != nil {
			*r = store.Result{Err: err}
		}
	}
}

// answerRepeats answers what has nothing to be waited for: attempts at messages that others have, where
// nothing else of the batch is about the same key. It returns the other operations.
func (d *durable) answerRepeats(ctx context.Context, ops []store.Op, results []store.Result) []int {
	lookups := make([]store.Op, len(ops))
	for i := range ops {
		lookups[i] = store.Op{Verb: store.Lookup, Key: ops[i].Key}
	}
	found := make([]store.Result, len(ops))
	d.store.apply(ctx, lookups, found)
	open := map[string]bool{}
	for i := range ops {
		r, decided := repeat(ops[i], found[i])
		if results[i] = r; !decided {
			open[ops[i].Key] = true
		}
	}
	var rest []int
	for i := range ops {
		if open[ops[i].Key] {
			rest = append(rest, i)
		}
	}
	return rest
}

// repeat says what an attempt gets that finds another's record, as it was looked up.
func repeat(op store.Op, found store.Result) (store.Result, bool) {
	acquires := op.Verb == store.Mark || op.Verb == store.Claim
	if !acquires || found.Err != nil || found.Outcome != store.Granted {
		return store.Result{}, false
	}
	entry := &store.Entry{Record: found.Record, ExpiresAt: timeless.Add(found.Remaining)}
	next, r := store.Transition(entry, op, timeless)
	return r, next == entry && r.Outcome != store.Granted
}

// missing says what an operation lacks to be durable.
func (d *durable) missing(a acknowledged) error {
	const field = "store.redis.durability"
	var text string
	switch {
	case a.err == nil && a.replicas >= d.replicas:
		return nil
	case a.err == nil:
		text = fmt.Sprintf("%s: %d of %d replicas have acknowledged within %s: it is written and may be lost by a failover; see how the replicas are, or ask for fewer",
			field, a.replicas, d.replicas, d.timeout)
	case redis.HasErrorPrefix(a.err, "NOPERM "):
		text = field + ": the server's user may not run WAIT: " + reply(a.err)
	default:
		text = field + ": not known to be on replicas: " + d.store.server.unavailable(a.err)
	}
	return &store.Problem{Text: text, Kinds: []error{store.ErrUnavailable}}
}

// acknowledgements are those of the commands, and of the operations, of one Apply.
type acknowledgements struct {
	mu sync.Mutex
	of map[redis.Cmder]acknowledged // guarded by mu: nodes answer at the same time

	ops []acknowledged // by operation
}

// acknowledged is how many replicas have a command's effect, or why that is not known.
type acknowledged struct {
	replicas int
	err      error
}

// acksKey is the key of the acknowledgements in a context.
type acksKey struct{}

// noteAcks passes acknowledgements from commands to the operations that they answer.
func noteAcks(ctx context.Context, calls []call) {
	acks, ok := ctx.Value(acksKey{}).(*acknowledgements)
	if !ok {
		return
	}
	acks.mu.Lock()
	defer acks.mu.Unlock()
	for i := range calls {
		for _, op := range calls[i].indices {
			acks.ops[op] = acks.of[calls[i].cmd]
		}
	}
}

// wait is the command at the end of a pipeline. Its type tells it from the others, since go-redis sends a
// pipeline's commands anew, in other pipelines, when a connection breaks.
type wait struct{ *redis.IntCmd }

var errNoReply = errors.New("the server has not answered WAIT")

func (d *durable) newWait(ctx context.Context) wait {
	cmd := redis.NewIntCmd(ctx, "wait", d.replicas, d.timeout.Milliseconds())
	cmd.SetErr(errNoReply)
	return wait{cmd}
}

var _ redis.Hook = (*durable)(nil)

// DialHook implements redis.Hook.
func (*durable) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook implements redis.Hook.
func (*durable) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return next(ctx, cmd) }
}

// ProcessPipelineHook implements redis.Hook.
func (d *durable) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		acks, ok := ctx.Value(acksKey{}).(*acknowledgements)
		if !ok {
			return next(ctx, cmds)
		}
		writes := slices.DeleteFunc(slices.Clone(cmds), func(c redis.Cmder) bool { _, ok := c.(wait); return ok })
		if len(writes) == 0 {
			return nil
		}
		w := d.newWait(ctx)
		err := next(ctx, append(writes[:len(writes):len(writes)], w))
		got := acknowledged{replicas: int(w.Val()), err: w.Err()}
		if got.err == nil {
			d.behind.Store(got.replicas < d.replicas)
		}
		acks.mu.Lock()
		for _, c := range writes {
			acks.of[c] = got
		}
		acks.mu.Unlock()
		if err != nil && got.err != nil && isReply(got.err) {
			// Nothing but the WAIT has failed, or what has says so itself.
			return firstError(writes)
		}
		return err
	}
}

func firstError(cmds []redis.Cmder) error {
	for _, c := range cmds {
		if err := c.Err(); err != nil {
			return err
		}
	}
	return nil
}
