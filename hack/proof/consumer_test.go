package proof

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/dedupd/dedup-operator/dedupd/client"
)

// access says how a consumer reaches dedupd. It travels to consumers that are processes.
type access struct {
	Targets []string // the replicas' gRPC addresses
	Timeout time.Duration
	Retry   time.Duration

	options []grpc.DialOption // of consumers that are goroutines
}

const policyName = "orders"

// dial connects to every replica, as behind a Service without an address of its own.
func (a access) dial() (*client.Client, error) {
	replicas := manual.NewBuilderWithScheme("replicas")
	var state resolver.State
	for _, t := range a.Targets {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: t})
	}
	replicas.InitialState(state)
	return client.New(client.Config{
		Target: "replicas:///dedupd", Policy: policyName, Consumer: "billing", Timeout: a.Timeout, Retry: a.Retry,
		DialOptions: append([]grpc.DialOption{
			grpc.WithResolvers(replicas),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond},
				MinConnectTimeout: 5 * time.Second,
			}),
		}, a.options...),
	})
}

func message(id string) client.Message {
	return client.Message{Headers: map[string]string{"message-id": id}}
}

// teller tells the queue of a step and returns its reply; false: it is not to go on.
type teller func(step) (reply, bool)

func (tell teller) at(p point) bool {
	_, ok := tell(step{Point: p, At: time.Now()})
	return ok
}

// consume is a consumer: it takes messages until there are no more, each as docs/consumers.md
// says.
func consume(c *client.Client, tell teller) {
	for {
		r, ok := tell(step{Point: next})
		if !ok || r.Done || !tell.deliver(c, r.ID) {
			return
		}
	}
}

// deliver works on one delivery and says whether the consumer goes on.
func (tell teller) deliver(c *client.Client, id string) bool {
	if !tell.at(checking) {
		return false
	}
	answer, err := c.Check(context.Background(), message(id))
	s := step{Point: checked, At: time.Now(), Decision: answer.Decision, Fence: answer.Claim.Fence, Lease: answer.Claim.Lease, Failure: text(err)}
	if _, ok := tell(s); !ok {
		return false
	}
	switch {
	case err != nil:
		return tell.back(20 * time.Millisecond)
	case answer.Decision == client.InProgress:
		return tell.back(min(answer.RetryAfter, 100*time.Millisecond))
	case answer.Decision == client.Duplicate:
		return tell.at(acknowledged)
	}
	if !tell.at(worked) || !tell.at(completing) {
		return false
	}
	err = c.Complete(context.Background(), answer.Claim)
	if _, ok := tell(step{Point: completed, At: time.Now(), Failure: text(err), Stale: errors.Is(err, client.ErrStale)}); !ok {
		return false
	}
	if err != nil {
		return tell.back(20 * time.Millisecond)
	}
	return tell.at(acknowledged)
}

func (tell teller) back(pause time.Duration) bool {
	_, ok := tell(step{Point: putBack, Pause: pause})
	return ok
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// consumers runs n consumers as goroutines, until the queue is drained or the test ends.
func (q *queue) consumers(t *testing.T, n int, a access) {
	t.Helper()
	c, err := a.dial()
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range n {
		w := &worker{name: "goroutine " + string(rune('a'+i))}
		group.Go(func() { consume(c, func(s step) (reply, bool) { return q.handle(w, s) }) })
	}
	t.Cleanup(func() {
		close(q.over)
		group.Wait()
		_ = c.Close()
	})
}

// The variable that makes the test binary a consumer, and its access.
const consumerEnv = "PROOF_CONSUMER"

// process is a consumer in a process of its own, which speaks over its standard input and output.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.Reader
}

// isConsumer runs a consumer if this process was started as one.
func isConsumer() bool {
	text := os.Getenv(consumerEnv)
	if text == "" {
		return false
	}
	var a access
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		panic(err)
	}
	c, err := a.dial()
	if err != nil {
		panic(err)
	}
	steps, replies := json.NewEncoder(os.Stdout), json.NewDecoder(bufio.NewReader(os.Stdin))
	consume(c, func(s step) (reply, bool) {
		var r reply
		return r, steps.Encode(s) == nil && replies.Decode(&r) == nil
	})
	return true
}

func startProcess(a access) (*process, error) {
	config, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(self)}
	p.cmd.Env = append(os.Environ(), consumerEnv+"="+string(config))
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if p.out, err = p.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	return p, p.cmd.Start()
}

// kill ends a process as kill -9 does.
func (p *process) kill() { _ = p.cmd.Process.Kill() }

// serve answers a process until it ends, and says whether it ended because the queue is drained.
func (q *queue) serve(w *worker) (drained bool) {
	steps, replies := json.NewDecoder(bufio.NewReader(w.process.out)), json.NewEncoder(w.process.in)
	for {
		var s step
		if err := steps.Decode(&s); err != nil {
			break // it has ended, or was killed
		}
		r, ok := q.handle(w, s)
		if !ok || replies.Encode(r) != nil {
			break
		}
		drained = drained || r.Done
	}
	_ = w.process.in.Close()
	if !drained {
		w.process.kill()
	}
	_ = w.process.cmd.Wait() // how it ended is known
	q.abandon(w)
	return drained
}

// processes runs n consumers as processes, until the queue is drained or the test ends. One
// that is killed is started again.
func (q *queue) processes(t *testing.T, n int, a access) {
	t.Helper()
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			for life := 1; ; life++ {
				p, err := startProcess(a)
				if err != nil {
					t.Error(err)
					return
				}
				if q.serve(&worker{name: fmt.Sprintf("process %c%d", 'a'+i, life), process: p}) {
					return
				}
				select {
				case <-q.over:
					return
				default:
				}
			}
		})
	}
	t.Cleanup(func() {
		close(q.over)
		group.Wait()
	})
}
