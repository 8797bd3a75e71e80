package proof

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dedupd/dedup-operator/dedupd/client"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/server/servertest"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/faulttest"
)

// shelf is what the stores of several dedupd have in common.
type shelf struct {
	mu      sync.Mutex
	entries map[string]*store.Entry
}

// shelved is a store on a shelf, with a transition that may be wrong and a clock of its own.
type shelved struct {
	*shelf
	transition func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result)
	ahead      time.Duration
}

func (s *shelved) Apply(_ context.Context, ops []store.Op, results []store.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, op := range ops {
		s.entries[op.Key], results[i] = s.transition(s.entries[op.Key], op, time.Now().Add(s.ahead))
	}
}

func (s *shelved) Health(context.Context) store.Health { return store.Health{Safety: store.Safe} }
func (s *shelved) Close() error                        { return nil }

// serveStore runs a dedupd in this process, on a store of one's own, and returns its address.
func serveStore(t *testing.T, m mode, s store.Store) string {
	t.Helper()
	service := servertest.New(func(*policy.Policy) (store.Store, error) { return s, nil })
	servertest.Load(t, service, manifest(m, "memory: {}"), nil)
	return servertest.Run(t, service)
}

// losing is a connection that loses every third answer.
func losing() grpc.DialOption {
	var answers atomic.Int64
	return grpc.WithUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			err := invoke(ctx, method, req, reply, cc, o...)
			if err == nil && answers.Add(1)%3 == 0 {
				return status.Error(codes.Unavailable, "connection reset by peer")
			}
			return err
		})
}

type transition = func(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result)

func acquires(op store.Op) bool { return op.Verb == store.Mark || op.Verb == store.Claim }

// setNX is what people write today: whatever stands there is a duplicate.
func setNX(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
	if prev != nil && acquires(op) {
		return prev, store.Result{Outcome: store.Seen, Record: prev.Record}
	}
	return store.Transition(prev, op, now)
}

// anybody lets whoever comes settle a claim.
func anybody(prev *store.Entry, op store.Op, now time.Time) (*store.Entry, store.Result) {
	if prev != nil && !acquires(op) {
		op.Token = record.Token{Owner: prev.Record.Owner, Fence: prev.Record.Fence}
	}
	return store.Transition(prev, op, now)
}

// TestWrongStoresAreFoundOut is the control of the whole suite: the same consumers, queue and
// verdict, with dedupd on stores that make the mistakes that are made elsewhere. Answers get lost,
// and some consumers are slower than their leases.
func TestWrongStoresAreFoundOut(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		mode       mode
		transition transition
		ahead      time.Duration // by which the second dedupd's clock is
		want       []string      // the rules that are broken; others may be too
	}{
		"a right store, Claim":                {modeClaim, store.Transition, 0, nil},
		"a right store, Mark":                 {modeMark, store.Transition, 0, nil},
		"a bare SETNX, Mark":                  {modeMark, setNX, 0, []string{"G1", "lost"}},
		"a bare SETNX, Claim":                 {modeClaim, setNX, 0, []string{"G1", "lost"}},
		"owners that are not compared":        {modeClaim, anybody, 0, []string{"G2"}},
		"leases by the clocks of the callers": {modeClaim, store.Transition, 10 * lease, []string{"G2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &shelf{entries: map[string]*store.Entry{}}
			a := access{Timeout: 2 * time.Second, Retry: patience, options: []grpc.DialOption{losing()}}
			for _, ahead := range []time.Duration{0, test.ahead} {
				a.Targets = append(a.Targets, serveStore(t, test.mode, &shelved{s, test.transition, ahead}))
			}
			q := newQueue(test.mode, faulttest.Seed(t))
			var slow atomic.Int64
			q.reached = func(w *worker, p point) bool {
				if p == worked {
					time.Sleep(10 * time.Millisecond)
					if slow.Add(1)%20 == 0 {
						// There is somebody to take over.
						q.mu.Lock()
						q.deliver(w.holds)
						q.mu.Unlock()
						time.Sleep(2 * lease)
					}
				}
				return true
			}
			q.produce(100)
			q.close()
			q.consumers(t, 12, a)
			q.wait(t)
			broken, _ := q.judge(nil)
			found := map[string]int{}
			for _, v := range broken {
				found[v.rule]++
			}
			for _, rule := range test.want {
				if found[rule] == 0 {
					t.Errorf("%s is not found broken, only %v", rule, found)
				}
			}
			if test.want == nil {
				q.mustHold(t, nil)
			}
		})
	}
}

