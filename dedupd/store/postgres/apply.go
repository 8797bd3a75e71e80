package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Apply implements store.Store. Every call of a function is one transaction. A batch is one
// call, or as many at a time as it has kinds of operations; what has to change a record that another
// left, such as a claim whose lease has run out, is a call that follows.
//
// No two calls wait for each other in a circle, since each takes its locks in the order of the
// keys. A call whose answer was lost is repeated: its operations find what they have done by their owners.
func (s *Store) Apply(ctx context.Context, ops []store.Op, results []store.Result) {
	if len(ops) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	b := &batch{ctx: ctx, store: s, ops: ops, results: results}
	if err := s.schema.ready(ctx); err != nil {
		b.fail(b.all(), err)
		return
	}
	for calls := b.first(); len(calls) > 0; {
		calls = b.run(calls)
	}
}

// batch is an Apply at work. Its calls set results of their own operations only.
type batch struct {
	ctx     context.Context
	store   *Store
	ops     []store.Op
	results []store.Result
}

// function is a function in the database.
type function struct {
	name    string
	columns []column // its parameters
}

var (
	// acquire is for Marks and Claims, settle for the other verbs of a holder and Lookup, each
	// key once; change is for whatever is not of that kind, or was not decided by that.
	acquire = &function{"acquire_1", []column{keys, owners, digests, ttls, leases}}
	settle  = &function{"settle_1", []column{keys, owners, fences, states, ttls, leases}}
	change  = &function{"change_1", []column{verbs, keys, owners, fences, digests, ttls, leases}}
)

// call is a call of a function for the operations at indices, which are in the order of their keys.
type call struct {
	function *function
	indices  []int

	// again says that an earlier try may have taken effect.
	again bool
}

// all are the indices of the batch in the order of the keys; those of one key keep their order.
func (b *batch) all() []int {
	indices := make([]int, len(b.ops))
	for i := range indices {
		indices[i] = i
	}
	slices.SortStableFunc(indices, func(x, y int) int { return cmp.Compare(b.ops[x].Key, b.ops[y].Key) })
	return indices
}

// first lays out the calls of a batch.
func (b *batch) first() []*call {
	calls := []*call{{function: acquire}, {function: settle}, {function: change}}
	indices := b.all()
	for len(indices) > 0 {
		n := 1
		for n < len(indices) && b.ops[indices[n]].Key == b.ops[indices[0]].Key {
			n++
		}
		c := calls[2]
		switch verb := b.ops[indices[0]].Verb; {
		case n > 1 || verb == store.Forget:
		case verb == store.Mark || verb == store.Claim:
			c = calls[0]
		default:
			c = calls[1]
		}
		c.indices = append(c.indices, indices[:n]...)
		indices = indices[n:]
	}
	return slices.DeleteFunc(calls, func(c *call) bool { return len(c.indices) == 0 })
}

// run runs calls at the same time, on a connection each, and returns the call that has to follow.
func (b *batch) run(calls []*call) []*call {
	late := make([][]int, len(calls))
	var group sync.WaitGroup
	for i, c := range calls[1:] {
		group.Go(func() { late[1+i] = b.do(c) })
	}
	late[0] = b.do(calls[0])
	group.Wait()
	next := &call{function: change, indices: slices.Concat(late...)}
	if len(next.indices) == 0 {
		return nil
	}
	next.again = slices.ContainsFunc(calls, func(c *call) bool { return c.again })
	slices.SortStableFunc(next.indices, func(x, y int) int { return cmp.Compare(b.ops[x].Key, b.ops[y].Key) })
	return []*call{next}
}

// tries is how often a call is made at most, with pauses in between that double.
const (
	tries      = 4
	firstPause = 10 * time.Millisecond
)

