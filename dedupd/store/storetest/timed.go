package storetest

import (
	"fmt"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// timedModel is store.Transition over what stands under one key, while time passes. An
// observer does not know when exactly an operation took effect: only that it was between its
// call and its return. So the state holds an interval for when the record was written, each
// operation has one for when it happened, and an answer is right if it is Transition's for
// some pair of moments in them. Each answer narrows both, so that a store whose takeover or
// expiry comes too early or too late is found out, however long the calls took.
//
// An operation whose outcome is not known had any, or did not happen at all.
var timedModel = porcupine.NondeterministicModel{
	Init: func() []any { return []any{standing{}} },
	Step: func(state, input, output any) []any {
		var next []any
		for _, s := range state.(standing).after(input.(asked), output.(store.Result)) {
			next = append(next, s)
		}
		return next
	},
	DescribeOperation: func(input, output any) string {
		return describeAsked(input.(asked), output.(store.Result))
	},
}

// span is an interval of time, bounds included.
type span struct{ from, to time.Duration }

// forever is later than everything.
const forever = time.Duration(1 << 60)

// asked is an operation, and when it can have taken effect.
type asked struct {
	op     store.Op
	during span
	of     *Fixture // what is asked, which says what it keeps and how exactly
}

// late is by how much longer than its ttl a record may be there for the operation.
func (a asked) late() time.Duration {
	if a.of.Stalls {
		return a.of.Late + a.during.to - a.during.from
	}
	return a.of.Late
}

// standing is what stands under a key.
type standing struct {
	rec     record.Record // zero: nothing
	ttl     time.Duration // with which it was written
	written span          // when it was
	now     time.Duration // it is not earlier than that
}

// phase is an age of a record that Transition may see, and the moment that stands for it.
type phase struct {
	age   span // on the store's clock
	now   time.Duration
	entry *store.Entry
}

// phases are the ages between which an operation can tell a difference.
func (s standing) phases(a asked) []phase {
	op, end := a.op, s.ttl+a.late()
	if s.rec.State == 0 {
		return []phase{{age: span{0, forever}}}
	}
	fresh := time.Duration(0)
	if a.of.Early {
		fresh = -forever // it may have been written after the moment by which the operation decides
	}
	entry := &store.Entry{Record: s.rec, ExpiresAt: moment(s.ttl)}
	gone := phase{age: span{s.ttl, forever}}
	acquires := op.Verb == store.Mark || op.Verb == store.Claim
	if s.rec.State != record.Claimed || op.Verb != store.Lookup && (!acquires || op.Token.Owner == s.rec.Owner) {
		return []phase{{age: span{fresh, end}, entry: entry}, gone}
	}
	return []phase{
		{age: span{fresh, s.rec.Lease}, entry: entry},
		{age: span{s.rec.Lease, end}, now: s.rec.Lease, entry: entry},
		gone,
	}
}

// moment is the time at which a record has a certain age that was written at the epoch.
func moment(age time.Duration) time.Time { return time.UnixMilli(0).Add(age) }

// after returns what may stand there after an operation with that answer; nothing if the
// answer is wrong.
func (s standing) after(a asked, got store.Result) []standing {
	var all []standing
	if got.Err != nil {
		all = append(all, s) // it has not happened, or not yet
	}
	if !a.of.Early {
		a.during.from = max(a.during.from, s.now)
	}
	a.op.Token.Owner = a.of.kept(record.Record{State: record.Marked, Owner: a.op.Token.Owner}).Owner
	for _, p := range s.phases(a) {
		then, at, possible := s, a.during, true
		if s.rec.State != 0 {
			then, at, possible = s.aged(a.during, p.age, a.of)
		}
		next, want := store.Transition(p.entry, a.op, moment(p.now))
		if possible && got.Err == nil {
			then, at, possible = then.agrees(at, a, got, want)
		}
		if !possible || at.from > at.to {
			continue
		}
		then.now = at.from
		switch {
		case next == nil:
			then = standing{now: at.from}
		case next != p.entry:
			then = standing{rec: a.of.kept(timeless(next.Record)), ttl: a.op.TTL, written: at, now: at.from}
		}
		all = append(all, then)
	}
	return all
}

// aged narrows when the record was written, and when something happened, by the record's age
// at that time. It is not possible if there are no such moments.
func (s standing) aged(at, age span, f *Fixture) (standing, span, bool) {
	age = span{age.from - slack, age.to + slack}
	if !f.Early {
		age.from = max(age.from, 0)
	}
	at = span{max(at.from, s.written.from+age.from), min(at.to, s.written.to+age.to)}
	s.written = span{max(s.written.from, at.from-age.to), min(s.written.to, at.to-age.from)}
	return s, at, at.from <= at.to && s.written.from <= s.written.to
}

// agrees compares an answer with Transition's. The times that it tells say how old the record
// is to a few milliseconds.
func (s standing) agrees(at span, a asked, got, want store.Result) (standing, span, bool) {
	f := a.of
	if got.Outcome != want.Outcome || f.kept(timeless(got.Record)) != f.kept(timeless(want.Record)) ||
		(got.RetryAfter > 0) != (want.RetryAfter > 0) {
		return s, at, false
	}
	possible := true
	if got.RetryAfter > 0 {
		age := s.rec.Lease - got.RetryAfter
		s, at, possible = s.aged(at, span{age, age}, f)
	}
	if possible && want.Remaining > 0 {
		age := s.ttl - got.Remaining
		s, at, possible = s.aged(at, span{age, age + a.late()}, f)
	}
	return s, at, possible
}

// timeless is a record without its time of first sight, which differs from clock to clock.
func timeless(r record.Record) record.Record {
	r.FirstSeen = time.Time{}
	return r
}

func describeAsked(a asked, got store.Result) string {
	answer := name(got.Outcome)
	if got.Err != nil {
		answer = "? (" + got.Err.Error() + ")"
	}
	to := "…"
	if a.during.to < forever {
		to = a.during.to.String()
	}
	text := fmt.Sprintf("%12s to %12s  %s fence %d -> %s", a.during.from, to, describe(a.op), a.op.Token.Fence, answer)
	if r := got.Record; r.State != 0 {
		text += fmt.Sprintf(" [%s by %x fence %d]", r.State, r.Owner[:4], r.Fence)
	}
	if got.RetryAfter > 0 {
		text += fmt.Sprintf(" retry after %s", got.RetryAfter)
	}
	return text
}
