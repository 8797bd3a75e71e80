package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// Stream asks over one gRPC stream, for consumers with many messages at hand. A check that
// finds it idle is sent at once. Those that come while answers are awaited go together in one
// message when one arrives: nothing waits for a timer, and the more callers there are, the less each
// of their checks costs. It is safe for concurrent use, and made for it.
type Stream struct {
	client *Client
	ctx    context.Context //nolint:containedctx // of the gRPC stream, which outlives the calls that open it
	cancel context.CancelFunc

	mu        sync.Mutex
	rpc       checkStream             // guarded by mu; nil: to be opened
	abort     context.CancelFunc      // guarded by mu: ends rpc
	waiting   []*streamCall           // guarded by mu
	sent      map[uint64]streamFlight // guarded by mu: by the batch's id, on rpc
	lastID    uint64                  // guarded by mu
	most      int                     // guarded by mu: messages of a batch
	mostBytes int                     // guarded by mu: of a batch of several
	corked    bool                    // guarded by mu: receive sends what waits, and soon
}

type checkStream = grpc.BidiStreamingClient[pb.CheckStreamRequest, pb.CheckStreamResponse]

// streamCall is one try of a check. Its answer is sent to done, which has room for it: a caller
// that has left is not waited for.
type streamCall struct {
	message *pb.BatchMessage
	done    chan streamAnswer
	left    bool // guarded by Stream.mu: the message is the caller's again
}

// bytes is what the message takes in a batch as it travels.
func (c *streamCall) bytes() int {
	content := 0
	if body := len(c.message.GetMessage().GetBody()); body > 0 {
		content += 1 + protowire.SizeBytes(body)
	}
	for name, value := range c.message.GetMessage().GetHeaders() {
		content += 1 + protowire.SizeBytes(1+protowire.SizeBytes(len(name))+1+protowire.SizeBytes(len(value)))
	}
	return 1 + protowire.SizeBytes(1+protowire.SizeBytes(content)+1+protowire.SizeBytes(len(c.message.GetAttempt())))
}

// streamFlight is a batch on its way.
type streamFlight struct {
	calls []*streamCall
	bytes int
}

type streamAnswer struct {
	answer *pb.Answer
	err    error
}

// On one stream there are at most streamFlights batches without an answer, each of at most
// streamBatch messages and streamBytes, but of one message whatever its size: fewer, fuller ones are
// cheaper, and with two of them one is made up while the other is under way.
const (
	streamFlights = 2
	streamBatch   = 256
	streamBytes   = 1 << 20
)

// Stream returns a stream, which is opened by its first check, and anew where it has ended.
// Close ends it.
func (c *Client) Stream() *Stream {
	s := &Stream{client: c, sent: map[uint64]streamFlight{}, most: streamBatch, mostBytes: streamBytes}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close ends the stream. Checks that have no answer yet fail.
func (s *Stream) Close() { s.cancel() }

// Check is Client.Check over the stream.
func (s *Stream) Check(ctx context.Context, m Message) (Answer, error) {
	content, err := toPB(m)
	if err != nil {
		return Answer{}, err
	}
	message := &pb.BatchMessage{
		Attempt: rand.Text(), // here, once, and not in the loop
		Message: content,
	}
	var answer *pb.Answer
	err = s.client.retry(ctx, func(try context.Context) error {
		call := &streamCall{message: message, done: make(chan streamAnswer, 1)}
		s.send(call) //nolint:contextcheck // the stream outlives the call that opens it
		select {
		case a := <-call.done:
			answer = a.answer
			return a.err
		case <-try.Done():
			// If it is not the caller who has no more time, it is the stream that says nothing.
			s.leave(call, ctx.Err() == nil)
			return status.FromContextError(try.Err()).Err()
		}
	})
	if err != nil {
		return Answer{}, fmt.Errorf("checking a message: %w", err)
	}
	return fromPB(answer)
}

// leave takes a call back that has not been sent. One that has, and that the stream is silent
// about, ends the stream: the others' tries go to a new one.
func (s *Stream) leave(call *streamCall, silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	call.left = true
	if i := slices.Index(s.waiting, call); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	if silent && s.abort != nil {
		s.abort()
	}
}

func (s *Stream) send(call *streamCall) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = append(s.waiting, call)
	if !s.corked {
		s.fly()
	}
}

// fly sends what waits, as long as there may be another batch. It requires mu: one Send at a
// time is what gRPC wants, and few are blocked by it, since what is without an answer is bounded.
func (s *Stream) fly() {
	for len(s.waiting) > 0 && len(s.sent) < streamFlights {
		if err := s.open(); err != nil {
			s.fail(err)
			return
		}
		one := s.board()
		batch := &pb.CheckBatchRequest{
			Policy: s.client.config.Policy, Consumer: s.client.config.Consumer, Messages: make([]*pb.BatchMessage, len(one.calls)),
		}
		for i, c := range one.calls {
			batch.Messages[i] = c.message
		}
		s.lastID++
		s.sent[s.lastID] = one
		request := &pb.CheckStreamRequest{Id: s.lastID, Request: &pb.CheckStreamRequest_Batch{Batch: batch}}
		if err := s.rpc.Send(request); err != nil {
			return // the stream is over: receive learns why, and tells everybody
		}
	}
}

