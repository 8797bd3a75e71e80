package server

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

func TestStream(t *testing.T) {
	f := start(t)
	stream, err := f.rpc.CheckStream(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *pb.CheckStreamRequest) {
		t.Helper()
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	receive := func(n int) map[uint64]*pb.CheckStreamResponse {
		t.Helper()
		got := map[uint64]*pb.CheckStreamResponse{}
		for range n {
			r, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			got[r.GetId()] = r
		}
		return got
	}
	check := func(id uint64, policy string, m *pb.Message) *pb.CheckStreamRequest {
		return &pb.CheckStreamRequest{Id: id, Request: &pb.CheckStreamRequest_Check{
			Check: &pb.CheckRequest{Policy: policy, Consumer: "billing", Message: m},
		}}
	}
	send(check(1, "orders", order(1)))
	first := receive(1)[1].GetAnswer()
	if first.GetDecision() != pb.Decision_DECISION_FRESH {
		t.Fatalf("got %v", first)
	}
	// All of these may be taken up together: whatever is, is answered under its id.
	send(&pb.CheckStreamRequest{Id: 2, Request: &pb.CheckStreamRequest_Settle{Settle: &pb.StreamSettle{
		Policy: "orders", Settle: &pb.Settle{Verb: pb.Verb_VERB_COMPLETE, Key: first.GetKey(), Token: first.GetToken()},
	}}})
	send(check(3, "orders", order(1)))
	send(check(4, "ids", id("a")))
	send(check(5, "ids", id("a")))
	send(check(6, "nope", id("a")))
	send(check(7, "ids", nil))
	send(&pb.CheckStreamRequest{Id: 8})
	send(&pb.CheckStreamRequest{Id: 9, Request: &pb.CheckStreamRequest_Settle{}})
	got := receive(8)
	if got[2].GetSettled().GetState() != pb.State_STATE_COMPLETED {
		t.Errorf("2: %v", got[2])
	}
	for id, want := range map[uint64]pb.Decision{
		3: pb.Decision_DECISION_DUPLICATE, 4: pb.Decision_DECISION_FRESH, 5: pb.Decision_DECISION_DUPLICATE,
	} {
		if got[id].GetAnswer().GetDecision() != want {
			t.Errorf("%d: %v, want %s", id, got[id], want)
		}
	}
	for id, want := range map[uint64]string{6: "NOT_FOUND", 7: "KEY_MISSING", 8: "INVALID_ARGUMENT", 9: "INVALID_ARGUMENT"} {
		if got[id].GetError().GetCode() != want {
			t.Errorf("%d: %v, want %s", id, got[id], want)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err == nil || status.Code(err) == codes.Unavailable {
		t.Errorf("after the end: %v %v", r, err)
	}
}

// A batch on a stream is answered as one over CheckBatch, beside the single requests of its flight.
func TestStreamBatch(t *testing.T) {
	f := start(t, func(o *options) { o.limits.MaxBody, o.limits.MaxBatch = 100, 4 })
	stream, err := f.rpc.CheckStream(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	batch := func(id uint64, policy string, messages ...*pb.BatchMessage) {
		t.Helper()
		if err := stream.Send(&pb.CheckStreamRequest{Id: id, Request: &pb.CheckStreamRequest_Batch{
			Batch: &pb.CheckBatchRequest{Policy: policy, Consumer: "billing", Messages: messages},
		}}); err != nil {
			t.Fatal(err)
		}
	}
	a := &pb.BatchMessage{Message: id("a"), Attempt: "1"}
	batch(1, "ids", a, &pb.BatchMessage{Message: &pb.Message{Headers: map[string]string{"a": "1", "A": "2"}}}, &pb.BatchMessage{Message: id("a")}, &pb.BatchMessage{})
	batch(2, "ids", &pb.BatchMessage{Message: id("a")}, &pb.BatchMessage{Message: id("b")})
	if err := stream.Send(&pb.CheckStreamRequest{Id: 3, Request: &pb.CheckStreamRequest_Check{
		Check: &pb.CheckRequest{Policy: "ids", Consumer: "billing", Message: id("b")},
	}}); err != nil {
		t.Fatal(err)
	}
	batch(4, "ids", a, a, a, a, a)
	batch(5, "nope", a)
	batch(6, "ids")
	got := map[uint64]string{}
	for range 6 {
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		text := r.GetError().GetCode() + r.GetAnswer().GetDecision().String()
		if r.GetBatch() != nil {
			text = ""
		}
		for _, a := range r.GetBatch().GetAnswers() {
			text += a.GetError().GetCode() + strings.TrimPrefix(a.GetAnswer().GetDecision().String(), "DECISION_") + " "
		}
		got[r.GetId()] = text
	}
	for id, want := range map[uint64]string{
		1: "FRESH INVALID_MESSAGEUNSPECIFIED DUPLICATE KEY_MISSINGUNSPECIFIED ", 2: "DUPLICATE FRESH ", 3: "DECISION_DUPLICATE",
		4: "TOO_LARGEDECISION_UNSPECIFIED", 5: "NOT_FOUNDDECISION_UNSPECIFIED", 6: "",
	} {
		if got[id] != want {
			t.Errorf("%d: %q, want %q", id, got[id], want)
		}
	}
}

// What arrives while a flight is on its way goes in the next ones, bounded by the batch limit. That all of what
// has arrived goes together is the queue's, see below.
func TestStreamTakesUpWhatHasArrived(t *testing.T) {
	gate := &gatedStore{entered: make(chan int, 100), pass: make(chan struct{})}
	f := start(t, func(o *options) {
		o.limits.MaxBatch = 5
		o.open = gate.open
	})
	stream, err := f.rpc.CheckStream(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	send := func(i int) {
		if err := stream.Send(&pb.CheckStreamRequest{Id: uint64(i), Request: &pb.CheckStreamRequest_Check{
			Check: &pb.CheckRequest{Policy: "ids", Consumer: "billing", Message: id(fmt.Sprint(i))},
		}}); err != nil {
			t.Error(err)
		}
	}
	send(0)
	if n := <-gate.entered; n != 1 {
		t.Fatalf("the first flight has %d checks, want 1", n)
	}
	const more = 12
	for i := range more {
		send(i + 1)
	}
	close(gate.pass)
	for left := more; left > 0; {
		n := <-gate.entered
		if n > 5 {
			t.Errorf("a flight of %d checks, at most 5 wanted", n)
		}
		left -= n
	}
	for range more + 1 {
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
}

// A caller that sends and does not read is held back, and the server's memory with it.
func TestStreamQueueIsBounded(t *testing.T) {
	q := newQueue(Limits{MaxBatch: 2, MaxBatchBytes: 1000})
	arrived := func(r *pb.CheckStreamRequest) *streamRequest {
		data, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		one := &streamRequest{}
		if err := one.read(data, Limits{MaxBatch: 2}); err != nil {
			t.Fatal(err)
		}
		return one
	}
	big := &pb.CheckStreamRequest{Request: &pb.CheckStreamRequest_Check{Check: &pb.CheckRequest{Message: &pb.Message{Body: make([]byte, 1000)}}}}
	for name, fill := range map[string][]*pb.CheckStreamRequest{
		"by number":             {{Id: 1}, {Id: 2}},
		"by bytes":              {big},
		"by a batch's messages": {{Id: 1, Request: &pb.CheckStreamRequest_Batch{Batch: &pb.CheckBatchRequest{Messages: []*pb.BatchMessage{{}, {}}}}}},
		"by batches of nothing": {
			{Id: 1, Request: &pb.CheckStreamRequest_Batch{Batch: &pb.CheckBatchRequest{}}},
			{Id: 2, Request: &pb.CheckStreamRequest_Batch{Batch: &pb.CheckBatchRequest{}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, r := range fill {
				q.put(arrived(r))
			}
			put := make(chan bool)
			go func() { put <- q.put(arrived(&pb.CheckStreamRequest{Id: 3})) }()
			select {
			case <-put:
				t.Fatal("there was room")
			case <-time.After(20 * time.Millisecond):
			}
			if taken, _ := q.take(); len(taken) != len(fill) {
				t.Errorf("took %d", len(taken))
			}
			if !<-put {
				t.Error("closed")
			}
			_, _ = q.take()
		})
	}
	q.close(errStopping)
	if q.put(arrived(&pb.CheckStreamRequest{})) {
		t.Error("a closed queue takes more")
	}
	if _, err := q.take(); !errors.Is(err, errStopping) {
		t.Errorf("got %v", err)
	}
}
