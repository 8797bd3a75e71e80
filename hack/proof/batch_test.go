package proof

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/dedupd/dedup-operator/dedupd/client"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
	"github.com/dedupd/dedup-operator/dedupd/store/faulttest"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// batcher is a consumer that asks in batches, and with the same attempts again, of one replica
// after the other, until there is an answer.
type batcher struct {
	*history
	name     string
	replicas []pb.DedupServiceClient
}

func newBatcher(t *testing.T, h *history, name string, replicas ...*replica) *batcher {
	t.Helper()
	b := &batcher{history: h, name: name}
	for _, r := range replicas {
		conn, err := grpc.NewClient(r.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		b.replicas = append(b.replicas, pb.NewDedupServiceClient(conn))
	}
	return b
}

// check asks about messages, and notes what came of it.
func (b *batcher) check(ctx context.Context, round int, ids []string) error {
	request := &pb.CheckBatchRequest{Policy: policyName, Consumer: "billing"}
	var attempts []*attempt
	for _, id := range ids {
		request.Messages = append(request.Messages, &pb.BatchMessage{
			Message: &pb.Message{Headers: map[string]string{"message-id": id}}, Attempt: fmt.Sprint(b.name, round, id),
		})
		attempts = append(attempts, b.begin(&attempt{key: id, consumer: b.name, called: time.Now()}))
	}
	for try := 0; ctx.Err() == nil; try++ {
		one, cancel := context.WithTimeout(ctx, 2*time.Second)
		response, err := b.replicas[try%len(b.replicas)].CheckBatch(one, request)
		cancel()
		if err != nil || failed(response) {
			continue
		}
		for i, a := range attempts {
			answer := response.GetAnswers()[i].GetAnswer()
			b.note(a, func(a *attempt) {
				a.answered, a.decision = time.Now(), decisions[answer.GetDecision()]
				a.fence, a.lease = answer.GetFence(), answer.GetLease().AsDuration()
				if a.granted() {
					a.effect = a.answered
				}
			})
		}
		return nil
	}
	return ctx.Err()
}

var decisions = map[pb.Decision]client.Decision{
	pb.Decision_DECISION_FRESH: client.Fresh, pb.Decision_DECISION_DUPLICATE: client.Duplicate,
	pb.Decision_DECISION_IN_PROGRESS: client.InProgress,
}

// failed says whether a message of a batch has no answer. The batch is asked again as a whole.
func failed(r *pb.CheckBatchResponse) bool {
	for _, a := range r.GetAnswers() {
		if a.GetError() != nil {
			return true
		}
	}
	return false
}

// dedupd is killed while Redis has carried out a part of a batch. The caller asks another
// replica with the same attempts, and is told of each message what it would have been told;
// callers that ask about the same messages meanwhile never get a second FRESH.
func TestDedupdIsKilledMidBatch(t *testing.T) {
	t.Parallel()
	for _, m := range []mode{modeMark, modeClaim} {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			const rounds, size = 4, 100
			seed := faulttest.Seed(t)
			random := rand.New(rand.NewPCG(seed, 5))
			server := redistest.Start(t)
			proxy := redistest.StartProxy(t, server.Addr)
			victim := startReplica(t, manifest(m, standalone(proxy.Addr)))
			other := startReplica(t, manifest(m, standalone(server.Addr)))
			h := newHistory(m)
			for round := range rounds {
				var ids []string
				for i := range size {
					ids = append(ids, fmt.Sprintf("m%d-%d", round, i))
					h.produced[ids[i]] = true
				}
				var sets atomic.Int64
				last := 1 + random.Int64N(size-1)
				dead := make(chan struct{})
				die := sync.OnceFunc(func() {
					victim.kill()
					close(dead)
				})
				proxy.SetBefore(func(request []string) redistest.Fate {
					if request[0] != "set" || sets.Add(1) <= last {
						return redistest.Fate{}
					}
					die()
					return redistest.Fate{Drop: true}
				})
				var group sync.WaitGroup
				var first, second error
				group.Go(func() { first = newBatcher(t, h, "first", victim, other).check(t.Context(), round, ids) })
				select {
				case <-dead:
				case <-time.After(patience):
					t.Fatal("dedupd was not killed: no batch came through")
				}
				group.Go(func() { second = newBatcher(t, h, "second", other).check(t.Context(), round, ids) })
				group.Wait()
				if first != nil || second != nil {
					t.Fatal(first, second)
				}
				proxy.SetBefore(nil)
				victim.restart()
			}
			// A claim that nobody completes may be taken over on a machine that takes long.
			if fresh := h.count((*attempt).granted); fresh < rounds*size || m == modeMark && fresh > rounds*size {
				t.Errorf("%d FRESH for %d messages, each asked about by two", fresh, rounds*size)
			}
			h.mustHold(t, nil)
		})
	}
}
