package main

import (
	"fmt"
	"math"
	"math/bits"
	"strings"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	"github.com/dedupd/dedup-operator/dedupd/record"
)

// sizing reckons what a store needs for the messages of a policy, from a sample of them.
type sizing struct {
	policy *policy.Policy
	prefix int // bytes of each key before the message's own
	record int // bytes of what is kept under it

	keys     int // new messages of the sample
	readable float64
	postgres float64
	memory   float64
}

func newSizing(p *policy.Policy) *sizing {
	s := &sizing{policy: p, prefix: len(p.StoreKey("")), record: recordLen(p)}
	if hashed(p) {
		s.prefix -= idLen
	}
	return s
}

// idLen is what stands in the place of a key in the formats Compact and Dense.
const idLen = len(key.ID{})

// hashed says whether such bytes stand there.
func hashed(p *policy.Policy) bool {
	redis := p.StoreSpec.Redis
	return redis != nil && redis.KeyFormat != v1alpha1.KeyReadable
}

// recordLen is how long the policy's records are when they are settled.
func recordLen(p *policy.Policy) int {
	r := record.Record{State: record.Marked}
	if p.Mode == v1alpha1.ModeClaim {
		r.State = record.Completed
	}
	if p.VerifyContent {
		r.Digest = record.DigestOf(nil)
	}
	return len(r.Append(nil))
}

// add takes the key of a message that is new.
func (s *sizing) add(key string) {
	s.keys++
	s.readable += float64(redisBytes(s.prefix+len(key), s.record))
	s.postgres += postgresBytes(s.prefix+len(key), s.policy)
	s.memory += float64(memoryBytes(s.prefix + len(key)))
}

// allocated is what jemalloc gives for n bytes, with four sizes to each doubling. Redis's own
// build has finer ones below 128, and so needs up to a tenth less.
func allocated(n int) int {
	step := 16
	if n > 128 {
		step = 1 << (bits.Len(uint(n-1)) - 3)
	}
	return (n + step - 1) / step * step
}

// redisBytes is what a key with a value and an expiry takes in Redis 7.0, beside its places in
// two hash tables: an entry in each, the key's string and the value's object.
func redisBytes(key, value int) int {
	const entry, object, longString, shortString, embedded = 24, 16, 3 + 1, 1 + 1, 44
	total := 2 * allocated(entry)
	if key < 32 {
		total += allocated(shortString + key)
	} else {
		total += allocated(longString + key)
	}
	if value <= embedded {
		return total + allocated(object+longString+value)
	}
	return total + allocated(object) + allocated(longString+value)
}

// compactBytes is what so many records take in the format Compact, whose hashes are as many as so many
// messages meet. In a listpack that is 17 bytes of a field and 8 beside the record, with the twelfth that
// jemalloc adds; in a hash that has outgrown one, an entry and two strings. An eighth is forgotten
// and not deleted yet.
func (s *sizing) compactBytes(ids float64) float64 {
	const hashes, listpack, name, field, expiry, entry, objects = 1 << 15, 512, 10, 15, 6, 24, 16 + 16
	met := hashes * -math.Expm1(-ids/hashes)
	each := float64(2*allocated(entry) + allocated(s.prefix+name+2) + objects)
	record := float64(field+2+expiry+s.record+2) * 13 / 12
	if ids*9/8 > hashes*listpack {
		record = float64(allocated(entry)+allocated(field+2)+allocated(expiry+s.record+4)) + 12
	}
	return ids*record*9/8 + met*each + redisTables(met)
}

// denseBytes is what a mark takes in the format Dense if there are as many as the policy
// expects: 36 bytes as measured, and an eighth more for what is forgotten and not deleted yet.
const denseBytes = 41

// redisTables are the bytes of the two hash tables of so many keys.
func redisTables(keys float64) float64 {
	return 2 * 8 * float64(uint64(1)<<bits.Len64(uint64(max(keys, 1))-1))
}

// memoryBytes is what a record takes in the process of dedupd, about: the item, its key, its
// places in a map and a heap.
func memoryBytes(key int) int {
	const item, places = 160, 64
	return item + places + allocated(key)
}

