package proof

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/client"
	"github.com/dedupd/dedup-operator/dedupd/store/faulttest"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// untiring is the access of consumers that ask until there is an answer.
func untiring(replicas ...*replica) access {
	a := access{Timeout: 2 * time.Second, Retry: patience}
	for _, r := range replicas {
		a.Targets = append(a.Targets, r.grpc)
	}
	return a
}

// impatient is the access of consumers that take the first error for an answer.
func impatient(replicas ...*replica) access {
	a := untiring(replicas...)
	a.Retry = -1
	return a
}

// remembered asks once more about every message: each is known to have been completed.
func (q *queue) remembered(t *testing.T, a access) {
	t.Helper()
	c, err := a.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for _, id := range q.keys() {
		asked := q.begin(&attempt{key: id, consumer: "afterwards", called: time.Now()})
		answer, err := c.Check(t.Context(), message(id))
		if err != nil {
			t.Fatal(err)
		}
		q.note(asked, func(a *attempt) {
			a.answered, a.decision, a.fence, a.lease = time.Now(), answer.Decision, answer.Claim.Fence, answer.Claim.Lease
		})
		if answer.Decision != client.Duplicate {
			t.Errorf("%s is %s after the run, want DUPLICATE", id, answer.Decision)
		}
	}
}

// deaths kill consumers, each kind of death so many times.
type deaths struct {
	mu     sync.Mutex
	random *rand.Rand
	left   map[string]int
}

// During a call, a consumer is killed by somebody else while it waits for the answer.
const during = "during "

func newDeaths(seed uint64, each int) *deaths {
	d := &deaths{random: rand.New(rand.NewPCG(seed, 3)), left: map[string]int{}}
	for _, p := range []point{checking, checked, worked, completing, completed, acknowledged} {
		d.left[string(p)] = each
	}
	for _, p := range []point{checking, completing} {
		d.left[during+string(p)] = each
	}
	return d
}

// reached kills consumers at a point, or a moment after it.
func (d *deaths) reached(w *worker, p point) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.random.IntN(4) > 0 {
		return true
	}
	if d.left[during+string(p)] > 0 && d.random.IntN(2) == 0 {
		d.left[during+string(p)]--
		time.AfterFunc(time.Duration(d.random.IntN(2000))*time.Microsecond, w.process.kill)
		return true
	}
	if d.left[string(p)] == 0 {
		return true
	}
	d.left[string(p)]--
	w.process.kill()
	return false
}

func (d *deaths) mustBeOver(t *testing.T) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for p, n := range d.left {
		if n > 0 {
			t.Errorf("%d consumers were not killed at %q: the test shows less than it says", n, p)
		}
	}
}

// Consumers are killed before and after claim, effect, completion and acknowledgement, and
// while they wait for an answer. What they held is delivered to others.
func TestConsumersAreKilled(t *testing.T) {
	t.Parallel()
	seed := faulttest.Seed(t)
	server := redistest.Start(t)
	policy := manifest(modeClaim, standalone(server.Addr))
	one, two := startReplica(t, policy), startReplica(t, policy)
	q, d := newQueue(modeClaim, seed), newDeaths(seed, 2)
	q.reached = d.reached
	q.produce(150)
	q.close()
	q.processes(t, 4, untiring(one, two))
	q.wait(t)
	d.mustBeOver(t)
	q.remembered(t, untiring(one, two))
	q.mustHold(t, nil)
}

// dedupd is killed again and again, one replica after the other, and both at once.
func TestDedupdIsKilledUnderLoad(t *testing.T) {
	t.Parallel()
	seed := faulttest.Seed(t)
	server := redistest.Start(t)
	policy := manifest(modeClaim, standalone(server.Addr))
	one, two := startReplica(t, policy), startReplica(t, policy)
	q := newQueue(modeClaim, seed)
	stop := q.flow()
	q.consumers(t, 8, untiring(one, two))
	random := rand.New(rand.NewPCG(seed, 4))
	for range 4 {
		q.reach(t, 20+random.IntN(60))
		switch random.IntN(3) {
		case 0:
			one.restart()
		case 1:
			two.restart()
		default:
			one.kill()
			two.restart()
			one.restart()
		}
	}
	stop()
	q.wait(t)
	q.remembered(t, untiring(one, two))
	q.mustHold(t, nil)
}

// putToSleep stops a child. One of its threads takes the signal, and on a busy machine the others go on until
// that one has its turn: so it returns when all of them have stopped.
func putToSleep(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	var status syscall.WaitStatus
	_, err := syscall.Wait4(pid, &status, syscall.WUNTRACED, nil)
	for errors.Is(err, syscall.EINTR) {
		_, err = syscall.Wait4(pid, &status, syscall.WUNTRACED, nil)
	}
	if err == nil && !status.Stopped() {
		err = fmt.Errorf("the child has not stopped: status %#x", status)
	}
	return err
}

// A consumer sleeps through its lease, between its claim and its effect. Another takes over,
// with a higher fence. When the sleeper wakes, its effect bears the lower fence, by which a sink
// can tell, and its completion is refused.
func TestAConsumerSleepsThroughItsLease(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	dedupd := startReplica(t, manifest(modeClaim, standalone(server.Addr)))
	q := newQueue(modeClaim, faulttest.Seed(t))
	asleep, holder := make(chan struct{}), make(chan *worker, 1)
	q.reached = func(w *worker, p point) bool {
		if p == checked && w.process != nil && len(holder) == 0 {
			holder <- w
			if err := putToSleep(w.process.cmd.Process.Pid); err != nil {
				t.Error(err)
			}
			close(asleep)
		}
		return true
	}
	q.produce(1)
	q.processes(t, 1, untiring(dedupd))
	<-asleep
	sleeper := <-holder
	holder <- sleeper
	awake := sync.OnceFunc(func() { _ = sleeper.process.cmd.Process.Signal(syscall.SIGCONT) })
	t.Cleanup(awake)

	// The queue's patience with the sleeper ends, and it delivers once more.
	q.mu.Lock()
	q.deliver("m1")
	q.mu.Unlock()
	other := &worker{name: "other"}
	c, err := untiring(dedupd).dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		consume(c, func(s step) (reply, bool) { return q.handle(other, s) })
	}()
	redistest.Eventually(t, "the other has completed it", func() bool {
		return q.count(func(a *attempt) bool { return a.consumer == "other" && a.acknowledged() }) == 1
	})
	awake()
	redistest.Eventually(t, "the sleeper is refused", func() bool {
		return q.count(func(a *attempt) bool { return a.consumer != "other" && a.refused }) == 1
	})
	q.close()
	q.wait(t)
	<-finished
	q.mustHold(t, nil)
	fences := map[string]uint64{}
	q.count(func(a *attempt) bool {
		if a.granted() {
			fences[fmt.Sprint(a.refused)] = a.fence
		}
		return false
	})
	if fences["true"] != 1 || fences["false"] != 2 {
		t.Errorf("fences of the effects, by whether the completion was refused: %v; want 1 for the sleeper's and 2 for the other's", fences)
	}
}
