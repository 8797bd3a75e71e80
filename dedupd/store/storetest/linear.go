package storetest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

var linearChecks = []check{
	{"concurrent histories are linearizable, each key by store.Transition", func(s *session) {
		for seed := range uint64(linearRounds) {
			s.linear(seed)
		}
	}},
}

// Few keys, so that the clients meet; few operations on each, since whether a history is
// linearizable takes exponential time to decide in the worst case.
const (
	linearRounds  = 6
	linearClients = 6
	linearSteps   = 30
	linearKeys    = 3
)

// linear lets clients work at once, each on its own, and then looks for an order of their
// operations, within what each of them saw, in which store.Transition gives the same answers.
func (s *session) linear(seed uint64) {
	if s.err != nil {
		return
	}
	begun := time.Now()
	histories := make([][]porcupine.Operation, linearClients)
	var group sync.WaitGroup
	for client := range linearClients {
		group.Go(func() { histories[client] = s.client(seed, client, begun) })
	}
	group.Wait()
	var history []porcupine.Operation
	for _, h := range histories {
		history = append(history, h...)
	}
	switch porcupine.CheckOperationsTimeout(transitionModel, history, deadline/4) {
	case porcupine.Illegal:
		s.failf("seed %d: no order of the %d operations explains their answers", seed, len(history))
	case porcupine.Unknown:
		s.failf("seed %d: not decided in %s whether the %d operations are linearizable", seed, deadline/4, len(history))
	case porcupine.Ok:
	}
}

// client is one client at work: random operations, with tokens that it was granted or that it
// has seen. Nothing it does depends on time.
func (s *session) client(seed uint64, client int, begun time.Time) []porcupine.Operation {
	random := rand.New(rand.NewPCG(seed, uint64(client)))
	seen := map[string]record.Token{}
	history := make([]porcupine.Operation, 0, linearSteps)
	for step := range linearSteps {
		key := fmt.Sprintf("%d:%d", seed, random.IntN(linearKeys))
		// Claims more often than anything else, or there would be little to settle.
		verb := []store.Verb{
			store.Claim, store.Claim, store.Claim, store.Mark, store.Complete, store.Release, store.Renew, store.Lookup, store.Forget,
		}[random.IntN(9)]
		op := s.settle(verb, key, fmt.Sprint(client, step), 1)
		op.Lease = lease
		if token, ok := seen[key]; ok && (verb != store.Mark && verb != store.Claim || random.IntN(4) == 0) {
			op.Token = token
		}
		results := make([]store.Result, 1)
		called := time.Since(begun)
		s.Store.Apply(s.ctx, []store.Op{op}, results)
		history = append(history, porcupine.Operation{
			ClientId: client, Input: op, Call: int64(called), Output: results[0], Return: int64(time.Since(begun)),
		})
		if r := results[0].Record; r.State != 0 {
			seen[key] = record.Token{Owner: r.Owner, Fence: r.Fence}
		}
	}
	return history
}

// transitionModel is store.Transition at one moment, over the record under one key. Times of
// first sight differ from clock to clock and are left out.
var transitionModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, o := range history {
			key := o.Input.(store.Op).Key
			byKey[key] = append(byKey[key], o)
		}
		return slices.Collect(maps.Values(byKey))
	},
	Init: func() any { return record.Record{} },
	Step: func(state, input, output any) (bool, any) {
		prev, op, got := state.(record.Record), input.(store.Op), output.(store.Result)
		now := time.UnixMilli(0)
		var entry *store.Entry
		if prev.State != 0 {
			entry = &store.Entry{Record: prev, ExpiresAt: now.Add(ttl)}
		}
		next, want := store.Transition(entry, op, now)
		same := got.Err == nil && got.Outcome == want.Outcome && timeless(got.Record) == timeless(want.Record)
		if next == nil {
			return same, record.Record{}
		}
		return same, timeless(next.Record)
	},
	DescribeOperation: func(input, output any) string {
		return fmt.Sprintf("%s -> %s", describe(input.(store.Op)), name(output.(store.Result).Outcome))
	},
}

func timeless(r record.Record) record.Record {
	r.FirstSeen = time.Time{}
	return r
}
