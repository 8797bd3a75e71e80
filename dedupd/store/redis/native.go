package redis

import (
	"hash/maphash"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/dedupd/store"
)

// natives makes the native commands of a batch. These decide about most messages there are, so
// the memory for all of them is had in one go, and their arguments are pointers into it: what
// is no pointer would be copied to the heap to become an argument.
type natives struct {
	b    *batch
	cmds []redis.StringCmd // what follows has a place, or argsPerNative, for each of them
	args []any

	indices []int
	values  []value
	records []byte // of the values, one after another

	ttl   time.Duration // of the last operation, of which most batches have one only
	ttlMs any
}

const argsPerNative = 7

// maxRecord is the length of a claim with a digest.
const maxRecord = 57

// value is a record as an argument.
type value []byte

// MarshalBinary implements encoding.BinaryMarshaler.
func (v *value) MarshalBinary() ([]byte, error) { return *v, nil }

func (m *natives) reserve(n int) {
	m.cmds = make([]redis.StringCmd, 0, n)
	m.args = make([]any, 0, argsPerNative*n)
	m.indices = make([]int, 0, n)
	m.values = make([]value, 0, n)
	m.records = make([]byte, 0, maxRecord*n)
}

// call returns the call of a Mark or Claim: of each operation at most one.
func (m *natives) call(i int) call {
	op := &m.b.ops[i]
	if m.cmds == nil {
		m.reserve(len(m.b.ops))
	}
	if op.TTL != m.ttl {
		m.ttl, m.ttlMs = op.TTL, op.TTL.Milliseconds()
	}
	begin := len(m.records)
	m.records = store.First(*op, m.b.now).Append(m.records)
	m.values = append(m.values, m.records[begin:])
	n := len(m.cmds)
	m.args = append(m.args, "set", &op.Key, &m.values[n], "nx", "get", "px", m.ttlMs)
	m.cmds = append(m.cmds, *redis.NewStringCmd(m.b.ctx, m.args[argsPerNative*n:argsPerNative*(n+1):argsPerNative*(n+1)]...))
	m.indices = append(m.indices, i)
	return call{indices: m.indices[n : n+1 : n+1], cmd: &m.cmds[n]}
}

// seed keeps those who choose keys from choosing where they meet in the table below.
var seed = maphash.MakeSeed()

// firstOfKeys says of each operation which is the first of the batch on its key. That is mostly
// the operation itself, so this is a table that has to be good at telling that keys differ.
func firstOfKeys(ops []store.Op) []int32 {
	first := make([]int32, len(ops))
	if len(ops) < 2 {
		return first
	}
	size := 4
	for size < 2*len(ops) {
		size *= 2
	}
	table := make([]int32, size) // one more than the number of an operation; zero: free
	for i := range ops {
		at := int(maphash.String(seed, ops[i].Key)) & (size - 1)
		for table[at] != 0 && ops[table[at]-1].Key != ops[i].Key {
			at = (at + 1) & (size - 1)
		}
		if table[at] == 0 {
			table[at] = int32(i + 1)
		}
		first[i] = table[at] - 1
	}
	return first
}