// postgresBytes is what a record takes on the disk of PostgreSQL, in the table and in the index
// of its keys. Pages of the table are filled to 85 in a hundred, those of an index of hashed or random
// keys to seven tenths. A completed claim has left a version behind, whose place is mostly used again.
func postgresBytes(key int, p *policy.Policy) float64 {
	const pointer, header, times, owner, state, length = 4, 32, 3 * 8, 16, 2, 1
	const versions = 1.75
	row := header + times + owner + state + length + key
	if key+length > 126 {
		row += 3 // a long one's length takes four bytes
	}
	if p.VerifyContent {
		row += 16
	}
	entry := float64(aligned(8+length+key)+pointer) / 0.7
	if p.Mode != v1alpha1.ModeClaim {
		return float64(aligned(row)+pointer)/0.85 + entry
	}
	const fence = 8
	return versions*float64(aligned(row+fence)+pointer)/0.85 + entry
}

// aligned is n as PostgreSQL places it.
func aligned(n int) int { return (n + 7) / 8 * 8 }

// estimate says what rate messages a second come to, of which the sample's share is new.
func (s *sizing) estimate(sum *summary, rate float64) string {
	fresh, total := sum.share()
	if fresh == 0 {
		return "no estimate: there is no new message in the sample\n"
	}
	ids := rate * s.policy.TTL.Seconds() * float64(fresh) / float64(total)
	var b strings.Builder
	fmt.Fprintf(&b, "%.0f messages/second for a ttl of %s, %.1f%% of them new as in this sample: %s ids remembered\n",
		rate, duration(s.policy.TTL), 100*float64(fresh)/float64(total), count(ids))
	if s.keys == 0 {
		return b.String()
	}
	line := func(name string, perID, tables float64, mine bool) {
		note := ""
		if mine {
			note = "   (this policy)"
		}
		perID += tables / max(ids, 1)
		need := perID * ids
		fmt.Fprintf(&b, "%-28s %3.0f bytes each, %s", name, perID, megabytes(need))
		if strings.HasPrefix(name, "Redis") {
			fmt.Fprintf(&b, "; maxmemory %s", megabytes(need*headroom))
		}
		b.WriteString(note + "\n")
	}
	n := float64(s.keys)
	redis := s.policy.StoreSpec.Redis
	line("Redis, keyFormat: Readable", s.readable/n, redisTables(ids), redis != nil && redis.KeyFormat == v1alpha1.KeyReadable)
	line("Redis, keyFormat: Compact", 0, s.compactBytes(ids), redis != nil && redis.KeyFormat == v1alpha1.KeyCompact)
	if s.policy.Mode == v1alpha1.ModeMark && !s.policy.VerifyContent {
		line("Redis, keyFormat: Dense", denseBytes, 0, redis != nil && redis.KeyFormat == v1alpha1.KeyDense)
	}
	line("PostgreSQL, on disk", s.postgres/n, 0, s.policy.StoreSpec.Postgres != nil)
	line("memory", s.memory/n, 0, s.policy.StoreSpec.Memory != nil)
	return b.String()
}

// headroom is what a Redis needs beside its keys: the buffers of clients and replicas, and a
// hash table of twice the size beside the old one while it grows.
const headroom = 4.0 / 3

// share is how many of the decided messages are new.
func (s *summary) share() (fresh, total int) {
	decisions := map[string]int{}
	for d, n := range s.decisions {
		decisions[string(d)] = n
	}
	if len(s.shadow) > 0 {
		decisions = s.shadow
	}
	for _, d := range []engine.Decision{engine.Fresh, engine.Duplicate, engine.InProgress, engine.Conflict} {
		total += decisions[string(d)]
	}
	return decisions[string(engine.Fresh)], total
}

// duration is d without what is zero at its end.
func duration(d time.Duration) string {
	text := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
}

func count(n float64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2f billion", n/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.2f million", n/1e6)
	default:
		return fmt.Sprintf("%.0f", n)
	}
}

func megabytes(n float64) string {
	if n >= 1e9 {
		return fmt.Sprintf("%.2f GB", n/1e9)
	}
	return fmt.Sprintf("%.1f MB", n/1e6)
}