// board takes the next batch from what waits, which is something. It requires mu.
func (s *Stream) board() streamFlight {
	var one streamFlight
	n := 0
	for n < min(len(s.waiting), s.most) {
		bytes := s.waiting[n].bytes()
		if n > 0 && one.bytes+bytes > s.mostBytes {
			break
		}
		n++
		one.bytes += bytes
	}
	one.calls = slices.Clone(s.waiting[:n])
	s.waiting = slices.Delete(s.waiting, 0, n)
	return one
}

// open opens the stream if there is none. It requires mu.
func (s *Stream) open() error {
	if s.rpc != nil {
		return nil
	}
	ctx, abort := context.WithCancel(s.ctx)
	rpc, err := s.client.rpc.CheckStream(ctx)
	if err != nil {
		abort()
		return s.ended(err)
	}
	s.rpc, s.abort = rpc, abort
	go s.receive(rpc)
	return nil
}

// receive hands out answers until the stream ends.
func (s *Stream) receive(rpc checkStream) {
	for {
		response, err := rpc.Recv()
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.abort()
			s.rpc, s.abort = nil, nil
			if status.Code(err) == codes.ResourceExhausted {
				s.tooLarge(err)
				s.fly()
				return
			}
			s.fail(s.ended(err))
			return
		}
		s.mu.Lock()
		calls := s.sent[response.GetId()].calls
		delete(s.sent, response.GetId())
		if len(calls) > 1 && response.GetError().GetCode() == "TOO_LARGE" {
			// The server takes smaller batches than these (--max-batch).
			s.most = min(s.most, max(len(calls)/2, 1))
			s.requeue(calls)
			calls = nil
		}
		s.corked = true
		s.mu.Unlock()
		deliver(calls, response)
		// Who has an answer now often has another message at once. The first of them would be sent
		// alone, and the others would wait for it: so they have a turn before what waits is sent.
		runtime.Gosched()
		s.mu.Lock()
		s.corked = false
		s.fly()
		s.mu.Unlock()
	}
}

// tooLarge is for a stream that has ended because a batch was larger than what may travel (--max-batch-bytes).
// Nobody says which; the largest was, in any case. If that is a message alone, it is to blame, else batches
// are smaller from now on. Everything else goes on another stream, with the same attempts. It requires mu.
func (s *Stream) tooLarge(err error) {
	var largest uint64
	for id, one := range s.sent {
		if one.bytes > s.sent[largest].bytes {
			largest = id
		}
	}
	switch one := s.sent[largest]; len(one.calls) {
	case 0: // nothing was on its way
	case 1:
		one.calls[0].done <- streamAnswer{err: err}
		delete(s.sent, largest)
	default:
		s.mostBytes = one.bytes / 2
	}
	for _, one := range s.sent {
		s.requeue(one.calls)
	}
	clear(s.sent)
}

// requeue puts those calls first that nobody has left. It requires mu.
func (s *Stream) requeue(calls []*streamCall) {
	calls = slices.DeleteFunc(calls, func(c *streamCall) bool { return c.left })
	s.waiting = slices.Concat(calls, s.waiting)
}

// fail tells everybody that there is no answer. It requires mu.
func (s *Stream) fail(err error) {
	for _, one := range s.sent {
		s.waiting = append(s.waiting, one.calls...)
	}
	clear(s.sent)
	for _, c := range s.waiting {
		c.done <- streamAnswer{err: err}
	}
	s.waiting = nil
}

// ended says why a stream ended, or was not opened. Unless the caller has closed it, another
// try may help: the server ended it in order, or was silent.
func (s *Stream) ended(err error) error {
	if code := status.Code(err); s.ctx.Err() == nil && (code == codes.Canceled || errors.Is(err, io.EOF)) {
		return status.Error(codes.Unavailable, "the stream ended before the answer")
	}
	return err
}

// deliver gives each call of a batch its answer.
func deliver(calls []*streamCall, response *pb.CheckStreamResponse) {
	answers := response.GetBatch().GetAnswers()
	for i, c := range calls {
		switch {
		case response.GetError() != nil:
			c.done <- streamAnswer{err: fromError(response.GetError())}
		case len(answers) != len(calls):
			c.done <- streamAnswer{err: status.Error(codes.Unimplemented, "the server knows no batches on a stream; it is older than this client")}
		case answers[i].GetError() != nil:
			c.done <- streamAnswer{err: fromError(answers[i].GetError())}
		default:
			c.done <- streamAnswer{answer: answers[i].GetAnswer()}
		}
	}
}

// fromError is an item's error as a call of its own would have it.
func fromError(e *pb.Error) error {
	code := codes.InvalidArgument
	switch e.GetCode() {
	case "UNAVAILABLE", "OVERLOADED", "INDETERMINATE":
		code = codes.Unavailable
	case "NOT_FOUND":
		code = codes.NotFound
	case "UNAUTHENTICATED":
		code = codes.Unauthenticated
	case "PERMISSION_DENIED":
		code = codes.PermissionDenied
	case "TOO_LARGE":
		code = codes.ResourceExhausted
	case "INTERNAL":
		code = codes.Internal
	}
	st, err := status.New(code, e.GetMessage()).WithDetails(&errdetails.ErrorInfo{Reason: e.GetCode(), Domain: "dedupd.io"})
	if err == nil && e.GetRetryAfter() != nil {
		st, err = st.WithDetails(&errdetails.RetryInfo{RetryDelay: e.GetRetryAfter()})
	}
	if err != nil {
		return status.Error(code, e.GetMessage())
	}
	return st.Err()
}
