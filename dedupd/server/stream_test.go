package server

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// eager is the stream of a caller that always has another check to send.
type eager struct {
	grpc.ServerStream
	ctx  context.Context
	send func() error
}

func (s *eager) Context() context.Context { return s.ctx }

func (s *eager) Send(*pb.CheckStreamResponse) error { return s.send() }

func (s *eager) Recv() (*pb.CheckStreamRequest, error) {
	return nil, errors.New("dedupd receives requests of its own")
}

func (s *eager) RecvMsg(m any) error {
	data, err := proto.Marshal(checkOf("guarded", "1"))
	if err != nil {
		return err
	}
	return newCodec(Limits{MaxBatch: 1}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, m)
}

// checkOf is a check, alone in its request.
func checkOf(policy, id string) *pb.CheckStreamRequest {
	return &pb.CheckStreamRequest{Id: 1, Request: &pb.CheckStreamRequest_Check{
		Check: &pb.CheckRequest{Policy: policy, Consumer: "c", Message: messageID(id)},
	}}
}

// Who sends more than is taken up has receive wait for room, and it is not to wait for ever.
func TestAStreamThatIsEndedLeavesNothingBehind(t *testing.T) {
	f := startGuarded(t)
	sent := func() error { return nil }
	for name, test := range map[string]struct {
		token string
		send  func() error
		code  codes.Code
	}{
		"its token is not accepted": {"x.y.z", sent, codes.Unauthenticated},
		"its caller has left":       {goodToken(t, nil), func() error { return status.Error(codes.Unavailable, "broken") }, codes.Unavailable},
		"a panic":                   {goodToken(t, nil), func() error { panic("a bug") }, codes.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+test.token))
			stream := &eager{ctx: ctx, send: test.send}
			err := f.guardStream(nil, stream, &grpc.StreamServerInfo{FullMethod: pb.DedupService_CheckStream_FullMethodName},
				func(any, grpc.ServerStream) error { return (&grpcAPI{Service: f.Service}).CheckStream(stream) })
			if status.Code(err) != test.code {
				t.Errorf("%v, want %s", err, test.code)
			}
			eventually(t, "nobody receives", func() bool { return !strings.Contains(goroutines(), ").receive(") })
			if n := f.inFlight.held.Load(); n != 0 {
				t.Errorf("%d bytes held by nobody", n)
			}
		})
	}
}

// Callers that leave are no bugs of dedupd, and are not counted as such.
func TestAStreamIsCountedByWhatEndedIt(t *testing.T) {
	f := start(t, func(o *options) { o.limits.MaxBody, o.limits.MaxBatchBytes = 1000, 1000 })
	for name, test := range map[string]struct {
		end  func(s pb.DedupService_CheckStreamClient, leave context.CancelFunc) error
		code codes.Code
	}{
		"its caller leaves":  {func(_ pb.DedupService_CheckStreamClient, leave context.CancelFunc) error { leave(); return nil }, codes.Canceled},
		"its caller is done": {func(s pb.DedupService_CheckStreamClient, _ context.CancelFunc) error { return s.CloseSend() }, codes.OK},
		"a request too large": {func(s pb.DedupService_CheckStreamClient, _ context.CancelFunc) error {
			return s.Send(checkOf("ids", strings.Repeat("x", 1<<20)))
		}, codes.ResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, leave := context.WithCancel(ctx(t))
			defer leave()
			stream, err := f.rpc.CheckStream(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(checkOf("ids", "1")); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			if err := test.end(stream, leave); err != nil {
				t.Fatal(err)
			}
			line := fmt.Sprintf(`dedupd_requests_total{code=%q,protocol="grpc",route="CheckStream"} `, test.code)
			eventually(t, line, func() bool { return strings.Contains(f.do("GET", "/metrics", "").text, line) })
		})
	}
	if text := f.do("GET", "/metrics", "").text; strings.Contains(text, `code="Internal",protocol="grpc"`) {
		t.Error("a stream is counted as one that a bug has ended")
	}
}

// A request of the largest size may have a batch of eight million messages of nothing.
func TestABatchOfTooManyOnAStreamIsNotDecoded(t *testing.T) {
	data, err := proto.Marshal(&pb.CheckStreamRequest{Id: 7, Request: &pb.CheckStreamRequest_Batch{
		Batch: &pb.CheckBatchRequest{Policy: "ids", Messages: make([]*pb.BatchMessage, 100_000)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	r := &streamRequest{}
	if err := newCodec(Limits{MaxBatch: 10}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, r); err != nil {
		t.Fatal(err)
	}
	if says := "batch.messages: 100000, at most 10"; r.id != 7 || r.refused == nil || !strings.Contains(r.refused.Error(), says) {
		t.Errorf("request %d: %v, want 7: %q", r.id, r.refused, says)
	}
	if r.asked != nil {
		t.Error("it was decoded")
	}
}

// While a request of one stream holds the memory there is, that of another is refused, and its stream goes on.
func TestWhatStreamsHoldIsBounded(t *testing.T) {
	gate := &gatedStore{entered: make(chan int, 10), pass: make(chan struct{})}
	f := start(t, func(o *options) {
		o.limits.MaxBody, o.limits.MaxBatchBytes, o.limits.MaxInFlight = 10_000, 10_000, 2*streamCost+30_000
		o.open = gate.open
	})
	pass := sync.OnceFunc(func() { close(gate.pass) })
	t.Cleanup(pass)
	ctx, leave := context.WithCancel(ctx(t))
	defer leave()
	open := func() pb.DedupService_CheckStreamClient {
		t.Helper()
		stream, err := f.rpc.CheckStream(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	ask := func(stream pb.DedupService_CheckStreamClient, id string) {
		t.Helper()
		r := checkOf("ids", id)
		r.GetCheck().Message.Body = make([]byte, 10_000)
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	answer := func(stream pb.DedupService_CheckStreamClient) string {
		t.Helper()
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return r.GetError().GetCode() + strings.TrimPrefix(r.GetAnswer().GetDecision().String(), "DECISION_UNSPECIFIED")
	}
	first, second := open(), open()
	ask(first, "1")
	<-gate.entered
	ask(second, "2")
	if got := answer(second); got != "OVERLOADED" {
		t.Errorf("while the first waits: %s", got)
	}
	pass()
	if got := answer(first); got != "DECISION_FRESH" {
		t.Errorf("the first: %s", got)
	}
	eventually(t, "what was answered holds nothing", func() bool { return f.inFlight.held.Load() == 2*streamCost })
	ask(second, "2")
	if got := answer(second); got != "DECISION_FRESH" {
		t.Errorf("when the first is answered: %s", got)
	}
	leave()
	eventually(t, "nobody holds anything", func() bool { return f.inFlight.held.Load() == 0 })
}

// goroutines are the stacks of all.
func goroutines() string {
	b := make([]byte, 8<<20)
	return string(b[:runtime.Stack(b, true)])
}
