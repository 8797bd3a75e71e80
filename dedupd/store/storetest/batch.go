package storetest

import (
	"fmt"
	"sync"
	"time"
	"unsafe"

	"github.com/dedupd/dedup-operator/dedupd/store"
)

var batchChecks = []entry{
	{"a batch of nothing is answered", func(s *session) {
		s.apply()
	}},
	{"each operation of a large batch gets the answer to its own key", func(s *session) {
		var first, second []store.Op
		var fresh, repeated []store.Outcome
		for i := range 500 {
			key := fmt.Sprint(i)
			first = append(first, s.mark(key, "a"))
			fresh = append(fresh, store.Granted)
			second = append(second, s.mark(key, "b"), s.mark("new"+key, "b"))
			repeated = append(repeated, store.Seen, store.Granted)
		}
		s.wantAll(first, fresh...)
		s.wantAll(second, repeated...)
	}},
	{"repeats of a key within a batch see the first of them", func(s *session) {
		s.wantAll([]store.Op{
			s.mark("m", "a"), s.mark("m", "b"), s.mark("other", "a"), s.mark("m", "a"), s.mark("m", "c"),
		}, store.Granted, store.Seen, store.Granted, store.Granted, store.Seen)
	}},
	{"operations on one marked key take effect in their order", func(s *session) {
		s.wantAll([]store.Op{
			s.mark("k", "a"), s.forget("k"), s.mark("k", "b"), s.lookup("k"), s.mark("k", "a"),
			s.settle(store.Complete, "k", "a", 1), s.forget("k"), s.lookup("k"), s.settle(store.Release, "k", "a", 1),
		},
			store.Granted, store.Granted, store.Granted, store.Granted, store.Seen,
			store.Stale, store.Granted, store.Absent, store.Absent)
	}},
	{"keys are any bytes, and no two of them are one", func(s *session) {
		keys := []string{"", " ", "\x00", "\xff\xfe", "a\r\nSET b c\r\n", "a", "a\x00", "{a}", "{a}b", "ü", "$-1\r\n", string(make([]byte, 300))}
		var ops []store.Op
		var fresh, seen []store.Outcome
		for i, key := range keys {
			op := s.mark(key, fmt.Sprint(i))
			if s.claims(i) {
				op = s.claim(key, fmt.Sprint(i))
			}
			ops, fresh = append(ops, op), append(fresh, store.Granted)
		}
		s.wantAll(ops, fresh...)
		for i := range ops {
			ops[i] = s.mark(keys[i], "z")
			outcome := store.Seen
			if s.claims(i) {
				outcome = store.Held
			}
			seen = append(seen, outcome)
		}
		s.wantAll(ops, seen...)
		for i := range ops {
			ops[i] = s.forget(keys[i])
		}
		s.wantAll(ops, fresh...)
	}},
	{"a store keeps none of an operation's memory", func(s *session) {
		buffer := []byte(s.prefix + "k")
		op := s.mark("k", "a")
		op.Key = unsafe.String(&buffer[0], len(buffer))
		s.want(op, store.Granted)
		for i := range buffer {
			buffer[i] = '!'
		}
		s.want(s.mark("k", "b"), store.Seen)
	}},
}

