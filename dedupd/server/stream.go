package server

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// CheckStream implements dedupdv1.DedupServiceServer. It answers what arrives on a stream. One goroutine receives into a bounded queue;
// this one takes all that has arrived, has it decided in one flight, answers, and looks again.
// So an idle stream waits for nothing, a busy one fills its batches by itself, and when the
// queue is full nothing is received, which the caller feels as flow control.
func (g *grpcAPI) CheckStream(stream grpc.BidiStreamingServer[pb.CheckStreamRequest, pb.CheckStreamResponse]) error {
	if !g.inFlight.take(streamCost) {
		g.Metrics.refused.WithLabelValues("grpc").Inc()
		return grpcError(errInFlight)
	}
	defer g.inFlight.give(streamCost)
	q := newQueue(g.Limits)
	go receive(stream, q)
	stop := context.AfterFunc(stream.Context(), func() { q.close(stream.Context().Err()) })
	defer stop()
	go func() {
		select {
		case <-g.stopping:
			// What was received is still answered; what was not, the caller sends elsewhere.
			q.close(errStopping)
		case <-stream.Context().Done():
		}
	}()
	for {
		batch, err := q.take()
		if len(batch) > 0 {
			for _, response := range g.flight(stream.Context(), batch) {
				if err := stream.Send(response); err != nil {
					return err
				}
			}
			continue
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return grpcError(err)
	}
}

var errStopping = &engine.Error{
	Code:    engine.Unavailable,
	Message: "dedupd is stopping: open another stream, and send what got no answer again with the same attempt",
}

// receive moves requests into the queue until the stream, or the queue, ends.
func receive(stream grpc.BidiStreamingServer[pb.CheckStreamRequest, pb.CheckStreamResponse], q *queue) {
	for {
		request, err := stream.Recv()
		if err != nil {
			q.close(err)
			return
		}
		if !q.put(request) {
			return
		}
	}
}

// queue holds what a stream has received and not taken up, bounded in number and bytes.
type queue struct {
	limits Limits

	mu       sync.Mutex
	changed  sync.Cond // on mu
	requests []*pb.CheckStreamRequest
	bytes    int64
	end      error // why nothing more comes
}

func newQueue(limits Limits) *queue {
	q := &queue{limits: limits}
	q.changed.L = &q.mu
	return q
}

// put waits for room. It says false when the queue is closed.
func (q *queue) put(r *pb.CheckStreamRequest) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.end == nil && (len(q.requests) >= q.limits.MaxBatch || q.bytes >= q.limits.MaxBatchBytes) {
		q.changed.Wait()
	}
	if q.end != nil {
		return false
	}
	q.requests = append(q.requests, r)
	q.bytes += int64(proto.Size(r))
	q.changed.Broadcast()
	return true
}

// take waits for requests and returns all of them, or none and why no more will come.
func (q *queue) take() ([]*pb.CheckStreamRequest, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.end == nil && len(q.requests) == 0 {
		q.changed.Wait()
	}
	taken := q.requests
	q.requests, q.bytes = nil, 0
	q.changed.Broadcast()
	if len(taken) > 0 {
		return taken, nil
	}
	return nil, q.end
}

// close says that no more will come. The first reason stands.
func (q *queue) close(why error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.end == nil {
		q.end = why
	}
	q.changed.Broadcast()
}

// flight is what goes to one policy's store together.
type flight struct {
	settleIDs []uint64
	settles   []engine.Settle
	checkIDs  []uint64
	checks    []batchMessage
}

// flight decides a batch. Settlements go first: a caller that completes a claim and then
// checks the same message again finds it completed, as it would over a connection of its own.
func (g *grpcAPI) flight(ctx context.Context, batch []*pb.CheckStreamRequest) []*pb.CheckStreamResponse {
	responses := make([]*pb.CheckStreamResponse, 0, len(batch))
	flights := map[string]*flight{}
	to := func(policy string) *flight {
		if flights[policy] == nil {
			flights[policy] = &flight{}
		}
		return flights[policy]
	}
	for _, r := range batch {
		switch in := r.GetRequest().(type) {
		case *pb.CheckStreamRequest_Check:
			request, err := g.request(in.Check.GetMessage(), "check.message")
			request.Consumer, request.Attempt = in.Check.GetConsumer(), in.Check.GetAttempt()
			f := to(in.Check.GetPolicy())
			f.checkIDs, f.checks = append(f.checkIDs, r.GetId()), append(f.checks, batchMessage{request: request, err: err})
		case *pb.CheckStreamRequest_Settle:
			op, err := settleOp(in.Settle.GetSettle(), "settle.settle")
			if err != nil {
				responses = append(responses, streamError(r.GetId(), err))
				continue
			}
			f := to(in.Settle.GetPolicy())
			f.settleIDs, f.settles = append(f.settleIDs, r.GetId()), append(f.settles, op)
		default:
			responses = append(responses, streamError(r.GetId(), invalid("request", "request: absent; want check or settle")))
		}
	}
	for policy, f := range flights {
		responses = g.settleFlight(ctx, policy, f, responses)
		responses = g.checkFlight(ctx, policy, f, responses)
	}
	return responses
}

func (g *grpcAPI) settleFlight(ctx context.Context, policy string, f *flight, to []*pb.CheckStreamResponse) []*pb.CheckStreamResponse {
	if len(f.settles) == 0 {
		return to
	}
	settled, err := g.settle(ctx, policy, f.settles)
	for i, id := range f.settleIDs {
		switch {
		case err != nil:
			to = append(to, streamError(id, err))
		case settled[i].Err != nil:
			to = append(to, streamError(id, settled[i].Err))
		default:
			to = append(to, &pb.CheckStreamResponse{
				Id: id, Response: &pb.CheckStreamResponse_Settled{Settled: settledPB(settled[i])},
			})
		}
	}
	return to
}

func (g *grpcAPI) checkFlight(ctx context.Context, policy string, f *flight, to []*pb.CheckStreamResponse) []*pb.CheckStreamResponse {
	if len(f.checks) == 0 {
		return to
	}
	answers, err := g.checkBatch(ctx, policy, f.checks)
	for i, id := range f.checkIDs {
		switch {
		case err != nil:
			to = append(to, streamError(id, err))
		case answers[i].Err != nil:
			to = append(to, streamError(id, answers[i].Err))
		default:
			to = append(to, &pb.CheckStreamResponse{
				Id: id, Response: &pb.CheckStreamResponse_Answer{Answer: answerPB(answers[i])},
			})
		}
	}
	return to
}

func streamError(id uint64, err error) *pb.CheckStreamResponse {
	return &pb.CheckStreamResponse{Id: id, Response: &pb.CheckStreamResponse_Error{Error: errorPB(err)}}
}
