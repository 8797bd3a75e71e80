package proof

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/client"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// point is a place in a consumer's loop.
type point string

// The points. Between checking and checked, and between completing and completed, the consumer
// asks dedupd.
const (
	next         point = "next"
	checking     point = "checking"
	checked      point = "checked"
	worked       point = "worked"
	completing   point = "completing"
	completed    point = "completed"
	acknowledged point = "acknowledged"
	putBack      point = "put back"
)

// step is what a consumer tells the queue when it comes to a point.
type step struct {
	Point point
	At    time.Time

	Decision client.Decision
	Fence    uint64
	Lease    time.Duration
	Failure  string
	Stale    bool
	Pause    time.Duration
}

// reply is what the queue says to a step: after next, a message or that there will be no more.
type reply struct {
	ID   string
	Done bool
}

// queue delivers at least once: what is not acknowledged comes again, and some messages come
// twice in any case. It writes the history.
type queue struct {
	*history

	// reached is told of each step before the consumer may go on; false: it may not, ever.
	reached func(w *worker, p point) bool

	ready   chan string
	drained chan struct{} // closed when everything is acknowledged and nothing more comes
	over    chan struct{} // closed when the test has ended, whatever is left

	mu     sync.Mutex
	random *rand.Rand     // guarded by mu
	open   map[string]int // guarded by mu: deliveries that are not acknowledged, by message
	acked  int            // guarded by mu
	serial int            // guarded by mu
	closed bool           // guarded by mu
}

// worker is a consumer as the queue knows it.
type worker struct {
	name    string
	current *attempt
	holds   string // the message that was delivered to it
	process *process
}

func newQueue(m mode, seed uint64) *queue {
	return &queue{
		history: newHistory(m),
		reached: func(*worker, point) bool { return true },
		ready:   make(chan string, 1<<20), drained: make(chan struct{}), over: make(chan struct{}),
		random: rand.New(rand.NewPCG(seed, 2)), open: map[string]int{},
	}
}

// produce adds messages. A third of them come twice, and each may bring back an older one.
func (q *queue) produce(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for range n {
		q.serial++
		id := fmt.Sprint("m", q.serial)
		q.history.mu.Lock()
		q.produced[id] = true
		q.history.mu.Unlock()
		ids := []string{id}
		if q.random.IntN(3) == 0 {
			ids = append(ids, id)
		}
		if q.random.IntN(3) == 0 {
			ids = append(ids, fmt.Sprint("m", 1+q.random.IntN(q.serial)))
		}
		for _, id := range ids {
			q.deliver(id)
		}
	}
}

// deliver has a message delivered once more. It requires mu.
func (q *queue) deliver(id string) {
	q.open[id]++
	q.ready <- id
}

// backlog is how many deliveries may wait before nothing is produced.
const backlog = 200

// flow produces a message every few milliseconds until it is told to stop. What is slow has to catch up first.
func (q *queue) flow() (stop func()) {
	quit, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		ticker := time.NewTicker(4 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if len(q.ready) < backlog {
					q.produce(1)
				}
			case <-quit:
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-gone
		q.close()
	}
}

// close says that nothing more will be produced.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.settleUp()
}

// settleUp requires mu.
func (q *queue) settleUp() {
	if q.closed && len(q.open) == 0 {
		close(q.drained)
	}
}

// done is how many deliveries have been acknowledged.
func (q *queue) done() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.acked
}

// reach waits until so many more deliveries are acknowledged.
func (q *queue) reach(t *testing.T, n int) {
	t.Helper()
	goal := q.done() + n
	redistest.Eventually(t, "the load goes on", func() bool { return q.done() >= goal })
}

// wait waits until everything is acknowledged.
func (q *queue) wait(t *testing.T) {
	t.Helper()
	select {
	case <-q.drained:
	case <-time.After(patience):
		q.mu.Lock()
		defer q.mu.Unlock()
		for id := range q.open {
			q.history.mu.Lock()
			defer q.history.mu.Unlock()
			t.Fatalf("%d messages are not acknowledged after %s, such as %s:%s", len(q.open), patience, id, q.tell(id))
		}
	}
}

// patience is how long anything may take on a machine that has much else to do.
const patience = 60 * time.Second

// handle notes a step and answers it. False: the consumer may not go on.
func (q *queue) handle(w *worker, s step) (reply, bool) {
	if s.Point == next {
		select {
		case w.holds = <-q.ready:
			return reply{ID: w.holds}, true
		case <-q.drained:
			return reply{Done: true}, true
		case <-q.over:
			return reply{}, false
		}
	}
	q.note(w.current, func(*attempt) { w.apply(q, s) })
	if s.Point == acknowledged || s.Point == putBack {
		q.settle(w, s)
	}
	select {
	case <-q.over:
		return reply{}, false
	default:
		return reply{}, q.reached(w, s.Point)
	}
}

// apply writes a step into the history. It requires the history's mu.
func (w *worker) apply(q *queue, s step) {
	switch s.Point {
	case checking:
		w.current = &attempt{key: w.holds, consumer: w.name, called: s.At}
		q.attempts[w.holds] = append(q.attempts[w.holds], w.current)
	case checked:
		w.current.answered, w.current.decision, w.current.failure = s.At, s.Decision, s.Failure
		w.current.fence, w.current.lease = s.Fence, s.Lease
	case worked:
		w.current.effect = s.At
	case completing:
		w.current.completing = s.At
	case completed:
		w.current.completed, w.current.refused, w.current.unknown = s.At, s.Stale, s.Failure != "" && !s.Stale
	case next, acknowledged, putBack:
	}
}

// settle ends a delivery: for good, or until it comes again.
func (q *queue) settle(w *worker, s step) {
	id := w.holds
	w.holds = ""
	if s.Point == putBack {
		time.AfterFunc(s.Pause, func() { q.ready <- id })
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.acked++
	if q.open[id]--; q.open[id] == 0 {
		delete(q.open, id)
	}
	q.settleUp()
}

// abandon is what the queue does when a consumer is gone: what it held comes again.
func (q *queue) abandon(w *worker) {
	if w.holds != "" {
		q.ready <- w.holds
		w.holds = ""
	}
}
