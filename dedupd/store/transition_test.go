package store_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

var (
	written = time.UnixMilli(1_700_000_000_000).UTC()
	one     = record.DigestOf([]byte("one"))
	two     = record.DigestOf([]byte("two"))
)

const (
	ttl    = time.Hour
	lease  = time.Minute
	newTTL = 2 * time.Hour
	newFor = 3 * time.Minute
)

// entry is what attempt "a" has left behind.
func entry(state record.State, edit ...func(*record.Record)) *store.Entry {
	r := record.Record{State: state, Owner: record.OwnerOf("a"), FirstSeen: written.Add(-time.Hour)}
	if state != record.Marked {
		r.Fence, r.Window = 7, ttl
	}
	if state == record.Claimed {
		r.Lease = lease
	}
	for _, e := range edit {
		e(&r)
	}
	return &store.Entry{Record: r, ExpiresAt: written.Add(ttl)}
}

func of(d record.Digest) func(*record.Record) {
	return func(r *record.Record) { r.Digest = d }
}

func ask(verb store.Verb, attempt string, edit ...func(*store.Op)) store.Op {
	op := store.Op{Verb: verb, Key: "k", Token: record.Token{Owner: record.OwnerOf(attempt)}, TTL: newTTL}
	if verb == store.Claim || verb == store.Renew {
		op.Lease = newFor
	}
	for _, e := range edit {
		e(&op)
	}
	return op
}

func fence(f uint64) func(*store.Op) { return func(o *store.Op) { o.Token.Fence = f } }

func about(d record.Digest) func(*store.Op) { return func(o *store.Op) { o.Digest = d } }

