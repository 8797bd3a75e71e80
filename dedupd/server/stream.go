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
	defer q.close(errStopping) // receive may wait for room, also when it is an error or a panic that ends this
	go receive(stream, q)
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
			if err := f.fly(batch, stream.Send); err != nil {
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
	requests []*pb.CheckStreamRequest
	taken    []*pb.CheckStreamRequest // the batch before, whose memory is used again
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
func (q *queue) put(r *pb.CheckStreamRequest) bool {
	messages, size := sizeInQueue(r)
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.end == nil && len(q.requests) > 0 && (q.messages+messages > q.maxMessages || q.bytes >= q.maxBytes) {
		q.changed.Wait()
	}
	if q.end != nil {
		return false
	}
	q.requests = append(q.requests, r)
	q.messages += messages
	q.bytes += size
	q.changed.Broadcast()
	return true
}

// sizeInQueue is how many messages a request has, and about what it holds in memory: its
// texts, and 256 bytes for each message beside them.
func sizeInQueue(r *pb.CheckStreamRequest) (messages int, bytes int64) {
	switch in := r.GetRequest().(type) {
	case *pb.CheckStreamRequest_Check:
		n := len(in.Check.GetPolicy()) + len(in.Check.GetConsumer()) + len(in.Check.GetAttempt())
		return 1, int64(n) + sizeOfMessage(in.Check.GetMessage())
	case *pb.CheckStreamRequest_Batch:
		bytes = 256 + int64(len(in.Batch.GetPolicy())+len(in.Batch.GetConsumer()))
		for _, m := range in.Batch.GetMessages() {
			bytes += int64(len(m.GetAttempt())) + sizeOfMessage(m.GetMessage())
		}
		return max(len(in.Batch.GetMessages()), 1), bytes
	case *pb.CheckStreamRequest_Settle:
		n := len(in.Settle.GetPolicy()) + len(in.Settle.GetSettle().GetKey()) + len(in.Settle.GetSettle().GetToken())
		return 1, 256 + int64(n)
	default:
		return 1, 256
	}
}

func sizeOfMessage(m *pb.Message) int64 {
	n := 256 + len(m.GetBody())
	for name, value := range m.GetHeaders() {
		n += 64 + len(name) + len(value)
	}
	return int64(n)
}

// take waits for requests and returns all of them, or none and why no more will come. What it
// returns is good until the next call.
func (q *queue) take() ([]*pb.CheckStreamRequest, error) {
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
