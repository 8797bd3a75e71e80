package main

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// A caller that sends and does not receive is held back, costs little memory, and holds up
// nobody else, not even on its own connection. When it receives at last, it gets every answer.
func TestAStreamThatIsNotReadHoldsUpNobody(t *testing.T) {
	s := startServe(t, "-f", policyFile(t, headerPolicy))
	client := &http.Client{Timeout: 30 * time.Second}
	conn, err := grpc.NewClient(s.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	open := func() grpc.BidiStreamingClient[pb.CheckStreamRequest, pb.CheckStreamResponse] {
		t.Helper()
		stream, err := pb.NewDedupServiceClient(conn).CheckStream(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	message := func(id uint64, name string, size int) *pb.CheckStreamRequest {
		return &pb.CheckStreamRequest{Id: id, Request: &pb.CheckStreamRequest_Check{Check: &pb.CheckRequest{
			Policy: "orders", Consumer: "billing",
			Message: &pb.Message{Headers: map[string]string{"id": fmt.Sprint(name, "-", id)}, Body: make([]byte, size)},
		}}}
	}
	idle := s.metric(t, client, "process_resident_memory_bytes")

	// 16 KiB each, and in all far more than what may be held, until no Send has returned for a while.
	const size, enough = 16 << 10, 1 << 16
	unread := open()
	var sent atomic.Int64
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for i := range enough {
			if err := unread.Send(message(uint64(i), "unread", size)); err != nil {
				return // in the end: the stream is over
			}
			sent.Add(1)
		}
	}()
	blocked := func() int64 {
		for {
			before := sent.Load()
			select {
			case <-stopped:
				return before
			case <-time.After(time.Second):
			}
			if before > 0 && sent.Load() == before {
				return before
			}
		}
	}
	n := blocked()
	grown := s.metric(t, client, "process_resident_memory_bytes") - idle
	t.Logf("blocked after %d messages, %d MiB; %v MiB more resident", n, n*size>>20, grown/(1<<20))
	if n == enough {
		t.Fatalf("all %d MiB were taken from a caller that does not receive", enough*size>>20)
	}
	if grown > ballastSize+raceMemory*64<<20 {
		t.Errorf("%v MiB more than when idle", grown/(1<<20))
	}

	other := open()
	begun := time.Now()
	for i := range 500 {
		if err := other.Send(message(uint64(i), "other", size)); err != nil {
			t.Fatal(err)
		}
		r, err := other.Recv()
		if err != nil || r.GetId() != uint64(i) || r.GetAnswer().GetDecision() != pb.Decision_DECISION_FRESH {
			t.Fatalf("on another stream of the connection: %v %v", r, err)
		}
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("500 round trips on another stream took %s", took)
	}

	seen := map[uint64]bool{}
	for int64(len(seen)) < n {
		r, err := unread.Recv()
		if err != nil || seen[r.GetId()] || r.GetAnswer().GetDecision() != pb.Decision_DECISION_FRESH {
			t.Fatalf("answer %d of the stream that was not read: %v %v", len(seen), r, err)
		}
		seen[r.GetId()] = true
	}
	cancel()
	<-stopped
}
