package gather

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/store"
)

// call is an Apply that could not fly at once.
type call struct {
	ctx     context.Context //nolint:containedctx // of the caller that waits for it
	ops     []store.Op
	results []store.Result

	// done is closed when the results are set, or what the store panicked with.
	done     chan struct{}
	panicked any

	state      state // guarded by Store.mu
	prev, next *call // guarded by Store.mu, in line only
}

// landed waits until the results are set.
func (c *call) landed() {
	<-c.done
	if c.panicked != nil {
		panic(c.panicked)
	}
}

// state says whose a call's memory is. Alone, the flight uses the caller's operations and
// results, and the caller waits for it to land. In company it has copies, so that the caller
// may leave.
type state uint8

const (
	inLine    state = iota
	alone           // in a flight of its own
	inCompany       // in a flight with others
	answering       // its flight has landed: done is about to be closed
	left            // the caller has been told that its time is over
)

// line is who waits, the first to come first.
type line struct{ first, last *call }

func (l *line) push(c *call) {
	c.prev = l.last
	if l.last == nil {
		l.first = c
	} else {
		l.last.next = c
	}
	l.last = c
}

func (l *line) remove(c *call) {
	if c.prev == nil {
		l.first = c.next
	} else {
		c.prev.next = c.next
	}
	if c.next == nil {
		l.last = c.prev
	} else {
		c.next.prev = c.prev
	}
	c.prev, c.next = nil, nil
}

// flight is what goes to the store together. Its memory is used for one flight after another.
type flight struct {
	calls   []*call
	ops     []store.Op
	results []store.Result

	panicked any
}

// takes says whether a flight with so many operations takes another call.
func (f *flight) takes(c *call, operations int) bool {
	return len(f.calls) == 0 ||
		len(f.calls[0].ops) < large && len(c.ops) < large && operations+len(c.ops) <= maxFlight
}

// fly carries out what waits, flight after flight, until nobody waits.
func (s *Store) fly() {
	var f flight
	for s.board(&f) {
		s.carry(&f)
		s.land(&f)
	}
}

// carry carries out a flight. A panic of the store is handed to its callers, as if each had
// called the store itself: here nobody would know what to do with it.
func (s *Store) carry(f *flight) {
	defer func() {
		if cause := recover(); cause != nil {
			f.panicked = fmt.Sprintf("%v\n%s", cause, debug.Stack())
		}
	}()
	if len(f.calls) == 1 {
		c := f.calls[0]
		s.beneath.Apply(c.ctx, c.ops, c.results)
		return
	}
	s.share(f)
}

// board takes the next calls in line, as many as fit. It says false, and gives the flight's
// place up, when nobody waits.
func (s *Store) board(f *flight) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for c := s.waiting.first; c != nil && f.takes(c, n); c = s.waiting.first {
		s.waiting.remove(c)
		if c.ctx.Err() != nil {
			// Its caller is about to see that too, and to be told that it was not sent.
			fail(c.results, errWaited)
			s.answered(len(c.ops))
			c.state = answering
			close(c.done)
			continue
		}
		c.state = inCompany
		f.calls = append(f.calls, c)
		n += len(c.ops)
	}
	switch len(f.calls) {
	case 0:
		s.flying--
		return false
	case 1:
		f.calls[0].state = alone
	default:
		f.copyAll() // before anybody can leave, and so under mu
	}
	return true
}

// copyAll copies the operations of several calls, their keys as well. The callers may leave before the flight
// lands, and may then do with their memory what they like.
func (f *flight) copyAll() {
	size := 0
	for _, c := range f.calls {
		for i := range c.ops {
			size += len(c.ops[i].Key)
		}
		f.ops = append(f.ops, c.ops...)
	}
	var all strings.Builder
	all.Grow(size)
	for i := range f.ops {
		all.WriteString(f.ops[i].Key)
	}
	keys := all.String()
	for i := range f.ops {
		f.ops[i].Key, keys = keys[:len(f.ops[i].Key)], keys[len(f.ops[i].Key):]
	}
}

// share flies for several calls.
func (s *Store) share(f *flight) {
	if cap(f.results) < len(f.ops) {
		f.results = make([]store.Result, len(f.ops), max(len(f.ops), maxFlight))
	}
	f.results = f.results[:len(f.ops)]
	ctx, cancel := lasting(f.calls)
	defer cancel()
	s.beneath.Apply(ctx, f.ops, f.results)
}

// lasting returns a context that ends with the last of the callers' deadlines. None of them
// may end it for the others: each leaves by itself.
func lasting(calls []*call) (context.Context, context.CancelFunc) {
	ctx := context.WithoutCancel(calls[0].ctx)
	var last time.Time
	for _, c := range calls {
		deadline, ok := c.ctx.Deadline()
		if !ok {
			return ctx, func() {}
		}
		if deadline.After(last) {
			last = deadline
		}
	}
	return context.WithDeadline(ctx, last)
}

// land gives each call that has not left its results.
func (s *Store) land(f *flight) {
	n := 0
	s.mu.Lock()
	for _, c := range f.calls {
		if c.state == left {
			c.results = nil
		}
		c.state = answering
		n += len(c.ops)
	}
	s.answered(n)
	s.mu.Unlock()

	// From here on the callers that are still there wait, and nobody else knows the calls.
	at := 0
	for _, c := range f.calls {
		c.panicked = f.panicked
		copy(c.results, f.results[at:]) // nothing for one that flew alone, which has its results
		close(c.done)
		at += len(c.ops)
	}
	clear(f.calls)
	clear(f.ops)
	clear(f.results)
	f.panicked = nil
	f.calls, f.ops, f.results = f.calls[:0], f.ops[:0], f.results[:0]
}