// TestTheVerdict is the control of the verdict: histories of one message, each with the rule
// that it breaks.
func TestTheVerdict(t *testing.T) {
	at := func(ms int) time.Time {
		return time.UnixMilli(1_700_000_000_000).Add(time.Duration(ms) * time.Millisecond)
	}
	fresh := func(called, answered int, fence uint64) *attempt {
		return &attempt{called: at(called), answered: at(answered), decision: client.Fresh, fence: fence, lease: 100 * time.Millisecond, effect: at(answered)}
	}
	done := func(a *attempt, completing, completed int) *attempt {
		a.completing, a.completed = at(completing), at(completed)
		return a
	}
	refused := func(a *attempt) *attempt { a.refused = true; return a }
	duplicate := func(called, answered int) *attempt {
		return &attempt{called: at(called), answered: at(answered), decision: client.Duplicate}
	}
	unanswered := func(called int) *attempt { return &attempt{called: at(called)} }
	killed := func(a *attempt) *attempt { a.completed = time.Time{}; return a }
	tests := map[string]struct {
		mode     mode
		attempts []*attempt
		want     []string
	}{
		"processed once":                                {modeClaim, []*attempt{done(fresh(0, 1, 1), 2, 3), duplicate(4, 5)}, nil},
		"a duplicate of a completion on its way":        {modeClaim, []*attempt{killed(done(fresh(0, 1, 1), 2, 3)), duplicate(1, 5)}, nil},
		"a duplicate before the completion was sent":    {modeClaim, []*attempt{done(fresh(0, 1, 1), 6, 7), duplicate(1, 5)}, []string{"G1"}},
		"a duplicate of a claim":                        {modeClaim, []*attempt{fresh(0, 1, 1), duplicate(2, 3)}, []string{"G1"}},
		"a duplicate of a refused completion":           {modeClaim, []*attempt{refused(done(fresh(0, 1, 1), 2, 3)), duplicate(4, 5)}, []string{"G1"}},
		"a duplicate of itself":                         {modeMark, []*attempt{duplicate(0, 1)}, []string{"G1", "lost"}},
		"a duplicate of a mark":                         {modeMark, []*attempt{fresh(0, 1, 0), duplicate(2, 3)}, nil},
		"a duplicate of a mark that was never answered": {modeMark, []*attempt{unanswered(0), duplicate(2, 3), fresh(9, 10, 0)}, nil},
		"a duplicate of a duplicate":                    {modeMark, []*attempt{duplicate(0, 1), duplicate(2, 3), fresh(9, 10, 0)}, []string{"G1", "G1"}},
		"never processed":                               {modeClaim, []*attempt{unanswered(0)}, []string{"lost"}},
		"marked twice":                                  {modeMark, []*attempt{fresh(0, 1, 0), fresh(2, 3, 0)}, []string{"G3"}},
		"held by two":                                   {modeClaim, []*attempt{fresh(0, 1, 1), fresh(50, 51, 2)}, []string{"G2"}},
		"held by two at once":                           {modeClaim, []*attempt{fresh(0, 9, 1), fresh(1, 8, 1)}, []string{"G2"}},
		"taken over at the end of the lease":            {modeClaim, []*attempt{fresh(0, 1, 1), fresh(99, 100, 2)}, nil},
		"taken over with the same fence":                {modeClaim, []*attempt{fresh(0, 1, 1), fresh(150, 151, 1)}, []string{"G2"}},
		"completed by one that was taken over":          {modeClaim, []*attempt{done(fresh(0, 1, 1), 170, 171), fresh(150, 151, 2)}, []string{"G2"}},
		"refused to one that was taken over":            {modeClaim, []*attempt{refused(done(fresh(0, 1, 1), 170, 171)), fresh(150, 151, 2)}, nil},
		"granted after its completion":                  {modeClaim, []*attempt{done(fresh(0, 1, 1), 2, 3), fresh(4, 5, 2)}, []string{"G3"}},
		"granted while it is being completed":           {modeClaim, []*attempt{done(fresh(0, 1, 1), 150, 160), fresh(149, 155, 2)}, nil},
		"granted after a completion that was refused":   {modeClaim, []*attempt{refused(done(fresh(0, 1, 1), 120, 121)), fresh(122, 123, 2)}, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHistory(test.mode)
			h.produced["m"] = true
			h.attempts["m"] = test.attempts
			for _, a := range test.attempts {
				a.key = "m"
			}
			rules := func(all []violation) []string {
				var rules []string
				for _, v := range all {
					rules = append(rules, v.rule)
				}
				slices.Sort(rules)
				return rules
			}
			broken, _ := h.judge(nil)
			if got := rules(broken); !slices.Equal(got, test.want) {
				t.Errorf("found %v, want %v: %v", got, test.want, broken)
			}
			// What the store has lost excuses a second grant, and never a false duplicate.
			broken, excused := h.judge(func(string, time.Time, time.Time) bool { return true })
			for _, v := range broken {
				if v.rule != "G1" && v.rule != "lost" {
					t.Errorf("not excused: %v", v)
				}
			}
			for _, v := range excused {
				if v.rule != "G2" && v.rule != "G3" {
					t.Errorf("excused: %v", v)
				}
			}
		})
	}
}
