package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/faulttest"
)

var linearChecks = []entry{
	{"concurrent histories are linearizable, each key by store.Transition", func(s *session) {
		s.linear(workload{name: "lasting", lease: lease, ttl: ttl})
	}},
	{"concurrent histories are linearizable while leases and records run out", func(s *session) {
		s.linear(workload{name: "lapsing", lease: lapsing, ttl: expiring, pauses: true})
	}},
	{"concurrent histories are linearizable although answers get lost and operations are repeated", func(s *session) {
		s.linear(workload{name: "lossy", lease: lapsing, ttl: expiring, pauses: true, link: s.lossy})
		if s.Faulty != nil {
			s.linear(workload{name: "faulty", lease: lapsing, ttl: expiring, pauses: true, link: s.Faulty})
		}
	}},
}

// Few keys, so that the clients meet; few operations on each, since whether a history is
// linearizable takes exponential time to decide in the worst case. More keys where outcomes
// are not known: each of those doubles it.
const (
	linearRounds  = 6
	linearClients = 6
	linearSteps   = 30
	linearKeys    = 3
	faultyKeys    = 6
)

// What runs out while the clients work: each of them pauses for up to longestPause between two
// operations, so that a lease is taken over as often as it is settled.
const (
	lapsing      = 40 * time.Millisecond
	expiring     = 120 * time.Millisecond
	longestPause = 15 * time.Millisecond
)

// workload is what the clients do.
type workload struct {
	name       string // keeps its keys apart from those of others
	lease, ttl time.Duration
	pauses     bool

	// link is how each client reaches the store, by its seed; nil if nothing goes wrong.
	link func(seed uint64) (s store.Store, repeats func() int)
}

// linear lets clients work at once, each on its own, and then looks for an order of their
// operations, within what each of them saw, in which store.Transition gives the same answers.
func (s *session) linear(w workload) {
	first := faulttest.NewSeed()
	var judged, undecided int
	for round := range uint64(linearRounds) {
		if s.err != nil {
			return
		}
		run := &run{session: s, workload: w, seed: first + round, begun: time.Now()}
		histories := make([][]porcupine.Operation, linearClients)
		var group sync.WaitGroup
		for client := range linearClients {
			group.Go(func() { histories[client] = run.client(client) })
		}
		group.Wait()
		if err := run.judge(slices.Concat(histories...), &judged, &undecided); err != nil {
			s.failf("%w\n%s", err, faulttest.Replay(first))
		}
	}
	if undecided > judged/10 {
		s.failf("%d of %d histories are not decided in %s each\n%s", undecided, judged, enough, faulttest.Replay(first))
	}
}

// enough is the time for one history, which mostly takes milliseconds. Deciding takes exponential time in the
// worst case, and by chance several operations of unknown outcome on one key bring that about: such
// a history says nothing, for or against, and there may be a few.
const enough = 5 * time.Second

// run is one round of a workload.
type run struct {
	*session
	workload
	seed  uint64
	begun time.Time

	// Of a clock that is moved: how far it has been moved for sure, and at most.
	moved, moving atomic.Int64
}

// before is a time of the store that has passed already; after one that has not yet.
func (r *run) before() time.Duration {
	if r.Advance != nil {
		return time.Duration(r.moved.Load())
	}
	return time.Since(r.begun)
}

func (r *run) after() time.Duration {
	if r.Advance != nil {
		return time.Duration(r.moving.Load())
	}
	return time.Since(r.begun)
}

func (r *run) pass(d time.Duration) {
	if r.Advance == nil {
		select {
		case <-time.After(d):
		case <-r.ctx.Done():
		}
		return
	}
	r.moving.Add(int64(d))
	r.Advance(d)
	r.moved.Add(int64(d))
}

// errRepeated is the unknown outcome of an operation's other executions.
var errRepeated = errors.New("a link that failed may have had it carried out once more")

