package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/dedupd/dedup-operator/dedupd/key"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// withHeaders is a message with n headers, of which one is its ID.
func withHeaders(n int, name string) *pb.Message {
	m := id(name)
	for i := range n - 1 {
		m.Headers[fmt.Sprint("x-", i)] = ""
	}
	return m
}

// Only what is at fault is refused, whichever way it comes.
func TestAMessageOfTooManyHeadersIsRefused(t *testing.T) {
	f := start(t)
	const says = ": more than 256; send those that the key is made of, and no others"
	most, more := withHeaders(key.MaxHeaders, "most"), withHeaders(key.MaxHeaders+1, "more")
	check := func(m *pb.Message) *pb.CheckRequest {
		return &pb.CheckRequest{Policy: "ids", Consumer: "c", Message: m}
	}
	if _, err := f.rpc.Check(ctx(t), check(most)); err != nil {
		t.Error(err)
	}
	if _, err := f.rpc.Check(ctx(t), check(more)); err == nil || !strings.Contains(err.Error(), "message.headers"+says) {
		t.Errorf("alone: %v", err)
	}
	batch := &pb.CheckBatchRequest{Policy: "ids", Consumer: "c", Messages: []*pb.BatchMessage{{Message: more}, {Message: withHeaders(key.MaxHeaders, "other")}}}
	ofBatch := func(name string, answers []*pb.BatchAnswer) {
		t.Helper()
		if len(answers) != 2 || answers[0].GetError().GetMessage() != name+"[0].message.headers"+says || answers[1].GetAnswer() == nil {
			t.Errorf("%v", answers)
		}
	}
	response, err := f.rpc.CheckBatch(ctx(t), batch)
	if err != nil {
		t.Fatal(err)
	}
	ofBatch("messages", response.GetAnswers())
	stream, err := f.rpc.CheckStream(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(r *pb.CheckStreamRequest) *pb.CheckStreamResponse {
		t.Helper()
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	ofBatch("batch.messages", ask(&pb.CheckStreamRequest{Request: &pb.CheckStreamRequest_Batch{Batch: batch}}).GetBatch().GetAnswers())
	alone := ask(&pb.CheckStreamRequest{Request: &pb.CheckStreamRequest_Check{Check: check(more)}})
	if got := alone.GetError().GetMessage(); got != "check.message.headers"+says {
		t.Errorf("alone on a stream: %q", got)
	}
	for n, want := range map[int]int{key.MaxHeaders: 200, key.MaxHeaders + 1: 400} {
		body, err := json.Marshal(map[string]any{"consumer": "c", "messages": []any{map[string]any{"headers": withHeaders(n, "json").GetHeaders()}}})
		if err != nil {
			t.Fatal(err)
		}
		if r := f.do("POST", "/v1/policies/ids/check:batch", string(body)); r.status != want || want == 400 && !strings.Contains(r.text, "messages[0].headers"+says) {
			t.Errorf("JSON with %d: %d %s", n, r.status, r.text)
		}
	}
}

// A header may take two bytes of a request, and takes sixteen times that in memory.
func TestHeadersBeyondWhatAMessageMayHaveTakeNoMemory(t *testing.T) {
	nested := func(number protowire.Number, content []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), content)
	}
	message := bytes.Repeat([]byte{byte(fieldHeaders), 0}, 1<<20)
	limits := Limits{MaxBody: 1, MaxBatch: 1}
	for name, test := range map[string]struct {
		data []byte
		into any
		ask  func(into any)
	}{
		"Check":      {nested(4, message), &wireCheck{}, func(in any) { _, _ = in.(*wireCheck).check(limits, "") }},
		"CheckBatch": {nested(3, nested(1, message)), &wireChecks{}, func(in any) { _, _ = in.(*wireChecks).checks(limits, "") }},
		"CheckStream": {nested(2, nested(4, message)), &streamRequest{}, func(in any) {
			_, _ = in.(*streamRequest).asked.(*wireCheck).check(limits, "")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if err := newCodec(limits).Unmarshal(mem.BufferSlice{mem.SliceBuffer(test.data)}, test.into); err != nil {
				t.Fatal(err)
			}
			test.ask(test.into)
			runtime.ReadMemStats(&after)
			if took, most := after.TotalAlloc-before.TotalAlloc, uint64(3*len(test.data)); took > most {
				t.Errorf("%d bytes for a request of %d", took, len(test.data))
			}
		})
	}
}