func TestTransition(t *testing.T) {
	type want struct {
		outcome store.Outcome
		state   record.State // what stands there afterwards; zero: nothing
		owner   string
		fence   uint64
		changed bool
		retry   time.Duration
		left    time.Duration // remaining, of a lookup
	}
	tests := map[string]struct {
		prev *store.Entry
		op   store.Op
		at   time.Duration // after prev was written
		want want
	}{
		"a new message is marked":                    {nil, ask(store.Mark, "b"), 0, want{outcome: store.Granted, state: record.Marked, owner: "b", changed: true}},
		"a marked message is seen":                   {entry(record.Marked), ask(store.Mark, "b"), 0, want{outcome: store.Seen, state: record.Marked, owner: "a"}},
		"the own mark is granted":                    {entry(record.Marked), ask(store.Mark, "a"), 0, want{outcome: store.Granted, state: record.Marked, owner: "a"}},
		"a mark counts to the last of its ttl":       {entry(record.Marked), ask(store.Mark, "b"), ttl - 1, want{outcome: store.Seen, state: record.Marked, owner: "a"}},
		"a mark is over at the end of its ttl":       {entry(record.Marked), ask(store.Mark, "b"), ttl, want{outcome: store.Granted, state: record.Marked, owner: "b", changed: true}},
		"a mark meets a live claim":                  {entry(record.Claimed), ask(store.Mark, "b"), 0, want{outcome: store.Held, state: record.Claimed, owner: "a", fence: 7, retry: lease}},
		"a mark replaces a lapsed claim":             {entry(record.Claimed), ask(store.Mark, "b"), lease, want{outcome: store.Granted, state: record.Marked, owner: "b", changed: true}},
		"a mark replaces the attempt's own claim":    {entry(record.Claimed), ask(store.Mark, "a"), 0, want{outcome: store.Granted, state: record.Marked, owner: "a", changed: true}},
		"a mark replaces a released claim":           {entry(record.Released), ask(store.Mark, "b"), 0, want{outcome: store.Granted, state: record.Marked, owner: "b", changed: true}},
		"a mark sees a completed message":            {entry(record.Completed), ask(store.Mark, "b"), 0, want{outcome: store.Seen, state: record.Completed, owner: "a", fence: 7}},
		"a mark sees what its own attempt completed": {entry(record.Completed), ask(store.Mark, "a"), 0, want{outcome: store.Seen, state: record.Completed, owner: "a", fence: 7}},

		"a new message is claimed with fence 1":         {nil, ask(store.Claim, "b"), 0, want{outcome: store.Granted, state: record.Claimed, owner: "b", fence: 1, changed: true}},
		"a claimed message is held":                     {entry(record.Claimed), ask(store.Claim, "b"), 20 * time.Second, want{outcome: store.Held, state: record.Claimed, owner: "a", fence: 7, retry: 40 * time.Second}},
		"a claim is held to the last of its lease":      {entry(record.Claimed), ask(store.Claim, "b"), lease - 1, want{outcome: store.Held, state: record.Claimed, owner: "a", fence: 7, retry: 1}},
		"a claim is taken over at the end of its lease": {entry(record.Claimed), ask(store.Claim, "b"), lease, want{outcome: store.Granted, state: record.Claimed, owner: "b", fence: 8, changed: true}},
		"the own claim is granted with its fence":       {entry(record.Claimed), ask(store.Claim, "a"), 0, want{outcome: store.Granted, state: record.Claimed, owner: "a", fence: 7, changed: true}},
		"the own lapsed claim keeps its fence too":      {entry(record.Claimed), ask(store.Claim, "a"), lease, want{outcome: store.Granted, state: record.Claimed, owner: "a", fence: 7, changed: true}},
		"a released claim is granted":                   {entry(record.Released), ask(store.Claim, "b"), 0, want{outcome: store.Granted, state: record.Claimed, owner: "b", fence: 8, changed: true}},
		"the own released claim has a new fence":        {entry(record.Released), ask(store.Claim, "a"), 0, want{outcome: store.Granted, state: record.Claimed, owner: "a", fence: 8, changed: true}},
		"a claim sees a completed message":              {entry(record.Completed), ask(store.Claim, "b"), ttl - 1, want{outcome: store.Seen, state: record.Completed, owner: "a", fence: 7}},
		"a claim sees what its own attempt completed":   {entry(record.Completed), ask(store.Claim, "a"), 0, want{outcome: store.Seen, state: record.Completed, owner: "a", fence: 7}},
		"a claim sees another's mark":                   {entry(record.Marked), ask(store.Claim, "b"), 0, want{outcome: store.Seen, state: record.Marked, owner: "a"}},
		"a claim takes the attempt's own mark":          {entry(record.Marked), ask(store.Claim, "a"), 0, want{outcome: store.Granted, state: record.Claimed, owner: "a", fence: 1, changed: true}},
		"a forgotten fence begins again":                {entry(record.Claimed), ask(store.Claim, "b"), ttl, want{outcome: store.Granted, state: record.Claimed, owner: "b", fence: 1, changed: true}},

		"other content of a mark is a mismatch":              {entry(record.Marked, of(one)), ask(store.Mark, "b", about(two)), 0, want{outcome: store.Mismatch, state: record.Marked, owner: "a"}},
		"other content of a live claim is a mismatch":        {entry(record.Claimed, of(one)), ask(store.Claim, "b", about(two)), 0, want{outcome: store.Mismatch, state: record.Claimed, owner: "a", fence: 7}},
		"other content of a completed message is a mismatch": {entry(record.Completed, of(one)), ask(store.Claim, "b", about(two)), 0, want{outcome: store.Mismatch, state: record.Completed, owner: "a", fence: 7}},
		"other content of the own completed message is not":  {entry(record.Completed, of(one)), ask(store.Claim, "a", about(two)), 0, want{outcome: store.Seen, state: record.Completed, owner: "a", fence: 7}},
		"other content of a released claim is not":           {entry(record.Released, of(one)), ask(store.Claim, "b", about(two)), 0, want{outcome: store.Granted, state: record.Claimed, owner: "b", fence: 8, changed: true}},
		"the same content is no mismatch":                    {entry(record.Marked, of(one)), ask(store.Mark, "b", about(one)), 0, want{outcome: store.Seen, state: record.Marked, owner: "a"}},
		"content that was not kept is no mismatch":           {entry(record.Marked), ask(store.Mark, "b", about(one)), 0, want{outcome: store.Seen, state: record.Marked, owner: "a"}},
		"content that is not asked about is no mismatch":     {entry(record.Marked, of(one)), ask(store.Mark, "b"), 0, want{outcome: store.Seen, state: record.Marked, owner: "a"}},

		"the holder completes":                   {entry(record.Claimed), ask(store.Complete, "a", fence(7)), 0, want{outcome: store.Granted, state: record.Completed, owner: "a", fence: 7, changed: true}},
		"the holder completes after its lease":   {entry(record.Claimed), ask(store.Complete, "a", fence(7)), ttl - 1, want{outcome: store.Granted, state: record.Completed, owner: "a", fence: 7, changed: true}},
		"the holder completes again":             {entry(record.Completed), ask(store.Complete, "a", fence(7)), 0, want{outcome: store.Granted, state: record.Completed, owner: "a", fence: 7}},
		"the holder completes what is forgotten": {entry(record.Claimed), ask(store.Complete, "a", fence(7)), ttl, want{outcome: store.Absent}},
		"another completes":                      {entry(record.Claimed), ask(store.Complete, "b", fence(7)), 0, want{outcome: store.Stale, state: record.Claimed, owner: "a", fence: 7}},
		"an earlier holder completes":            {entry(record.Claimed), ask(store.Complete, "a", fence(6)), 0, want{outcome: store.Stale, state: record.Claimed, owner: "a", fence: 7}},
		"a completion of nothing":                {nil, ask(store.Complete, "a", fence(7)), 0, want{outcome: store.Absent}},
		"a completion of a mark":                 {entry(record.Marked), ask(store.Complete, "a"), 0, want{outcome: store.Stale, state: record.Marked, owner: "a"}},
		"a completion of what was released":      {entry(record.Released), ask(store.Complete, "a", fence(7)), 0, want{outcome: store.Stale, state: record.Released, owner: "a", fence: 7}},
		"the holder releases":                    {entry(record.Claimed), ask(store.Release, "a", fence(7)), 0, want{outcome: store.Granted, state: record.Released, owner: "a", fence: 7, changed: true}},
		"the holder releases again":              {entry(record.Released), ask(store.Release, "a", fence(7)), 0, want{outcome: store.Granted, state: record.Released, owner: "a", fence: 7}},
		"another releases":                       {entry(record.Claimed), ask(store.Release, "b", fence(7)), 0, want{outcome: store.Stale, state: record.Claimed, owner: "a", fence: 7}},
		"a release of what was completed":        {entry(record.Completed), ask(store.Release, "a", fence(7)), 0, want{outcome: store.Stale, state: record.Completed, owner: "a", fence: 7}},
		"the holder renews":                      {entry(record.Claimed), ask(store.Renew, "a", fence(7)), 0, want{outcome: store.Granted, state: record.Claimed, owner: "a", fence: 7, changed: true}},
		"the holder renews after its lease":      {entry(record.Claimed), ask(store.Renew, "a", fence(7)), lease, want{outcome: store.Granted, state: record.Claimed, owner: "a", fence: 7, changed: true}},
		"another renews":                         {entry(record.Claimed), ask(store.Renew, "b", fence(7)), lease, want{outcome: store.Stale, state: record.Claimed, owner: "a", fence: 7}},
		"a renewal of what was completed":        {entry(record.Completed), ask(store.Renew, "a", fence(7)), 0, want{outcome: store.Stale, state: record.Completed, owner: "a", fence: 7}},
		"a renewal of what was released":         {entry(record.Released), ask(store.Renew, "a", fence(7)), 0, want{outcome: store.Stale, state: record.Released, owner: "a", fence: 7}},
		"a lookup of nothing":                    {nil, ask(store.Lookup, ""), 0, want{outcome: store.Absent}},
		"a lookup of what is forgotten":          {entry(record.Marked), ask(store.Lookup, ""), ttl, want{outcome: store.Absent}},
		"a lookup of a mark":                     {entry(record.Marked), ask(store.Lookup, ""), time.Minute, want{outcome: store.Granted, state: record.Marked, owner: "a", left: 59 * time.Minute}},
		"a lookup of a live claim":               {entry(record.Claimed), ask(store.Lookup, ""), 20 * time.Second, want{outcome: store.Granted, state: record.Claimed, owner: "a", fence: 7, retry: 40 * time.Second, left: ttl - 20*time.Second}},
		"a lookup of a lapsed claim":             {entry(record.Claimed), ask(store.Lookup, ""), 2 * lease, want{outcome: store.Granted, state: record.Claimed, owner: "a", fence: 7, left: ttl - 2*lease}},
		"a forgetting":                           {entry(record.Completed), ask(store.Forget, ""), 0, want{outcome: store.Granted, changed: true}},
		"a forgetting of nothing":                {nil, ask(store.Forget, ""), 0, want{outcome: store.Absent}},
		"a forgetting of what is forgotten":      {entry(record.Completed), ask(store.Forget, ""), ttl, want{outcome: store.Absent}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var before store.Entry
			if test.prev != nil {
				before = *test.prev
			}
			now := written.Add(test.at)
			next, r := store.Transition(test.prev, test.op, now)

			if test.prev != nil && *test.prev != before {
				t.Error("Transition wrote to prev")
			}
			got := want{outcome: r.Outcome, retry: r.RetryAfter, left: r.Remaining}
			if next != nil {
				got.state, got.fence = next.Record.State, next.Record.Fence
				got.changed = next != test.prev
				got.owner = "a"
				if next.Record.Owner == record.OwnerOf("b") {
					got.owner = "b"
				}
				if r.Record != next.Record {
					t.Errorf("the answer tells of %+v, and there stands %+v", r.Record, next.Record)
				}
			} else {
				got.changed = test.op.Verb == store.Forget && r.Outcome == store.Granted
				if r.Record != (record.Record{}) {
					t.Errorf("the answer tells of %+v, and there stands nothing", r.Record)
				}
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(want{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if next != nil && got.changed {
				checkWritten(t, test.prev, next, now)
			}
		})
	}
}

// checkWritten checks what every write has in common.
func checkWritten(t *testing.T, prev, next *store.Entry, now time.Time) {
	t.Helper()
	if want := now.Add(newTTL); !next.ExpiresAt.Equal(want) {
		t.Errorf("expires at %s, want a whole ttl from now, %s", next.ExpiresAt, want)
	}
	if next.Record.State != record.Marked && next.Record.Window != newTTL {
		t.Errorf("window %s, want %s", next.Record.Window, newTTL)
	}
	if claimed := next.Record.State == record.Claimed; claimed && next.Record.Lease != newFor || !claimed && next.Record.Lease != 0 {
		t.Errorf("lease %s in state %s", next.Record.Lease, next.Record.State)
	}
	seen := now
	if prev != nil && now.Before(prev.ExpiresAt) {
		seen = prev.Record.FirstSeen
	}
	if !next.Record.FirstSeen.Equal(seen) {
		t.Errorf("first seen %s, want %s", next.Record.FirstSeen, seen)
	}
}
