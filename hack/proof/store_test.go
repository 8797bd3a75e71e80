package proof

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/dedupd/client"
	"github.com/dedupd/dedup-operator/dedupd/store/faulttest"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// load is a run of consumers on one Redis.
type load struct {
	*queue
	t      *testing.T
	server *redistest.Server
	access access
	stop   func() // ends production
}

// startLoad starts two replicas on a server, consumers that take the first error for an
// answer, and a flow of messages.
// more is more of the policy, flags are dedupd's.
func startLoad(t *testing.T, server *redistest.Server, more string, flags ...string) *load {
	t.Helper()
	policy := manifest(modeClaim, standalone(server.Addr)) + more
	one, two := startReplica(t, policy, flags...), startReplica(t, policy, flags...)
	l := &load{queue: newQueue(modeClaim, faulttest.Seed(t)), t: t, server: server, access: impatient(one, two)}
	l.stop = l.flow()
	l.consumers(t, 8, l.access)
	return l
}

// refused waits until so many more checks have failed with an error that says why.
func (l *load) refused(n int, why string) {
	l.t.Helper()
	fails := func() int {
		return l.count(func(a *attempt) bool { return strings.Contains(a.failure, why) })
	}
	goal := fails() + n
	redistest.Eventually(l.t, "checks fail because of "+why, func() bool { return fails() >= goal })
}

// end lets the queue run empty.
func (l *load) end() {
	l.t.Helper()
	l.stop()
	l.wait(l.t)
}

// Everything is deleted under load. Messages are granted again, and none is called a
// duplicate of what is not there any more.
func TestEverythingIsFlushedUnderLoad(t *testing.T) {
	t.Parallel()
	l := startLoad(t, redistest.Start(t), "")
	type flush struct{ from, to time.Time }
	var flushes []flush
	for range 3 {
		l.reach(t, 150)
		from := time.Now()
		l.server.Must("flushall")
		flushes = append(flushes, flush{from, time.Now()})
	}
	l.reach(t, 150)
	l.end()
	excused := l.mustHold(t, func(_ string, from, to time.Time) bool {
		for _, f := range flushes {
			if from.Before(f.to) && f.from.Before(to) {
				return true
			}
		}
		return false
	})
	if len(excused) == 0 {
		t.Error("nothing was granted again: the test shows nothing")
	}
	t.Logf("%d messages, %d granted again after a flush", len(l.keys()), len(excused))
}

func untiringly(a access) access {
	a.Retry = patience
	return a
}

// The memory is full and the server evicts nothing: checks of new messages fail, and what was
// remembered stays so.
func TestTheMemoryIsFull(t *testing.T) {
	t.Parallel()
	l := startLoad(t, redistest.Start(t, "--maxmemory-policy", "noeviction"), "")
	for range 2 {
		l.reach(t, 100)
		l.server.Must("config", "set", "maxmemory", "1mb")
		l.refused(20, "out of memory")
		l.server.Must("config", "set", "maxmemory", "0")
	}
	l.reach(t, 100)
	l.end()
	l.remembered(t, untiringly(l.access))
	l.mustHold(t, nil)
}

// The server does not answer, and the policy says that messages may pass then. They do, and
// those that were checked are held to everything all the same.
func TestTheServerStallsAndThePolicyFailsOpen(t *testing.T) {
	t.Parallel()
	l := startLoad(t, redistest.Start(t), "  onStoreFailure: FailOpen\n", "--store-timeout", "100ms")
	unchecked := func(a *attempt) bool { return a.decision == client.Unchecked }
	l.reach(t, 100)
	l.server.Pause()
	redistest.Eventually(t, "messages pass unchecked", func() bool { return l.count(unchecked) >= 20 })
	l.server.Resume()
	l.reach(t, 100)
	l.end()
	l.mustHold(t, nil)
}

// The server evicts records before their time. Their messages are granted again; no other's
// are, and none is lost.
func TestRecordsAreEvicted(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory-policy", "volatile-lru", "--notify-keyspace-events", "Ee")
	evicted := watchEvictions(t, server)
	l := startLoad(t, server, "")
	l.reach(t, 300)
	// Others fill what memory there is.
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	t.Cleanup(func() { _ = client.Close() })
	var used int64
	if _, err := fmt.Sscanf(afterText(fmt.Sprint(server.Must("info", "memory")), "used_memory:"), "%d", &used); err != nil {
		t.Fatal(err)
	}
	server.Must("config", "set", "maxmemory", used+100_000)
	filler := strings.Repeat("x", 1000)
	for i := 0; len(evicted.ours()) < 200; i++ {
		if i == 100_000 {
			t.Fatal("nothing of ours is evicted")
		}
		if err := client.Set(t.Context(), fmt.Sprint("filler", i), filler, time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
	}
	l.reach(t, 300)
	l.end()
	evicted.settle(t)
	ours := evicted.ours()
	excused := l.mustHold(t, func(key string, _, _ time.Time) bool { return ours[storeKey(key)] })
	if len(excused) == 0 {
		t.Error("nothing was granted again: the test shows nothing")
	}
	t.Logf("%d messages, %d records evicted, %d granted again", len(l.keys()), len(ours), len(excused))
}

func afterText(s, prefix string) string {
	_, rest, _ := strings.Cut(s, prefix)
	return rest
}

// evictions are the keys that a server has evicted, as it tells itself.
type evictions struct {
	server *redistest.Server
	mu     sync.Mutex
	keys   map[string]bool // guarded by mu
}

func watchEvictions(t *testing.T, server *redistest.Server) *evictions {
	t.Helper()
	e := &evictions{server: server, keys: map[string]bool{}}
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	told := client.Subscribe(context.Background(), "__keyevent@0__:evicted")
	if _, err := told.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for m := range told.Channel(goredis.WithChannelSize(1 << 20)) {
			e.mu.Lock()
			e.keys[m.Payload] = true
			e.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = told.Close()
		<-gone
		_ = client.Close()
	})
	return e
}

// ours are the keys of dedupd's records among them.
func (e *evictions) ours() map[string]bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	ours := map[string]bool{}
	for key := range e.keys {
		if strings.HasPrefix(key, storeKey("")) {
			ours[key] = true
		}
	}
	return ours
}

// settle waits until everything that the server has told so far has arrived: a last word on
// the same channel has.
func (e *evictions) settle(t *testing.T) {
	t.Helper()
	const last = "the end"
	e.server.Must("publish", "__keyevent@0__:evicted", last)
	redistest.Eventually(t, "the evictions are told", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.keys[last]
	})
}
