package redis

import (
	_ "embed"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// compactBits: 32,768 hashes. So few of them are no burden with few messages, and the server
// keeps them as listpacks, up to hash-max-listpack-entries, with 12 million.
const compactBits = 15

//go:embed fields.lua
var fieldsLua string

var (
	compactAcquireScript = newScript(sweepLua+fieldsLua+transitionLua, "")
	compactSettleScript  = newScript(sweepLua+fieldsLua+transitionLua, allowOOM)
)

// compact is keyFormat Compact: the values are whole records, and everything is decided as it
// is with Readable, to the millisecond.
func compact() *hashes {
	return &hashes{
		format:   v1alpha1.KeyCompact,
		letter:   'c',
		bits:     compactBits,
		acquires: compactAcquireScript,
		others:   compactSettleScript,
		refuses:  func(*store.Op) error { return nil },
		arguments: func(args []any, op *store.Op, field string, now time.Time) []any {
			subject, terms := arguments(op, now)
			return append(args, verbs[op.Verb], []byte(subject), op.TTL.Milliseconds(), []byte(terms), field)
		},
		perOp: argsPerOp + 1,
		result: func(op *store.Op, _, reply []any) (store.Result, error) {
			return scriptResult(op, reply)
		},
		answers: argsPerOp,
	}
}
