package server

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

func ctx(tb testing.TB) context.Context {
	tb.Helper()
	c, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	tb.Cleanup(cancel)
	return c
}

func order(user int) *pb.Message {
	return &pb.Message{Body: fmt.Appendf(nil, `{"user_id": %d, "event_type": "signup"}`, user)}
}

func id(name string) *pb.Message {
	return &pb.Message{Headers: map[string]string{"Message-ID": name}}
}

func TestGRPCClaimLife(t *testing.T) {
	f := start(t)
	check := func() *pb.Answer {
		t.Helper()
		out, err := f.rpc.Check(ctx(t), &pb.CheckRequest{Policy: "orders", Consumer: "billing", Message: order(17)})
		if err != nil {
			t.Fatal(err)
		}
		return out.GetAnswer()
	}
	first := check()
	if first.GetDecision() != pb.Decision_DECISION_FRESH || first.GetFence() != 1 || first.GetLease().AsDuration() != 30*time.Second {
		t.Fatalf("first: %v", first)
	}
	held := check()
	if held.GetDecision() != pb.Decision_DECISION_IN_PROGRESS || held.GetRetryAfter().AsDuration() <= 0 || held.GetToken() != "" {
		t.Fatalf("held: %v", held)
	}
	k, token := first.GetKey(), first.GetToken()
	if out, err := f.rpc.Renew(ctx(t), &pb.RenewRequest{Policy: "orders", Key: k, Token: token}); err != nil || out.GetSettled().GetLease().AsDuration() != 30*time.Second {
		t.Errorf("renew: %v %v", out, err)
	}
	if found, err := f.rpc.Lookup(ctx(t), &pb.LookupRequest{Policy: "orders", Key: k}); err != nil || found.GetState() != pb.State_STATE_CLAIMED || found.GetLeaseRemaining().AsDuration() <= 0 {
		t.Errorf("lookup: %v %v", found, err)
	}
	if out, err := f.rpc.Release(ctx(t), &pb.ReleaseRequest{Policy: "orders", Key: k, Token: token}); err != nil || out.GetSettled().GetState() != pb.State_STATE_RELEASED {
		t.Errorf("release: %v %v", out, err)
	}
	_, err := f.rpc.Complete(ctx(t), &pb.CompleteRequest{Policy: "orders", Key: k, Token: token})
	if reason(t, err, codes.FailedPrecondition) != "STALE_TOKEN" {
		t.Errorf("complete after release: %v", err)
	}
	second := check()
	results, err := f.rpc.SettleBatch(ctx(t), &pb.SettleBatchRequest{Policy: "orders", Settles: []*pb.Settle{
		{Verb: pb.Verb_VERB_COMPLETE, Key: k, Token: token},
		{Verb: pb.Verb_VERB_COMPLETE, Key: k, Token: second.GetToken()},
		{Verb: pb.Verb_VERB_COMPLETE, Key: k, Token: "none"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if r := results.GetResults(); r[0].GetError().GetCode() != "STALE_TOKEN" ||
		r[1].GetSettled().GetState() != pb.State_STATE_COMPLETED || r[2].GetSettled().GetState() != pb.State_STATE_NONE {
		t.Errorf("settle: %v", r)
	}
	if done := check(); done.GetDecision() != pb.Decision_DECISION_DUPLICATE || done.GetFirstSeen() == nil {
		t.Errorf("after complete: %v", done)
	}
	if out, err := f.rpc.Forget(ctx(t), &pb.ForgetRequest{Policy: "orders", Key: k}); err != nil || !out.GetExisted() {
		t.Errorf("forget: %v %v", out, err)
	}
	_, err = f.rpc.Lookup(ctx(t), &pb.LookupRequest{Policy: "orders", Key: k})
	if reason(t, err, codes.NotFound) != "NOT_FOUND" {
		t.Errorf("lookup: %v", err)
	}
}

// reason is the code in the details of an error, which has the gRPC code as well.
func reason(t *testing.T, err error, want codes.Code) string {
	t.Helper()
	st := status.Convert(err)
	if st.Code() != want {
		t.Fatalf("%v: want %s", err, want)
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	t.Fatalf("%v: no ErrorInfo", err)
	return ""
}

func TestGRPCBatch(t *testing.T) {
	f := start(t, func(o *options) { o.limits.MaxBody = 100 })
	out, err := f.rpc.CheckBatch(ctx(t), &pb.CheckBatchRequest{Policy: "ids", Consumer: "billing", Messages: []*pb.BatchMessage{
		{Message: id("1")},
		{Message: &pb.Message{}},
		{Message: &pb.Message{Headers: map[string]string{"a": "1", "A": "2"}}},
		{Message: &pb.Message{Headers: id("2").GetHeaders(), Body: make([]byte, 101)}},
		{Message: id("1")},
		{},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range out.GetAnswers() {
		if a.GetError() != nil {
			got = append(got, a.GetError().GetCode()+" "+a.GetError().GetField())
			continue
		}
		got = append(got, a.GetAnswer().GetDecision().String())
	}
	want := []string{
		"DECISION_FRESH", `KEY_MISSING header "message-id"`, "INVALID_MESSAGE messages[2].message.headers",
		"TOO_LARGE messages[3].message.body", "DECISION_DUPLICATE", `KEY_MISSING header "message-id"`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestGRPCBadInput(t *testing.T) {
	f := start(t, func(o *options) { o.limits.MaxBody, o.limits.MaxBatch, o.limits.MaxBatchBytes = 1000, 3, 2000 })
	tests := map[string]struct {
		call   func(context.Context) error
		code   codes.Code
		reason string
	}{
		"an unknown policy": {func(c context.Context) error {
			_, err := f.rpc.Check(c, &pb.CheckRequest{Policy: "nope"})
			return err
		}, codes.NotFound, "NOT_FOUND"},
		"no consumer": {func(c context.Context) error {
			_, err := f.rpc.Check(c, &pb.CheckRequest{Policy: "ids", Message: id("1")})
			return err
		}, codes.InvalidArgument, "INVALID_ARGUMENT"},
		"no message": {func(c context.Context) error {
			_, err := f.rpc.Check(c, &pb.CheckRequest{Policy: "ids", Consumer: "a"})
			return err
		}, codes.InvalidArgument, "KEY_MISSING"},
		"a body over the limit": {func(c context.Context) error {
			_, err := f.rpc.Check(c, &pb.CheckRequest{Policy: "ids", Consumer: "a", Message: &pb.Message{Body: make([]byte, 1001)}})
			return err
		}, codes.ResourceExhausted, "TOO_LARGE"},
		"too many messages": {func(c context.Context) error {
			_, err := f.rpc.CheckBatch(c, &pb.CheckBatchRequest{Policy: "ids", Messages: make([]*pb.BatchMessage, 4)})
			return err
		}, codes.ResourceExhausted, "TOO_LARGE"},
		"too many settlements": {func(c context.Context) error {
			_, err := f.rpc.SettleBatch(c, &pb.SettleBatchRequest{Policy: "ids", Settles: make([]*pb.Settle, 4)})
			return err
		}, codes.ResourceExhausted, "TOO_LARGE"},
		"a settlement without a verb": {func(c context.Context) error {
			_, err := f.rpc.SettleBatch(c, &pb.SettleBatchRequest{Policy: "ids", Settles: []*pb.Settle{{Key: "a"}}})
			return err
		}, codes.InvalidArgument, "INVALID_ARGUMENT"},
		"a token that is none": {func(c context.Context) error {
			_, err := f.rpc.Complete(c, &pb.CompleteRequest{Policy: "ids", Key: "a", Token: "b"})
			return err
		}, codes.InvalidArgument, "INVALID_ARGUMENT"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := reason(t, test.call(ctx(t)), test.code); got != test.reason {
				t.Errorf("got %s, want %s", got, test.reason)
			}
		})
	}
	t.Run("a message over what a server receives at all", func(t *testing.T) {
		_, err := f.rpc.Check(ctx(t), &pb.CheckRequest{Policy: "ids", Message: &pb.Message{Body: make([]byte, 1<<20)}})
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("got %v", err)
		}
	})
}

func TestGRPCStatusAndHealth(t *testing.T) {
	f := start(t)
	eventually(t, "every store was asked", func() bool {
		out, err := f.rpc.Status(ctx(t), &pb.StatusRequest{})
		if err != nil || len(out.GetPolicies()) != 4 {
			t.Fatalf("%v %v", out, err)
		}
		for _, p := range out.GetPolicies() {
			if !p.GetStore().GetReachable() {
				return false
			}
		}
		return true
	})
	out, err := healthpb.NewHealthClient(f.conn).Check(ctx(t), &healthpb.HealthCheckRequest{Service: "dedupd.v1.DedupService"})
	if err != nil || out.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v %v", out, err)
	}
}

func TestEveryDecisionTravels(t *testing.T) {
	for name, value := range pb.Decision_value {
		if got := decisions[engine.Decision(strings.TrimPrefix(name, "DECISION_"))]; got != pb.Decision(value) {
			t.Errorf("%s travels as %s", name, got)
		}
	}
	if len(decisions) != len(pb.Decision_value)-1 {
		t.Errorf("%d decisions travel, the protocol has %d", len(decisions), len(pb.Decision_value)-1)
	}
}

func TestGRPCReflection(t *testing.T) {
	f := start(t)
	desc := &grpc.StreamDesc{StreamName: "ServerReflectionInfo", ServerStreams: true, ClientStreams: true}
	stream, err := f.conn.NewStream(ctx(t), desc, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&pb.StatusRequest{}); status.Code(err) == codes.Unimplemented {
		t.Error(err)
	}
}
