package server

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// A request of the largest size may have eight million elements of nothing.
func TestABatchOfTooManyIsCountedAndNotKept(t *testing.T) {
	const n, most = 100_000, 10
	c := newCodec(Limits{MaxBatch: most})
	api := &grpcAPI{Service: &Service{Options: Options{Limits: c.limits}}}
	checks, settles := &wireChecks{}, &wireSettles{}
	for name, test := range map[string]struct {
		element []byte
		into    any
		read    *wireBatch
		answer  func() error
	}{
		"messages": {[]byte{byte(fieldMessages), 0}, checks, &checks.wireBatch, func() error { _, err := api.checkBatchWire(t.Context(), checks); return err }},
		"settles":  {[]byte{byte(fieldSettles), 0}, settles, &settles.wireBatch, func() error { _, err := api.settleBatchWire(t.Context(), settles); return err }},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(bytes.Repeat(test.element, n))}, test.into); err != nil {
				t.Fatal(err)
			}
			if held := cap(test.read.elements); held > 2*most {
				t.Errorf("room for %d elements, want %d", held, most)
			}
			if err, says := test.answer(), name+": 100000, at most 10"; err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%v, want %q", err, says)
			}
		})
	}
}

func TestAnswersOfABatchAreThoseOfProtobuf(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_123).UTC()
	answers := []engine.Answer{
		{Decision: engine.Fresh, Key: "billing:1", FirstSeen: at},
		{Decision: engine.Fresh, Key: "billing:2", Token: "token", Fence: 1 << 60, Lease: 1500 * time.Millisecond},
		{Decision: engine.Duplicate, Key: "billing:3", FirstSeen: at},
		{Decision: engine.Duplicate, Key: "billing:3", FirstSeen: time.Unix(-1, 5).UTC()},
		{Decision: engine.InProgress, Key: "billing:4", FirstSeen: at, RetryAfter: time.Hour},
		{Decision: engine.Conflict, FirstSeen: time.Unix(7, 0).UTC()},
		{Decision: engine.Unchecked, Reason: "it quotes \xff"},
		{Decision: engine.Fresh, Shadow: "DUPLICATE", FirstSeen: at},
		{Err: &engine.Error{Code: engine.Unavailable, Message: "down \xff", RetryAfter: time.Second}},
		{Err: &engine.Error{Code: engine.KeyMissing, Message: "m", Field: "header"}},
		{},
	}
	want := &pb.CheckBatchResponse{}
	for _, a := range answers {
		if a.Err != nil {
			want.Answers = append(want.Answers, &pb.BatchAnswer{Result: &pb.BatchAnswer_Error{Error: errorPB(a.Err)}})
			continue
		}
		want.Answers = append(want.Answers, &pb.BatchAnswer{Result: &pb.BatchAnswer_Answer{Answer: answerPB(a)}})
	}
	wantMessage(t, encodeAnswers(answers), want, &pb.CheckBatchResponse{})

	settled := []engine.Settled{
		{State: "COMPLETED"}, {State: "CLAIMED", Lease: 30 * time.Second}, {State: "NONE"},
		{Err: &engine.Error{Code: engine.StaleToken, Message: "lost"}},
	}
	results := &pb.SettleBatchResponse{}
	for _, s := range settled {
		if s.Err != nil {
			results.Results = append(results.Results, &pb.BatchSettled{Result: &pb.BatchSettled_Error{Error: errorPB(s.Err)}})
			continue
		}
		results.Results = append(results.Results, &pb.BatchSettled{Result: &pb.BatchSettled_Settled{Settled: settledPB(s)}})
	}
	wantMessage(t, encodeSettled(settled), results, &pb.SettleBatchResponse{})
}

func wantMessage(t *testing.T, data []byte, want, got proto.Message) {
	t.Helper()
	if err := proto.Unmarshal(data, got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A batch is read and answered with the memory of a batch: nothing for each message.
func TestABatchTravelsWithoutAllocationsOfItsMessages(t *testing.T) {
	const n = 256
	in := batchOf(n)
	for _, m := range in.GetMessages() {
		m.Message.Headers = map[string]string{"message-id": "7"}
	}
	data, err := proto.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	answers := make([]engine.Answer, n)
	for i := range answers {
		answers[i] = engine.Answer{Decision: engine.Duplicate, Key: "billing:7", FirstSeen: time.Unix(7, 0)}
	}
	settles := &pb.SettleBatchRequest{Policy: "orders"}
	for range n {
		settles.Settles = append(settles.Settles, &pb.Settle{Verb: pb.Verb_VERB_COMPLETE, Key: "billing:7", Token: "token"})
	}
	settleData, err := proto.Marshal(settles)
	if err != nil {
		t.Fatal(err)
	}
	for name, run := range map[string]func() error{
		"reading checks": func() error {
			w := wireBatch{wire: wireOf(data)}
			if err := w.readChecks(w.whole(), n); err != nil {
				return err
			}
			messages, err := w.checks(testLimits, "messages")
			if err == nil && len(messages) != n {
				err = fmt.Errorf("%d messages", len(messages))
			}
			return err
		},
		"reading settlements": func() error {
			w := wireBatch{wire: wireOf(settleData)}
			if err := w.readSettles(w.whole(), n); err != nil {
				return err
			}
			ops, err := w.settles()
			if err == nil && (len(ops) != n || ops[n-1].Verb != store.Complete) {
				err = fmt.Errorf("%d settlements", len(ops))
			}
			return err
		},
		"writing answers": func() error {
			if len(encodeAnswers(answers)) == 0 {
				return errors.New("nothing written")
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			var failed error
			allocs := testing.AllocsPerRun(1000, func() {
				if err := run(); err != nil {
					failed = err
				}
			})
			if failed != nil {
				t.Fatal(failed)
			}
			if limit := 20.0; allocs > limit {
				t.Errorf("%g allocations for a batch of %d, at most %g", allocs, n, limit)
			}
		})
	}
}
