package server

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// eager is the stream of a caller that always has another check to send.
type eager struct {
	grpc.ServerStream
	ctx  context.Context
	send func() error
}

func (s *eager) Context() context.Context              { return s.ctx }
func (s *eager) Send(*pb.CheckStreamResponse) error    { return s.send() }
func (s *eager) Recv() (*pb.CheckStreamRequest, error) { return checkOf("guarded", "1"), nil }

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
			eventually(t, "nobody receives", func() bool { return !strings.Contains(goroutines(), "server.receive(") })
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

// goroutines are the stacks of all.
func goroutines() string {
	b := make([]byte, 8<<20)
	return string(b[:runtime.Stack(b, true)])
}
