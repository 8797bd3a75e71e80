package storetest

import (
	"time"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

var settleVerbs = []store.Verb{store.Complete, store.Release, store.Renew}

var settleChecks = []entry{
	{"a completed message is seen by every attempt, its own included, for a whole ttl", func(s *session) {
		first := s.want(s.claim("k", "a"), store.Granted)
		done := s.want(lasting(s.settle(store.Complete, "k", "a", 1), 2*ttl, 0), store.Granted)
		want := first.Record
		want.State, want.Lease, want.Window = record.Completed, 0, 2*ttl
		s.equal("completed record", done.Record, want)
		s.equal("the record that a duplicate is told", s.want(s.claim("k", "b"), store.Seen).Record, want)
		s.want(s.claim("k", "a"), store.Seen)
		s.between("remaining", s.want(s.lookup("k"), store.Granted).Remaining, 2*ttl-deadline, 2*ttl)
	}},
	{"a completed message is forgotten after the ttl of its completion and not before", func(s *session) {
		s.want(s.claim("k", "a"), store.Granted)
		begun := time.Now()
		s.want(lasting(s.settle(store.Complete, "k", "a", 1), shortTTL, 0), store.Granted)
		s.turns(s.claim("k", "b"), shortTTL, store.Seen, store.Granted)
		s.notBefore(begun, shortTTL)
	}},
	{"a released message is granted at once, with a higher fence, to its own attempt too", func(s *session) {
		s.want(s.claim("k", "a"), store.Granted)
		released := s.want(s.settle(store.Release, "k", "a", 1), store.Granted)
		s.equal("state", released.Record.State, record.Released)
		s.equal("fence of the second holder", s.want(s.claim("k", "b"), store.Granted).Record.Fence, uint64(2))
		s.want(s.settle(store.Release, "k", "b", 2), store.Granted)
		s.equal("fence of the third holder", s.want(s.claim("k", "b"), store.Granted).Record.Fence, uint64(3))
		s.want(s.claim("k", "a"), store.Held)
	}},
	{"a renewed claim is held for a whole lease more", func(s *session) {
		s.want(lasting(s.claim("k", "a"), 2*lease, lease), store.Granted)
		renewed := s.want(lasting(s.settle(store.Renew, "k", "a", 1), 3*ttl, 3*lease), store.Granted)
		s.equal("state", renewed.Record.State, record.Claimed)
		s.equal("fence", renewed.Record.Fence, uint64(1))
		s.equal("lease", renewed.Record.Lease, 3*lease)
		s.between("retry after", s.want(s.claim("k", "b"), store.Held).RetryAfter, 3*lease-deadline, 3*lease)
		s.between("remaining", s.want(s.lookup("k"), store.Granted).Remaining, 3*ttl-deadline, 3*ttl)
		s.want(s.settle(store.Complete, "k", "a", 1), store.Granted)
	}},
	{"each settling may be repeated, because its answer was lost", func(s *session) {
		for _, verb := range settleVerbs {
			key := describe(store.Op{Verb: verb})
			s.want(s.claim(key, "a"), store.Granted)
			first := s.want(s.settle(verb, key, "a", 1), store.Granted)
			again := s.want(s.settle(verb, key, "a", 1), store.Granted)
			s.equal("record", again.Record, first.Record)
		}
	}},
	{"a repeated completion does not lengthen what is remembered", func(s *session) {
		s.want(s.claim("k", "a"), store.Granted)
		s.want(s.settle(store.Complete, "k", "a", 1), store.Granted)
		s.want(lasting(s.settle(store.Complete, "k", "a", 1), 3*ttl, 0), store.Granted)
		s.between("remaining", s.want(s.lookup("k"), store.Granted).Remaining, ttl-deadline, ttl)
	}},
	{"a lease that has run out does no harm as long as nobody took over", func(s *session) {
		for _, verb := range settleVerbs {
			key := describe(store.Op{Verb: verb})
			s.want(lasting(s.claim(key, "a"), ttl, shortLease), store.Granted)
			s.lapse(key, shortLease)
			s.want(s.settle(verb, key, "a", 1), store.Granted)
		}
	}},
	{"only the holder settles: another owner or another fence is stale and changes nothing", func(s *session) {
		first := s.want(s.claim("k", "a"), store.Granted)
		for _, verb := range settleVerbs {
			r := s.want(s.settle(verb, "k", "b", 1), store.Stale)
			s.equal("what stands there", r.Record, first.Record)
			s.want(s.settle(verb, "k", "a", 2), store.Stale)
			s.want(s.settle(verb, "k", "a", 0), store.Stale)
		}
		s.equal("what stands there", s.want(s.claim("k", "c"), store.Held).Record, first.Record)
		s.want(s.settle(store.Complete, "k", "a", 1), store.Granted)
	}},
	{"the token of a holder that was taken over is stale", func(s *session) {
		s.want(lasting(s.claim("k", "a"), ttl, shortLease), store.Granted)
		s.lapse("k", shortLease)
		second := s.want(s.claim("k", "b"), store.Granted)
		for _, verb := range settleVerbs {
			r := s.want(s.settle(verb, "k", "a", 1), store.Stale)
			s.equal("what stands there", r.Record, second.Record)
		}
		s.want(s.settle(store.Complete, "k", "b", 2), store.Granted)
		s.want(s.settle(store.Complete, "k", "a", 1), store.Stale)
	}},
	{"a settled claim is not settled otherwise", func(s *session) {
		s.want(s.claim("done", "a"), store.Granted)
		s.want(s.settle(store.Complete, "done", "a", 1), store.Granted)
		s.want(s.settle(store.Release, "done", "a", 1), store.Stale)
		s.want(s.settle(store.Renew, "done", "a", 1), store.Stale)
		s.want(s.claim("done", "b"), store.Seen)

		s.want(s.claim("given back", "a"), store.Granted)
		s.want(s.settle(store.Release, "given back", "a", 1), store.Granted)
		s.want(s.settle(store.Complete, "given back", "a", 1), store.Stale)
		s.want(s.settle(store.Renew, "given back", "a", 1), store.Stale)
		s.want(s.claim("given back", "b"), store.Granted)
	}},
	{"where nothing stands there is nothing to settle", func(s *session) {
		for _, verb := range settleVerbs {
			r := s.want(s.settle(verb, "k", "a", 1), store.Absent)
			s.equal("record", r.Record, record.Record{})
		}
		s.want(s.claim("k", "a"), store.Granted)
	}},
	{"the fence goes on rising past each byte of its form", func(s *session) {
		var ops []store.Op
		var outcomes []store.Outcome
		const holders = 600
		for fence := uint64(1); fence <= holders; fence++ {
			ops = append(ops, s.claim("k", "a"), s.settle(store.Release, "k", "a", fence))
			outcomes = append(outcomes, store.Granted, store.Granted)
		}
		results := s.wantAll(ops, outcomes...)
		s.equal("last fence", results[len(results)-1].Record.Fence, uint64(holders))
	}},
}
