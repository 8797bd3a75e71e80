package nearcache

import (
	"bytes"
	"strings"
	"sync"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// The memory has maxShards parts, so that callers seldom wait for each other, but none of less
// than minShard entries: keys fall into them by chance, and small ones would be full too soon.
const (
	maxShards = 32
	minShard  = 256
)

// entry is a final record, and for how long it is taken to stand.
type entry struct {
	record record.Record

	// until is when it is no longer trusted. Zero: it is not, and is kept for expires.
	until time.Time

	// expires is when the store forgets it, where this process knows: never later than that.
	// Zero where it does not.
	expires time.Time
}

// shard is a part of the memory: a ring, in which the oldest entry makes room for a new one. Since
// no entry is trusted for longer than MaxAge, the oldest is about the first to be useless.
type shard struct {
	limit int

	mu     sync.Mutex
	at     map[string]int // guarded by mu: the places of keys in the ring
	ring   []slot         // guarded by mu: at most limit
	oldest int            // guarded by mu: the next to make room
}

// slot is a place in the ring; its key is empty and unused where the entry was dropped.
type slot struct {
	key  string
	used bool
	entry
}

func (s *shard) init(limit int) {
	s.limit = limit
	s.at = map[string]int{}
}

// find answers a Mark or Claim by what is remembered, if that is a repeat of another's.
func (s *shard) find(op *store.Op, result *store.Result, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	place, ok := s.at[op.Key]
	if !ok {
		return false
	}
	e := &s.ring[place].entry
	if !now.Before(e.until) {
		return false
	}
	stands := store.Entry{Record: e.record, ExpiresAt: e.until}
	next, r := store.Transition(&stands, *op, now)
	if next != &stands || r.Outcome != store.Seen && r.Outcome != store.Mismatch || halfKnown(op, &e.record) {
		// The attempt's own. The store is asked, since it may change it (a claim of what the
		// attempt has marked, after a change of the mode), or may not have it any more. So it
		// is not trusted until its answer is there.
		e.until = time.Time{}
		return false
	}
	*result = r
	return true
}

// halfKnown says whether all that is known of a record's owner is the first half, and that it is the attempt's: so
// the store answers where keyFormat is Dense, and whether the record is the attempt's own only the store can tell.
func halfKnown(op *store.Op, r *record.Record) bool {
	half := len(r.Owner) / 2
	return r.Owner != op.Token.Owner && bytes.Equal(r.Owner[:half], op.Token.Owner[:half])
}

// drop forgets an entry.
func (s *shard) drop(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(key)
}

// remove needs the lock.
func (s *shard) remove(key string) {
	if place, ok := s.at[key]; ok {
		delete(s.at, key)
		s.ring[place] = slot{}
	}
}

// put remembers an entry that is the newest there is, still so when the shard is locked: whoever
// knows better then is yet to come here. Where it may not be, and what is remembered differs,
// nobody knows which of the two stands.
func (s *shard) put(key string, e entry, newest func() bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	place, ok := s.at[key]
	known := ok && s.ring[place].record == e.record
	if !newest() {
		if !known {
			s.remove(key)
		}
		return
	}
	if known {
		// The record that was known already. It expires when it did before: whoever repeats a
		// mark or a completion does not lengthen what is remembered.
		e.expires = earlier(e.expires, s.ring[place].expires)
	}
	e.until = earlier(e.until, e.expires)
	if ok {
		s.ring[place].entry = e
		return
	}
	if len(s.ring) < s.limit {
		place = len(s.ring)
		s.ring = append(s.ring, slot{})
	} else {
		place = s.oldest
		s.oldest = (s.oldest + 1) % s.limit
		if s.ring[place].used {
			delete(s.at, s.ring[place].key)
		}
	}
	// The caller's key may be a part of a larger buffer.
	key = strings.Clone(key)
	s.ring[place] = slot{key: key, used: true, entry: e}
	s.at[key] = place
}

// earlier is the earlier of two times, where zero means that there is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
