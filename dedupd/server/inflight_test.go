package server

import (
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// While one request holds the memory there is, every other is refused, by every door. The
// questions about the process itself are answered.
func TestWhatExceedsMemoryIsRefused(t *testing.T) {
	gate := &gatedStore{entered: make(chan int, 1), pass: make(chan struct{})}
	f := start(t, func(o *options) {
		o.limits.MaxBody, o.limits.MaxBatchBytes, o.limits.MaxInFlight = 1000, 1000, 1000+requestCost
		o.open = gate.open
	})
	body := strings.Repeat("x", 1000)
	held := make(chan reply)
	go func() { held <- f.do("POST", "/v1/policies/ids/check", body, "Dedup-Consumer: a", "Message-Id: 1") }()
	<-gate.entered

	for path, body := range map[string]string{"check": "", "check:batch": "{}", "complete": "{}"} {
		r := f.do("POST", "/v1/policies/ids/"+path, body, "Dedup-Consumer: a", "Message-Id: 2")
		if r.status != http.StatusServiceUnavailable || r.field("code") != "OVERLOADED" || r.header.Get("Retry-After") != "1" {
			t.Errorf("%s: %d %s", path, r.status, r.text)
		}
	}
	if _, err := f.rpc.Check(ctx(t), &pb.CheckRequest{Policy: "ids", Consumer: "a", Message: id("2")}); reason(t, err, codes.Unavailable) != "OVERLOADED" {
		t.Errorf("gRPC: %v", err)
	}
	stream, err := f.rpc.CheckStream(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); reason(t, err, codes.Unavailable) != "OVERLOADED" {
		t.Errorf("stream: %v", err)
	}
	if r := f.do("GET", "/v1/status", ""); r.status != http.StatusOK {
		t.Errorf("status: %d %s", r.status, r.text)
	}
	if _, err := f.rpc.Status(ctx(t), &pb.StatusRequest{}); err != nil {
		t.Errorf("status over gRPC: %v", err)
	}
	text := f.do("GET", "/metrics", "").text
	for _, want := range []string{
		`dedupd_requests_refused_total{protocol="http"} 3`, `dedupd_requests_refused_total{protocol="grpc"} 2`,
		"dedupd_requests_in_flight_bytes 9192",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %s", want)
		}
	}

	close(gate.pass)
	if r := <-held; r.status != http.StatusOK {
		t.Errorf("the one that was admitted: %d %s", r.status, r.text)
	}
	if r := f.do("POST", "/v1/policies/ids/check", "", "Dedup-Consumer: a", "Message-Id: 2"); r.field("decision") != "FRESH" {
		t.Errorf("what was refused before: %d %s", r.status, r.text)
	}
	if n := f.inFlight.held.Load(); n != 0 {
		t.Errorf("%d bytes held when nobody waits", n)
	}
}

// Where one request is all that there is memory for, it may be the largest.
func TestTheLargestRequestIsAnsweredAtTheLeastMemory(t *testing.T) {
	f := start(t, func(o *options) {
		o.limits.MaxBody, o.limits.MaxBatch, o.limits.MaxBatchBytes = 50_000, 2, 100_000
		o.limits.MaxInFlight = o.limits.Largest()
	})
	largest := id("1")
	largest.Headers["padding"] = strings.Repeat("x", messageOverhead-200)
	largest.Body = make([]byte, 50_000)
	other := id("2")
	other.Body = largest.GetBody()
	batch := &pb.CheckBatchRequest{Policy: "ids", Consumer: "a", Messages: []*pb.BatchMessage{{Message: largest}, {Message: other}}}
	if size, most := proto.Size(batch), int(f.Limits.largestText()); size > most || size < most-200 {
		t.Fatalf("the batch has %d bytes, and at most are %d", size, most)
	}
	if response, err := f.rpc.CheckBatch(ctx(t), batch); err != nil || response.GetAnswers()[1].GetAnswer() == nil {
		t.Errorf("%v, %v", response, err)
	}
	stream, err := f.rpc.CheckStream(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	batch.Messages[0].Message.Headers["padding"] = strings.Repeat("x", messageOverhead-250)
	if err := stream.Send(&pb.CheckStreamRequest{Request: &pb.CheckStreamRequest_Batch{Batch: batch}}); err != nil {
		t.Fatal(err)
	}
	if response, err := stream.Recv(); err != nil || len(response.GetBatch().GetAnswers()) != 2 {
		t.Errorf("on a stream: %v, %v", response, err)
	}
}
