package redis

import (
	"context"
	_ "embed"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// hashes are how messages share hashes, with keyFormat Compact or Dense. What a key costs by
// itself, its name, its expiry and its entries in the server's tables, is then paid once for many
// messages; a hash of few and short fields is one piece of memory without pointers (a listpack).
//
// An operation's key is the policy's prefix and an ID. The first bits of the ID are the number
// of the hash, and what they do not tell of it is the field: together they are the ID, whole.
// The number of bits is in the hash's name, so that no two layouts ever share a hash.
//
// A field's own expiry is in its value, on the server's clock; the scripts go by it, and delete
// what is forgotten as they write. See sweep.lua.
type hashes struct {
	format v1alpha1.KeyFormat
	letter byte // of the hashes' names
	bits   int  // there are 1<<bits hashes

	// acquires is the script of a call that may add a record, others that of one that does not.
	acquires, others script

	// refuses says of an operation why the values have no room for it.
	refuses func(op *store.Op) error

	// arguments appends those of an operation on a field, of which there are perOp.
	arguments func(args []any, op *store.Op, field string, now time.Time) []any
	perOp     int

	// result reads what an answer begins with, ahead values, and an operation's part of it,
	// which is answers values long.
	result         func(op *store.Op, ahead, reply []any) (store.Result, error)
	ahead, answers int
}

// layout is how messages share hashes; nil if each has a key of its own.
func layout(spec v1alpha1.RedisStore) *hashes {
	switch spec.KeyFormat {
	case v1alpha1.KeyCompact:
		return compact()
	case v1alpha1.KeyDense:
		expected := v1alpha1.DefaultExpectedMessages
		if spec.Dense != nil {
			expected = spec.Dense.ExpectedMessages
		}
		return dense(expected)
	default: // Readable
		return nil
	}
}

//go:embed sweep.lua
var sweepLua string

// place is where a message is kept.
type place struct{ hash, field string }

// place is where the message of a key is kept.
func (h *hashes) place(k string) (place, error) {
	prefix := len(k) - len(key.ID{})
	if prefix < 0 {
		return place{}, fmt.Errorf("a key of %d bytes: it has to end in the %d of an ID", len(k), len(key.ID{}))
	}
	id := k[prefix:]
	number := uint64(binary.BigEndian.Uint32([]byte(id))) >> (32 - h.bits)
	name := make([]byte, 0, prefix+16)
	name = append(name, k[:prefix]...)
	name = append(name, '~', h.letter)
	name = strconv.AppendInt(name, int64(h.bits), 10)
	name = append(name, ':')
	name = strconv.AppendUint(name, number, 16)
	return place{hash: string(name), field: id[h.bits/8:]}, nil
}

// applyHashes is Apply where messages share hashes: a pipeline of calls of the script.
func (s *Store) applyHashes(ctx context.Context, ops []store.Op, results []store.Result) {
	b := &hashBatch{ctx: ctx, store: s, hashes: s.hashes, ops: ops, results: results, places: make([]place, len(ops)), now: s.clock.Now()}
	for calls := b.lay(); len(calls) > 0; {
		s.send(ctx, calls)
		var again []call
		for i := range calls {
			again = append(again, b.settle(&calls[i])...)
		}
		calls = again
	}
}

// hashBatch is an Apply at work where messages share hashes.
type hashBatch struct {
	ctx     context.Context
	store   *Store
	hashes  *hashes
	ops     []store.Op
	results []store.Result
	places  []place   // by operation
	now     time.Time // the server's, as far as it is known
}

// lay lays out the calls. The operations on one hash are all in one call, and so keep their
// order whatever becomes of the others.
func (b *hashBatch) lay() []call {
	groups := make([][]int, 0, len(b.ops))
	byHash := make(map[string]int, len(b.ops))
	for i := range b.ops {
		at, err := b.place(&b.ops[i])
		if err != nil {
			text := fmt.Sprintf("store.redis.keyFormat %s: %v", b.hashes.format, err)
			b.results[i] = store.Result{Err: &store.Problem{Text: text, Kinds: []error{store.ErrUnavailable}}}
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

func (b *hashBatch) place(op *store.Op) (place, error) {
	if err := b.hashes.refuses(op); err != nil {
		return place{}, err
	}
	return b.hashes.place(op.Key)
}

func (b *hashBatch) scriptFor(indices []int) script {
	acquires := func(i int) bool { return b.ops[i].Verb == store.Mark || b.ops[i].Verb == store.Claim }
	if slices.ContainsFunc(indices, acquires) {
		return b.hashes.acquires
	}
	return b.hashes.others
}

func (b *hashBatch) command(c *call) {
	command, name := c.script.named(c.whole)
	args := make([]any, 0, 3+(1+b.hashes.perOp)*len(c.indices))
	args = append(args, command, name, len(c.indices))
	for _, i := range c.indices {
		args = append(args, &b.places[i].hash)
	}
	for _, i := range c.indices {
		args = b.hashes.arguments(args, &b.ops[i], b.places[i].field, b.now)
	}
	c.commanded(redis.NewSliceCmd(b.ctx, args...), b.ops)
}

// settle sets the results of a call, or returns it anew if the server has to be sent the
// script's source.
func (b *hashBatch) settle(c *call) []call {
	cmd := c.answered().(*redis.SliceCmd)
	if c.unknown(cmd) {
		again := call{indices: c.indices, script: c.script, whole: true}
		b.command(&again)
		return []call{again}
	}
	ahead, answers := b.hashes.ahead, b.hashes.answers
	reply, err := cmd.Result()
	if err == nil && len(reply) != ahead+answers*len(c.indices) {
		err = errReply
	}
	for n, i := range c.indices {
		var r store.Result
		wrong := err
		if wrong == nil {
			from := ahead + answers*n
			r, wrong = b.hashes.result(&b.ops[i], reply[:ahead], reply[from:from+answers])
		}
		if wrong != nil {
			r = store.Result{Err: b.store.server.explain(wrong, strings.Clone(b.places[i].hash))}
		}
		b.results[i] = r
	}
	return nil
}
