package redis

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// grants are claims that were granted through this process, as they stand in the server. Where
// the server has SET with IFEQ, a holder's complete, release or renewal is then one native command, a
// third of what the script costs the server. It is a memory and no truth: the server compares, and what
// is not known here, or is not so any more, goes to the script.
type grants struct {
	on atomic.Bool // the server has SET with IFEQ

	mu         sync.Mutex
	young, old map[string]string // guarded by mu: records by key; the old ones are next to be let go
}

// maxGrants is how many claims a generation holds. Those of two are remembered at most.
const maxGrants = 1 << 14

func (g *grants) get(key string) (string, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if form, ok := g.young[key]; ok {
		return form, true
	}
	form, ok := g.old[key]
	return form, ok
}

// note keeps what a batch tells of claims.
func (g *grants) note(ops []store.Op, results []store.Result) {
	if !g.on.Load() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range ops {
		r := &results[i]
		if r.Outcome != store.Granted && r.Outcome != store.Stale || ops[i].Verb == store.Lookup {
			continue
		}
		delete(g.young, ops[i].Key)
		delete(g.old, ops[i].Key)
		if r.Outcome != store.Granted || r.Record.State != record.Claimed {
			continue
		}
		if len(g.young) >= maxGrants || g.young == nil {
			g.young, g.old = make(map[string]string), g.young
		}
		g.young[strings.Clone(ops[i].Key)] = string(r.Record.Append(nil))
	}
}

// comparison is what a settling command expects and, where that is so, answers.
type comparison struct {
	expected string
	result   store.Result
}

// compared returns the native command of an operation by the holder of a claim that is
// remembered, the only one of the batch on its key.
func (b *batch) compared(i int) (call, bool) {
	op := &b.ops[i]
	if !b.store.grants.on.Load() || op.Verb < store.Complete || op.Verb > store.Renew {
		return call{}, false
	}
	expected, ok := b.store.grants.get(op.Key)
	if !ok {
		return call{}, false
	}
	rec, err := record.Decode([]byte(expected))
	if err != nil {
		return call{}, false
	}
	found := &store.Entry{Record: rec, ExpiresAt: never}
	next, r := store.Transition(found, *op, timeless)
	if next == found || r.Outcome != store.Granted {
		return call{}, false
	}
	return call{
		indices: []int{i},
		compare: &comparison{expected, r},
		cmd: redis.NewStringCmd(b.ctx, "set", op.Key, next.Record.Append(nil),
			"ifeq", expected, "get", "px", op.TTL.Milliseconds()),
	}, true
}

// settleCompared decides an operation by what its command found, or puts it off to the script.
func (b *batch) settleCompared(c *call, cmd *redis.StringCmd) {
	i := c.indices[0]
	found, err := cmd.Result()
	switch {
	case err == nil && found == c.compare.expected:
		b.results[i] = c.compare.result
		return
	case err == redis.Nil: //nolint:errorlint // only the bare error is the command's own answer
		b.results[i] = store.Result{Outcome: store.Absent}
		return
	case redis.HasErrorPrefix(err, "syntax error"):
		b.store.grants.on.Store(false) // an older server has taken the place of this one
	case err == nil, redis.HasErrorPrefix(err, "OOM "): // out of memory, only the script may settle
	default:
		b.fail(c.indices, err)
		return
	}
	k := b.keyed(i)
	k.met = append(k.met, i)
	b.putOff(k)
}

// comparesValues says whether a server is known to have SET with IFEQ.
func comparesValues(facts map[string]string) bool {
	parts := strings.SplitN(facts["valkey_version"], ".", 3)
	if len(parts) < 2 {
		return false
	}
	major, err := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	return err == nil && err2 == nil && (major > 8 || major == 8 && minor >= 1)
}
