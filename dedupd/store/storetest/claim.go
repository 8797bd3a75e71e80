package storetest

import (
	"time"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

var claimChecks = []entry{
	{"the first claim is granted and any other attempt is held for what is left of its lease", func(s *session) {
		first := s.want(s.claim("k", "a"), store.Granted)
		want := record.Record{
			State: record.Claimed, Owner: record.OwnerOf("a"), FirstSeen: first.Record.FirstSeen,
			Fence: 1, Lease: lease, Window: ttl,
		}
		s.equal("granted record", first.Record, want)
		held := s.want(s.claim("k", "b"), store.Held)
		s.equal("the record that is held", held.Record, want)
		s.between("retry after", held.RetryAfter, lease-deadline, lease)
		found := s.want(s.lookup("k"), store.Granted)
		s.between("retry after of a lookup", found.RetryAfter, lease-deadline, lease)
		s.between("remaining", found.Remaining, ttl-deadline, ttl)
		if s.Advance != nil {
			s.Advance(lease / 4)
			s.equal("retry after a quarter", s.want(s.claim("k", "b"), store.Held).RetryAfter, lease-lease/4)
		}
	}},
	{"an attempt that claims again keeps its fence and gets a whole lease", func(s *session) {
		first := s.want(s.claim("k", "a"), store.Granted)
		again := s.want(lasting(s.claim("k", "a"), 2*ttl, 2*lease), store.Granted)
		s.equal("fence", again.Record.Fence, uint64(1))
		s.equal("lease", again.Record.Lease, 2*lease)
		s.equal("first seen", again.Record.FirstSeen, first.Record.FirstSeen)
		s.between("retry after", s.want(s.claim("k", "b"), store.Held).RetryAfter, lease, 2*lease)
		s.between("remaining", s.want(s.lookup("k"), store.Granted).Remaining, ttl, 2*ttl)
	}},
	{"a claim is taken over when its lease has run out and not before, with a higher fence", func(s *session) {
		begun := time.Now()
		first := s.want(lasting(s.claim("k", "a"), ttl, shortLease), store.Granted)
		second := s.turns(s.claim("k", "b"), shortLease, store.Held, store.Granted)
		s.notBefore(begun, shortLease)
		s.equal("fence", second.Record.Fence, uint64(2))
		s.equal("owner", second.Record.Owner, record.OwnerOf("b"))
		s.equal("first seen", second.Record.FirstSeen, first.Record.FirstSeen)
		s.want(s.claim("k", "a"), store.Held)
	}},
	{"being asked for neither lengthens nor shortens a claim", func(s *session) {
		s.want(s.claim("k", "a"), store.Granted)
		passed := time.Duration(0)
		if s.Advance != nil {
			passed = lease / 4
			s.Advance(passed)
		}
		s.want(lasting(s.claim("k", "b"), 3*ttl, shortLease), store.Held)
		s.want(lasting(s.mark("k", "c"), 3*ttl, 0), store.Held)
		found := s.want(s.lookup("k"), store.Granted)
		s.between("retry after", found.RetryAfter, lease-passed-deadline, lease-passed)
		s.between("remaining", found.Remaining, ttl-passed-deadline, ttl-passed)
	}},
	{"a claim that nobody settles is forgotten after its ttl", func(s *session) {
		s.want(lasting(s.claim("k", "a"), shortTTL, shortLease), store.Granted)
		s.expire("k", shortTTL)
		again := s.want(s.claim("k", "b"), store.Granted)
		s.equal("fence", again.Record.Fence, uint64(1))
	}},
	{"a lease of a day in a window of ten years is measured to the millisecond", func(s *session) {
		const day, years = 24 * time.Hour, 87600 * time.Hour
		s.want(lasting(s.claim("k", "a"), years, day), store.Granted)
		s.between("retry after", s.want(s.claim("k", "b"), store.Held).RetryAfter, day-deadline, day)
		s.want(lasting(s.claim("min", "a"), years, time.Millisecond), store.Granted)
		s.lapse("min", time.Millisecond)
		s.want(lasting(s.claim("min", "b"), 2*time.Millisecond, time.Millisecond), store.Granted)
	}},
	{"a held message with other content is a mismatch, one that is free is not", func(s *session) {
		s.want(of(s.claim("k", "a"), "one"), store.Granted)
		s.want(of(s.claim("k", "b"), "one"), store.Held)
		r := s.want(of(s.claim("k", "b"), "two"), store.Mismatch)
		s.equal("retry after", r.RetryAfter, time.Duration(0))
		s.want(of(s.mark("k", "b"), "two"), store.Mismatch)
		s.want(s.settle(store.Release, "k", "a", 1), store.Granted)
		r = s.want(of(s.claim("k", "b"), "two"), store.Granted)
		s.equal("digest", r.Record.Digest, record.DigestOf([]byte("two")))
		s.want(s.settle(store.Complete, "k", "b", 2), store.Granted)
		s.want(of(s.claim("k", "c"), "one"), store.Mismatch)
		s.want(of(s.claim("k", "c"), "two"), store.Seen)
		s.want(of(s.claim("k", "b"), "one"), store.Seen)
		s.want(s.claim("k", "c"), store.Seen)
	}},
}

var modeChecks = []entry{
	{"a mark respects a claim that is held or completed, and replaces one that is free", func(s *session) {
		s.want(s.claim("held", "a"), store.Granted)
		held := s.want(s.mark("held", "b"), store.Held)
		s.between("retry after", held.RetryAfter, lease-deadline, lease)

		s.want(s.claim("done", "a"), store.Granted)
		s.want(s.settle(store.Complete, "done", "a", 1), store.Granted)
		s.want(s.mark("done", "b"), store.Seen)
		s.want(s.mark("done", "a"), store.Seen)

		released := s.want(s.claim("released", "a"), store.Granted)
		s.want(s.settle(store.Release, "released", "a", 1), store.Granted)
		marked := s.want(s.mark("released", "b"), store.Granted)
		s.equal("state", marked.Record.State, record.Marked)
		s.equal("first seen", marked.Record.FirstSeen, released.Record.FirstSeen)
		s.want(s.mark("released", "c"), store.Seen)

		s.want(lasting(s.claim("lapsed", "a"), ttl, shortLease), store.Granted)
		s.lapse("lapsed", shortLease)
		s.want(s.mark("lapsed", "b"), store.Granted)
		s.want(s.settle(store.Complete, "lapsed", "a", 1), store.Stale)
	}},
	{"a mark of an attempt's own claim is granted", func(s *session) {
		s.want(s.claim("k", "a"), store.Granted)
		marked := s.want(s.mark("k", "a"), store.Granted)
		s.equal("state", marked.Record.State, record.Marked)
		s.want(s.claim("k", "b"), store.Seen)
	}},
	{"a claim sees another's mark, and takes its attempt's own", func(s *session) {
		marked := s.want(s.mark("k", "a"), store.Granted)
		s.want(lasting(s.claim("k", "b"), 3*ttl, lease), store.Seen)
		s.between("remaining", s.want(s.lookup("k"), store.Granted).Remaining, ttl-deadline, ttl)
		claimed := s.want(s.claim("k", "a"), store.Granted)
		s.equal("fence", claimed.Record.Fence, uint64(1))
		s.equal("first seen", claimed.Record.FirstSeen, marked.Record.FirstSeen)
		s.want(s.mark("k", "b"), store.Held)
		s.want(s.settle(store.Complete, "k", "a", 1), store.Granted)
	}},
}
