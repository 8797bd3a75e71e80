package server

import (
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

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
	defer func() {
		q.close(errStopping) // receive may wait for room, also when it is an error or a panic that ends this
		left, _ := q.take()
		g.inFlight.give(bytesOf(left))
	}()
	go g.receive(stream, q)
	defer g.tokenEnds(stream.Context(), func() { q.close(errTokenEnded) })()
	go func() {
		select {
		case <-g.stopping:
			// What was received is still answered; what was not, the caller sends elsewhere.
			q.close(errStopping)
		case <-stream.Context().Done():
		}
	}()
	f := &flights{api: g, ctx: stream.Context()}
	for {
		batch, err := q.take()
		if len(batch) > 0 {
			if err := g.answer(f, batch, stream); err != nil {
				return err
			}
			continue
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return endError(err)
	}
}

// answer answers a batch, which holds memory until then.
func (g *grpcAPI) answer(f *flights, batch []*streamRequest, stream grpc.BidiStreamingServer[pb.CheckStreamRequest, pb.CheckStreamResponse]) error {
	defer g.inFlight.give(bytesOf(batch))
	return f.fly(batch, stream.Send)
}

// endError is why a stream ends: what gRPC says, as of a caller that has left, or an error of ours.
func endError(err error) error {
	if _, said := status.FromError(err); said {
		return err
	}
	return grpcError(err)
}

var errStopping = &engine.Error{
	Code:    engine.Unavailable,
	Message: "dedupd is stopping: open another stream, and send what got no answer again with the same attempt",
}

// receive moves requests into the queue until the stream, or the queue, ends.
func (g *grpcAPI) receive(stream grpc.ServerStream, q *queue) {
	for {
		r := &streamRequest{}
		if err := stream.RecvMsg(r); err != nil {
			q.close(err)
			return
		}
		if !g.inFlight.take(r.bytes) {
			g.Metrics.refused.WithLabelValues("grpc").Inc()
			r.refuse(errInFlight)
		}
		if !q.put(r) {
			g.inFlight.give(r.bytes)
			return
		}
	}
}

// maxQueueBytes bounds what waits on one stream beside MaxBatchBytes: streams are many, and what
// is worth sending together is small.
const maxQueueBytes = 1 << 20

// queue holds what a stream has received and not taken up, bounded in messages and bytes. A
// request always fits an empty one; what it may be is for the flight to say.
type queue struct {
	maxMessages int
	maxBytes    int64

	mu       sync.Mutex
	changed  sync.Cond // on mu
	requests []*streamRequest
	taken    []*streamRequest // the batch before, whose memory is used again
	messages int
	bytes    int64
	end      error // why nothing more comes
}

func newQueue(limits Limits) *queue {
	q := &queue{maxMessages: limits.MaxBatch, maxBytes: min(limits.MaxBatchBytes, maxQueueBytes)}
	q.changed.L = &q.mu
	return q
}

// put waits for room. It says false when the queue is closed.
func (q *queue) put(r *streamRequest) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.end == nil && len(q.requests) > 0 && (q.messages+r.messages > q.maxMessages || q.bytes >= q.maxBytes) {
		q.changed.Wait()
	}
	if q.end != nil {
		return false
	}
	q.requests = append(q.requests, r)
	q.messages += r.messages
	q.bytes += r.bytes
	q.changed.Broadcast()
	return true
}

// take waits for requests and returns all of them, or none and why no more will come. What it
// returns is good until the next call.
func (q *queue) take() ([]*streamRequest, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.end == nil && len(q.requests) == 0 {
		q.changed.Wait()
	}
	clear(q.taken)
	q.taken, q.requests, q.bytes = q.requests, q.taken[:0], 0
	q.messages = 0
	q.changed.Broadcast()
	if len(q.taken) > 0 {
		return q.taken, nil
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