// do makes a call until it is answered, and returns what has to be changed after it.
func (b *batch) do(c *call) []int {
	for try, pause := 1, firstPause; ; try, pause = try+1, 2*pause {
		answers, err := b.store.call(b.ctx, c, b.ops)
		if err == nil {
			return b.settle(c, answers)
		}
		verdict := judge(err)
		if verdict.stale {
			b.store.pool.Reset()
		}
		if verdict.schema {
			b.store.schema.forget()
			err = cmp.Or(b.store.schema.ready(b.ctx), err)
		}
		if verdict.effect && !c.again {
			c.again = true
			b.keepBack(c, err)
		}
		if !verdict.repeat || try == tries || len(c.indices) == 0 || !b.wait(pause) {
			b.fail(c.indices, err)
			return nil
		}
	}
}

// keepBack takes the Forgets from a call that is about to be repeated. They are the one thing
// that may not be: what has come under the key meanwhile would be forgotten as well.
func (b *batch) keepBack(c *call, err error) {
	forget := func(i int) bool { return b.ops[i].Verb == store.Forget }
	for _, i := range c.indices {
		if forget(i) {
			b.fail([]int{i}, err)
		}
	}
	c.indices = slices.DeleteFunc(c.indices, forget)
}

// wait waits, unless the deadline comes first.
func (b *batch) wait(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-b.ctx.Done():
		return false
	}
}

// call makes a call once.
func (s *Store) call(ctx context.Context, c *call, ops []store.Op) ([]answer, error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, &unconnectedError{err}
	}
	defer conn.Release()
	// One round trip more for the first call of a function on a connection.
	statement, err := conn.Conn().Prepare(ctx, c.function.name, s.schema.statement(c.function))
	if err != nil {
		return nil, &unsentError{err}
	}
	values := make([][]byte, len(c.function.columns))
	for i, column := range c.function.columns {
		values[i] = column.of(ops, c.indices)
	}
	reader := conn.Conn().PgConn().ExecPrepared(ctx, statement.Name, values, binaryFormat, binaryFormat)
	var answers []answer
	var unread error
	for reader.NextRow() {
		a, err := readAnswer(reader.Values())
		if err != nil {
			unread = err
			continue
		}
		answers = append(answers, a)
	}
	if _, err := reader.Close(); err != nil {
		return nil, err
	}
	return answers, unread
}

// binaryFormat is the format of all arguments and columns.
var binaryFormat = []int16{1}

// statement is a call of a function in SQL.
func (s *schema) statement(f *function) string {
	var b strings.Builder
	b.WriteString("SELECT * FROM " + s.ident + "." + f.name + "(")
	for i := range f.columns {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "$%d", i+1)
	}
	b.WriteByte(')')
	return b.String()
}

// unconnectedError is of a call for which there is no connection.
type unconnectedError struct{ err error }

func (e *unconnectedError) Error() string { return e.err.Error() }
func (e *unconnectedError) Unwrap() error { return e.err }

// unsentError is of a call that did not reach the server, and so has not taken effect.
type unsentError struct{ err error }

func (e *unsentError) Error() string { return e.err.Error() }
func (e *unsentError) Unwrap() error { return e.err }

// verdict is what an error says of the call that it ended.
type verdict struct {
	effect bool // it may have taken effect
	repeat bool // another try may be answered
	stale  bool // so are the other connections
	schema bool // the schema is not as it was
}

func judge(err error) verdict {
	var unconnected *unconnectedError
	if errors.As(err, &unconnected) {
		return verdict{}
	}
	var unsent *unsentError
	effect := !errors.As(err, &unsent) && !pgconn.SafeToRetry(err)
	switch code(err) {
	case "":
		// The connection was lost, maybe with all the others, unless the deadline ended it.
		lost := !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) && !errors.Is(err, errAnswer)
		return verdict{effect: effect, repeat: lost, stale: lost}
	case codeShutdown, codeCrashed:
		// They end the connection, at whatever moment.
		return verdict{effect: effect, repeat: true, stale: true}
	case codeReadOnly:
		// Another server has taken over.
		return verdict{repeat: true, stale: true}
	case codeDeadlock, codeSerialize:
		return verdict{repeat: true}
	case codeNoSchema, codeNoTable, codeNoFunction, codeNoStatement:
		return verdict{repeat: true, stale: true, schema: true}
	}
	// The server has refused, and undone what it had done.
	return verdict{}
}