// client is one client at work: random operations, with tokens that it was granted or that it
// has seen. What it does next depends on its seed, and on nothing but the answers.
func (r *run) client(number int) []porcupine.Operation {
	seed := r.seed<<8 + uint64(number)
	random := rand.New(rand.NewPCG(seed, 0))
	link, repeats := r.Store, func() int { return 0 }
	if r.link != nil {
		link, repeats = r.link(seed)
	}
	seen := map[string]record.Token{}
	history := make([]porcupine.Operation, 0, linearSteps)
	for step := range linearSteps {
		if r.pauses && random.IntN(2) == 0 {
			r.pass(time.Duration(random.Int64N(int64(longestPause))).Truncate(time.Millisecond))
		}
		op := r.random(random, fmt.Sprint(r.seed, number, step), seen)
		results := make([]store.Result, 1)
		failed, called, from := repeats(), time.Since(r.begun), r.before()
		link.Apply(r.ctx, []store.Op{op}, results)
		one := porcupine.Operation{
			ClientId: number, Input: asked{op, span{from, r.after()}, &r.Fixture}, Call: int64(called),
			Output: results[0], Return: int64(time.Since(r.begun)),
		}
		open := one
		open.Input, open.Return = asked{op, span{from, forever}, &r.Fixture}, int64(forever)
		if results[0].Err != nil {
			one = open
		}
		history = append(history, one)
		for range repeats() - failed {
			open.Output = store.Result{Err: errRepeated}
			history = append(history, open)
		}
		if rec := results[0].Record; rec.State != 0 {
			seen[op.Key] = record.Token{Owner: rec.Owner, Fence: rec.Fence}
		}
	}
	return history
}

// random is a random operation: claims more often than anything else, or there would be
// little to settle.
func (r *run) random(random *rand.Rand, attempt string, seen map[string]record.Token) store.Op {
	verb := []store.Verb{
		store.Claim, store.Claim, store.Claim, store.Mark, store.Complete, store.Release, store.Renew, store.Lookup, store.Forget,
	}[random.IntN(9)]
	if r.MarksOnly && verb == store.Claim {
		verb = store.Mark
	}
	keys := linearKeys
	if r.link != nil {
		keys = faultyKeys
	}
	op := r.settle(verb, fmt.Sprintf("%s:%d:%d", r.name, r.seed, random.IntN(keys)), attempt, 1)
	op.TTL, op.Lease = r.ttl, r.lease
	if token, ok := seen[op.Key]; ok && (verb != store.Mark && verb != store.Claim || random.IntN(4) == 0) {
		op.Token = token
	}
	if !r.MarksOnly && random.IntN(3) == 0 {
		op.Digest = record.DigestOf([]byte{byte(random.IntN(2))})
	}
	return op
}

// judge says whether the history of each key is linearizable, and counts them.
func (r *run) judge(history []porcupine.Operation, judged, undecided *int) error {
	byKey := map[string][]porcupine.Operation{}
	for _, o := range history {
		op := o.Input.(asked).op
		if op.Verb == store.Lookup && o.Output.(store.Result).Err != nil {
			continue // says nothing and has changed nothing
		}
		byKey[op.Key] = append(byKey[op.Key], o)
	}
	for _, operations := range byKey {
		model := timedModel.ToModel()
		*judged++
		switch result, info := porcupine.CheckOperationsVerbose(model, operations, enough); result {
		case porcupine.Illegal:
			return fmt.Errorf("no order of these %d operations explains their answers:\n%s", len(operations), explain(operations, info))
		case porcupine.Unknown:
			*undecided++
		case porcupine.Ok:
		}
	}
	return nil
}

// explain lists a history: the operations of the longest order that was found, in that order,
// and then those that do not fit behind it.
func explain(operations []porcupine.Operation, info porcupine.LinearizationInfo) string {
	var longest []porcupine.Operation
	for _, partial := range info.PartialLinearizationsOperations()[0] {
		if len(partial) > len(longest) {
			longest = partial
		}
	}
	var b strings.Builder
	for _, o := range longest {
		b.WriteString("  " + describeAsked(o.Input.(asked), o.Output.(store.Result)) + "\n")
	}
	b.WriteString("and then none of\n")
	slices.SortFunc(operations, func(x, y porcupine.Operation) int { return int(x.Call - y.Call) })
	for _, o := range operations {
		if !slices.Contains(longest, o) {
			b.WriteString("  " + describeAsked(o.Input.(asked), o.Output.(store.Result)) + "\n")
		}
	}
	return b.String()
}
