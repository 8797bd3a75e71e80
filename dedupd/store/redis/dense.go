package redis

import (
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// With keyFormat Dense many messages share a hash. What a key costs by itself, its name, its
// expiry and its entries in the server's tables, is then paid once for many messages; a hash
// of few and short fields is one piece of memory without pointers (a listpack).
//
// An operation's key is the policy's prefix and an ID. The first bits of the ID are the number
// of the hash, and what they do not tell of it is the field: together they are the ID, whole.
// The number of bits is in the hash's name, so that no two layouts ever share a hash.
//
// A field's own expiry is in its value, on the server's clock; the script forgets it to the
// quarter of a second, and deletes what is forgotten as it goes. See dense.lua.
type dense struct {
	bits int // there are 1<<bits hashes
}

// denseShare is how many messages share a hash at most if there are as many as expected, and
// half of it how many at least. The server keeps a hash as a listpack up to
// hash-max-listpack-entries, 512 by default, and in four times the memory beyond: with what is
// forgotten and not yet deleted, there is room for three times as many.
const denseShare = 128

func newDense(spec v1alpha1.RedisStore) *dense {
	if spec.KeyFormat != v1alpha1.KeyDense {
		return nil
	}
	expected := v1alpha1.DefaultExpectedMessages
	if spec.Dense != nil {
		expected = spec.Dense.ExpectedMessages
	}
	return &dense{bits: bits.Len64(uint64(max(expected-1, 0)) / denseShare)}
}

// place is the hash and the field of a key.
func (d *dense) place(k string) (densePlace, error) {
	prefix := len(k) - len(key.ID{})
	if prefix < 0 {
		return densePlace{}, fmt.Errorf("a key of %d bytes: with keyFormat Dense it ends in %d bytes of an ID", len(k), len(key.ID{}))
	}
	id := k[prefix:]
	shard := uint64(binary.BigEndian.Uint32([]byte(id))) >> (32 - d.bits)
	name := make([]byte, 0, prefix+16)
	name = append(name, k[:prefix]...)
	name = append(name, "~d"...)
	name = strconv.AppendInt(name, int64(d.bits), 10)
	name = append(name, ':')
	name = strconv.AppendUint(name, shard, 16)
	return densePlace{hash: string(name), field: id[d.bits/8:]}, nil
}

//go:embed dense.lua
var denseLua string

// Twice, as the other script, and for the same reason.
var (
	denseMarkScript = newScript(denseLua, "")
	denseReadScript = newScript(denseLua, " flags=allow-oom")
)

// applyDense is Apply for keyFormat Dense: a pipeline of calls of the script.
func (s *Store) applyDense(ctx context.Context, ops []store.Op, results []store.Result) {
	b := &denseBatch{ctx: ctx, store: s, ops: ops, results: results, places: make([]densePlace, len(ops))}
	for calls := b.lay(); len(calls) > 0; {
		s.send(ctx, calls)
		var again []call
		for i := range calls {
			again = append(again, b.settle(&calls[i])...)
		}
		calls = again
	}
}

// denseBatch is an Apply with keyFormat Dense at work.
type denseBatch struct {
	ctx     context.Context
	store   *Store
	ops     []store.Op
	results []store.Result
	places  []densePlace // by operation
}

type densePlace struct{ hash, field string }

// lay lays out the calls. The operations on one hash are all in one call, and so keep their
// order whatever becomes of the others.
func (b *denseBatch) lay() []call {
	groups := make([][]int, 0, len(b.ops))
	byHash := make(map[string]int, len(b.ops))
	for i := range b.ops {
		at, err := b.place(&b.ops[i])
		if err != nil {
			b.results[i] = store.Result{Err: &problem{text: "store.redis.keyFormat Dense: " + err.Error(), kinds: []error{store.ErrUnavailable}}}
			continue
		}
		b.places[i] = at
		n, known := byHash[at.hash]
		if !known {
			n = len(groups)
			byHash[at.hash] = n
			groups = append(groups, nil)
		}
		groups[n] = append(groups[n], i)
	}
	calls := b.store.pack(groups, b.scriptFor)
	for i := range calls {
		b.command(&calls[i])
	}
	return calls
}

func (b *denseBatch) scriptFor(indices []int) script {
	if slices.ContainsFunc(indices, func(i int) bool { return b.ops[i].Verb == store.Mark }) {
		return denseMarkScript
	}
	return denseReadScript
}

// place is where an operation belongs. A policy that could ask for a claim or for a digest
// does not compile with this format.
func (b *denseBatch) place(op *store.Op) (densePlace, error) {
	switch {
	case op.Verb == store.Claim:
		return densePlace{}, errors.New("it holds no claims")
	case op.Digest != record.Digest{}:
		return densePlace{}, errors.New("it holds no digests of contents")
	}
	return b.store.dense.place(op.Key)
}

// denseArgs is how many arguments an operation has in the script beside its hash.
const denseArgs = 3

func (b *denseBatch) command(c *call) {
	command, name := c.script.named(c.whole)
	args := make([]any, 0, 3+(1+denseArgs)*len(c.indices))
	args = append(args, command, name, len(c.indices))
	for _, i := range c.indices {
		args = append(args, b.places[i].hash)
	}
	for _, i := range c.indices {
		op := &b.ops[i]
		var what string
		switch op.Verb {
		case store.Mark:
			what = string(op.Token.Owner[:denseOwner])
		case store.Forget:
			what = "F"
		default: // Lookup, and what settles a claim, of which there is none: see denseResult
			what = "L"
		}
		args = append(args, b.places[i].field, what, op.TTL.Milliseconds())
	}
	c.cmd = redis.NewSliceCmd(b.ctx, args...)
}

// settle sets the results of a call, or returns it anew if the server has to be sent the
// script's source.
func (b *denseBatch) settle(c *call) []call {
	cmd := c.cmd.(*redis.SliceCmd)
	if c.unknown(cmd) {
		again := call{indices: c.indices, script: c.script, whole: true}
		b.command(&again)
		return []call{again}
	}
	reply, err := cmd.Result()
	if err == nil && len(reply) != 1+2*len(c.indices) {
		err = errReply
	}
	var now int64
	if err == nil {
		now, err = integer(reply[0])
	}
	for n, i := range c.indices {
		hash := strings.Clone(b.places[i].hash)
		if err != nil {
			b.results[i] = store.Result{Err: b.store.server.explain(err, hash)}
			continue
		}
		r, err := denseResult(b.ops[i], time.UnixMilli(now), reply[1+2*n:3+2*n])
		if err != nil {
			r = store.Result{Err: b.store.server.explain(err, hash)}
		}
		b.results[i] = r
	}
	return nil
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

// denseResult reads an operation's part of the script's answer, given at now.
func denseResult(op store.Op, now time.Time, reply []any) (store.Result, error) {
	outcome, err := integer(reply[0])
	if err != nil {
		return store.Result{}, err
	}
	value, ok := reply[1].(string)
	switch {
	case !ok:
		return store.Result{}, fmt.Errorf("%w: %T for a value", errReply, reply[1])
	case outcome == notAHash && strings.HasPrefix(value, "WRONGTYPE "):
		return store.Result{}, fmt.Errorf("%w: a value of another type", store.ErrCorrupt)
	case outcome == notAHash:
		return store.Result{}, fmt.Errorf("%w: %s", store.ErrUnavailable, value)
	case outcome == notAMark:
		return store.Result{}, fmt.Errorf("%w: a field of %d bytes, want %d", store.ErrCorrupt, len(value), denseSize)
	}
	r := store.Result{Outcome: store.Outcome(outcome)}
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

func integer(v any) (int64, error) {
	n, ok := v.(int64)
	if !ok {
		return 0, fmt.Errorf("%w: %T for a number", errReply, v)
	}
	return n, nil
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