var claimBatchChecks = []entry{
	{"operations on one claimed key take effect in their order, whatever they meet", func(s *session) {
		s.wantAll([]store.Op{
			s.claim("c", "a"), s.claim("c", "b"), s.claim("c", "a"), s.claim("c", "c"),
		}, store.Granted, store.Held, store.Granted, store.Held)
		s.want(s.forget("c"), store.Granted)

		s.wantAll([]store.Op{
			s.claim("c", "a"), s.settle(store.Complete, "c", "a", 1), s.claim("c", "b"), s.forget("c"), s.claim("c", "b"),
		}, store.Granted, store.Granted, store.Seen, store.Granted, store.Granted)

		s.want(s.claim("held", "x"), store.Granted)
		s.wantAll([]store.Op{
			s.claim("held", "a"), s.mark("held", "b"), s.forget("held"), s.mark("held", "c"), s.claim("held", "d"), s.lookup("held"),
		}, store.Held, store.Held, store.Granted, store.Granted, store.Seen, store.Granted)

		s.want(s.claim("settled", "x"), store.Granted)
		s.wantAll([]store.Op{
			s.settle(store.Release, "settled", "x", 1), s.claim("settled", "a"), s.claim("settled", "b"),
			s.settle(store.Complete, "settled", "a", 2), s.claim("settled", "b"), s.forget("settled"),
		}, store.Granted, store.Granted, store.Held, store.Granted, store.Seen, store.Granted)

		s.want(s.claim("free", "x"), store.Granted)
		s.want(s.settle(store.Release, "free", "x", 1), store.Granted)
		s.wantAll([]store.Op{s.mark("free", "a"), s.mark("free", "b"), s.forget("free"), s.lookup("free")},
			store.Granted, store.Seen, store.Granted, store.Absent)
	}},
}

// claims says whether the operation on the ith key of a check is a claim and not a mark: of
// every other one, where the store takes claims.
func (s *session) claims(i int) bool { return i%2 == 1 && !s.MarksOnly }

var raceChecks = []entry{
	{"of 64 attempts at once on a new key exactly one is granted", func(s *session) {
		s.race(s.mark, store.Seen)
	}},
}

var claimRaceChecks = []entry{
	{"of 64 claims at once on a new key exactly one is granted", func(s *session) {
		s.race(s.claim, store.Held)
	}},
	{"of 64 attempts at once on a lapsed claim exactly one takes over", func(s *session) {
		s.want(lasting(s.claim("race", "x"), ttl, shortLease), store.Granted)
		s.lapse("race", shortLease)
		s.race(s.claim, store.Held)
		s.equal("fence", s.want(s.lookup("race"), store.Granted).Record.Fence, uint64(2))
	}},
	{"of 64 attempts at once on a released claim exactly one is granted", func(s *session) {
		s.want(s.claim("race", "x"), store.Granted)
		s.want(s.settle(store.Release, "race", "x", 1), store.Granted)
		s.race(s.claim, store.Held)
		s.equal("fence", s.want(s.lookup("race"), store.Granted).Record.Fence, uint64(2))
	}},
	{"a holder's completion and others' takeover never both succeed", func(s *session) {
		for round := range 8 {
			key := fmt.Sprint("round", round)
			s.want(lasting(s.claim(key, "x"), ttl, time.Millisecond), store.Granted)
			s.lapse(key, time.Millisecond)
			results := s.atOnce([]store.Op{s.settle(store.Complete, key, "x", 1), s.claim(key, "a"), s.claim(key, "b")})
			granted := 0
			for _, r := range results {
				if r.Outcome == store.Granted {
					granted++
				}
			}
			s.equal("how many succeeded", granted, 1)
		}
	}},
}

const racers = 64

// race lets many attempts ask at once for one key and expects one to be granted and the rest
// to be refused.
func (s *session) race(ask func(key, attempt string) store.Op, refusal store.Outcome) {
	ops := make([]store.Op, racers)
	for i := range ops {
		ops[i] = ask("race", fmt.Sprint(i))
	}
	if refusal == store.Seen {
		for i := range ops {
			ops[i].Key += "d"
		}
	}
	counts := map[string]int{}
	for _, r := range s.atOnce(ops) {
		counts[name(r.Outcome)]++
	}
	s.equal("outcomes", counts, map[string]int{name(store.Granted): 1, name(refusal): racers - 1})
}

// atOnce applies each operation in a batch and a goroutine of its own.
func (s *session) atOnce(ops []store.Op) []store.Result {
	results := make([]store.Result, len(ops))
	start := make(chan struct{})
	var group sync.WaitGroup
	for i := range ops {
		group.Go(func() {
			<-start
			s.Store.Apply(s.ctx, ops[i:i+1], results[i:i+1])
		})
	}
	close(start)
	group.Wait()
	for i, r := range results {
		if r.Err != nil {
			s.failf("%s: %w", describe(ops[i]), r.Err)
		}
	}
	return results
}
