package storetest

import (
	"time"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

var markChecks = []entry{
	{"the first mark of a key is granted and any other attempt's is seen", func(s *session) {
		first := s.want(s.mark("k", "a"), store.Granted)
		s.equalRecord("record", first.Record, record.Record{
			State: record.Marked, Owner: record.OwnerOf("a"), FirstSeen: first.Record.FirstSeen,
		})
		if first.Record.FirstSeen.IsZero() {
			s.failf("the record does not say when the message was first seen")
		}
		second := s.want(s.mark("k", "b"), store.Seen)
		s.equalRecord("the record that a duplicate is told", second.Record, first.Record)
		s.want(s.mark("other", "b"), store.Granted)
	}},
	{"an attempt that marks again, because its answer was lost, is granted again", func(s *session) {
		first := s.want(s.mark("k", "a"), store.Granted)
		s.want(s.mark("k", "b"), store.Seen)
		again := s.want(s.mark("k", "a"), store.Granted)
		s.equalRecord("record", again.Record, first.Record)
	}},
	{"a mark is forgotten after its ttl and not before", func(s *session) {
		begun := time.Now()
		s.want(lasting(s.mark("k", "a"), shortTTL, 0), store.Granted)
		s.turns(s.mark("k", "b"), shortTTL, store.Seen, store.Granted)
		s.notBefore(begun, shortTTL)
		s.want(s.mark("k", "a"), store.Seen)
	}},
	{"a mark does not live longer for being asked for", func(s *session) {
		s.want(s.mark("k", "a"), store.Granted)
		s.want(lasting(s.mark("k", "b"), 3*ttl, 0), store.Seen)
		s.want(lasting(s.mark("k", "a"), 3*ttl, 0), store.Granted)
		s.between("remaining", s.want(s.lookup("k"), store.Granted).Remaining, ttl-deadline, ttl+s.Late)
	}},
	{"a lookup says what stands under a key and changes nothing", func(s *session) {
		s.want(s.lookup("k"), store.Absent)
		s.want(s.lookup("k"), store.Absent)
		marked := s.want(s.mark("k", "a"), store.Granted)
		found := s.want(s.lookup("k"), store.Granted)
		s.equalRecord("record", found.Record, marked.Record)
		s.equal("retry after", found.RetryAfter, time.Duration(0))
		s.between("remaining", found.Remaining, ttl-deadline, ttl+s.Late)
		s.want(s.mark("k", "b"), store.Seen)
	}},
	{"a forgotten message is new again", func(s *session) {
		s.want(s.forget("k"), store.Absent)
		s.want(s.mark("k", "a"), store.Granted)
		r := s.want(s.forget("k"), store.Granted)
		s.equal("record after forgetting", r.Record, record.Record{})
		s.want(s.forget("k"), store.Absent)
		s.want(s.lookup("k"), store.Absent)
		s.want(s.mark("k", "b"), store.Granted)
	}},
	{"a mark is nothing to settle", func(s *session) {
		s.want(s.mark("k", "a"), store.Granted)
		for _, verb := range []store.Verb{store.Complete, store.Release, store.Renew} {
			s.want(s.settle(verb, "k", "a", 0), store.Stale)
			s.want(s.settle(verb, "k", "a", 1), store.Stale)
		}
		s.want(s.mark("k", "b"), store.Seen)
	}},
}

var contentChecks = []entry{
	{"the same message with other content is a mismatch where both contents are known", func(s *session) {
		s.want(of(s.mark("k", "a"), "one"), store.Granted)
		s.want(of(s.mark("k", "b"), "one"), store.Seen)
		s.want(of(s.mark("k", "b"), "two"), store.Mismatch)
		s.want(of(s.claim("k", "b"), "two"), store.Mismatch)
		s.want(s.mark("k", "b"), store.Seen)
		again := s.want(of(s.mark("k", "a"), "two"), store.Granted)
		s.equal("digest", again.Record.Digest, record.DigestOf([]byte("one")))
		s.want(s.mark("unverified", "a"), store.Granted)
		s.want(of(s.mark("unverified", "b"), "one"), store.Seen)
	}},
}

// notBefore expects that at least d has passed on a clock that cannot be moved.
func (s *session) notBefore(begun time.Time, d time.Duration) {
	if passed := time.Since(begun); s.Advance == nil && passed < d-slack {
		s.failf("happened after %s, want not before %s", passed, d)
	}
}
