package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// The functions take arrays and answer rows, both in the server's binary form, which is
// written and read here without a detour: a batch has some thousand elements.

// column is an argument of a function: an array with an element of each operation.
type column struct {
	oid  uint32
	size int // of an element, about
	put  func(b []byte, op *store.Op) []byte
}

var (
	verbs   = column{pgtype.Int2OID, 2, func(b []byte, op *store.Op) []byte { return appendInt16(b, int16(op.Verb)) }}
	keys    = column{pgtype.ByteaOID, 80, func(b []byte, op *store.Op) []byte { return append(appendSize(b, len(op.Key)), op.Key...) }}
	owners  = column{pgtype.UUIDOID, 16, func(b []byte, op *store.Op) []byte { return appendUUID(b, op.Token.Owner) }}
	fences  = column{pgtype.Int8OID, 8, func(b []byte, op *store.Op) []byte { return appendInt64(b, int64(op.Token.Fence)) }}
	ttls    = column{pgtype.Int8OID, 8, func(b []byte, op *store.Op) []byte { return appendInt64(b, op.TTL.Milliseconds()) }}
	digests = column{pgtype.UUIDOID, 16, func(b []byte, op *store.Op) []byte {
		if op.Digest == (record.Digest{}) {
			return appendNull(b)
		}
		return appendUUID(b, op.Digest)
	}}
	leases = column{pgtype.Int8OID, 8, func(b []byte, op *store.Op) []byte {
		if op.Verb != store.Claim && op.Verb != store.Renew {
			return appendNull(b)
		}
		return appendInt64(b, op.Lease.Milliseconds())
	}}
	states = column{pgtype.Int2OID, 2, func(b []byte, op *store.Op) []byte {
		state := settled(op.Verb)
		if state == 0 {
			return appendNull(b)
		}
		return appendInt16(b, int16(state))
	}}
)

// of is the array of the operations at indices.
func (c column) of(ops []store.Op, indices []int) []byte {
	b := make([]byte, 0, 20+len(indices)*(4+c.size))
	b = binary.BigEndian.AppendUint32(b, 1) // dimensions
	b = binary.BigEndian.AppendUint32(b, 1) // there may be nulls
	b = binary.BigEndian.AppendUint32(b, c.oid)
	b = binary.BigEndian.AppendUint32(b, uint32(len(indices)))
	b = binary.BigEndian.AppendUint32(b, 1) // the first index
	for _, i := range indices {
		b = c.put(b, &ops[i])
	}
	return b
}

func appendSize(b []byte, n int) []byte { return binary.BigEndian.AppendUint32(b, uint32(n)) }
func appendNull(b []byte) []byte        { return binary.BigEndian.AppendUint32(b, math.MaxUint32) }

func appendUUID(b []byte, u [16]byte) []byte { return append(appendSize(b, len(u)), u[:]...) }

func appendInt64(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(appendSize(b, 8), uint64(n))
}

func appendInt16(b []byte, n int16) []byte {
	return binary.BigEndian.AppendUint16(appendSize(b, 2), uint16(n))
}

// settled is the state in which a verb leaves its claim, zero for one that settles none.
func settled(v store.Verb) record.State {
	switch v {
	case store.Complete:
		return record.Completed
	case store.Release:
		return record.Released
	case store.Renew:
		return record.Claimed
	default:
		return 0
	}
}

// answer is a row of a function's answer.
type answer struct {
	place   int
	outcome store.Outcome // zero: the caller decides
	at      time.Time
	entry   *store.Entry // nil: nothing stands there
}

var errAnswer = errors.New("not an answer of dedupd's functions")

// fields of an answer, by their place, and how long each is.
var answerSizes = [...]int{4, 2, 8, 2, 16, 16, 8, 8, 8, 8, 8}

// readAnswer reads a row. The server's buffer is not kept.
func readAnswer(row [][]byte) (answer, error) {
	if len(row) != len(answerSizes) {
		return answer{}, fmt.Errorf("%w: %d columns", errAnswer, len(row))
	}
	for i, size := range answerSizes {
		if row[i] != nil && len(row[i]) != size {
			return answer{}, fmt.Errorf("%w: %d bytes in column %d", errAnswer, len(row[i]), i)
		}
	}
	if row[0] == nil || row[2] == nil {
		return answer{}, fmt.Errorf("%w: no place or no time", errAnswer)
	}
	a := answer{place: int(binary.BigEndian.Uint32(row[0])), at: moment(row[2])}
	if row[1] != nil {
		a.outcome = store.Outcome(binary.BigEndian.Uint16(row[1]))
	}
	if row[3] == nil {
		return a, nil
	}
	if row[4] == nil || row[6] == nil || row[8] == nil || row[10] == nil {
		return answer{}, fmt.Errorf("%w: a record without owner or times", errAnswer)
	}
	r := record.Record{
		State:     record.State(binary.BigEndian.Uint16(row[3])),
		Owner:     record.Owner(row[4]),
		FirstSeen: moment(row[6]),
	}
	e := &store.Entry{ExpiresAt: moment(row[10])}
	if row[5] != nil {
		r.Digest = record.Digest(row[5])
	}
	if row[7] != nil {
		r.Fence = binary.BigEndian.Uint64(row[7])
	}
	written := moment(row[8])
	if r.State != record.Marked {
		r.Window = e.ExpiresAt.Sub(written)
	}
	if row[9] != nil {
		r.Lease = moment(row[9]).Sub(written)
	}
	e.Record = r
	a.entry = e
	return a, nil
}

// epoch is where the server counts microseconds from, in those since 1970.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// moment reads a timestamptz.
func moment(b []byte) time.Time {
	return time.UnixMicro(int64(binary.BigEndian.Uint64(b)) + epoch).UTC()
}
