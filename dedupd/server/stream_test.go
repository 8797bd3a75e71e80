package server

import (
	"context"
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

// goroutines are the stacks of all.
func goroutines() string {
	b := make([]byte, 8<<20)
	return string(b[:runtime.Stack(b, true)])
}
