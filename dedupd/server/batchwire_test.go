package server

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/key"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

const testMaxBody = 64

// FuzzBatchWire holds what is read by hand to what protobuf reads.
func FuzzBatchWire(f *testing.F) {
	for _, m := range []proto.Message{
		&pb.CheckBatchRequest{},
		batchOf(3),
		&pb.CheckBatchRequest{Policy: "p", Messages: []*pb.BatchMessage{
			{}, {Message: &pb.Message{}},
			{Message: &pb.Message{Headers: map[string]string{"A": "1", "a": "2"}}},
			{Message: &pb.Message{Headers: map[string]string{"": ""}, Body: bytes.Repeat([]byte("x"), testMaxBody+1)}},
		}},
		&pb.SettleBatchRequest{Policy: "p", Settles: []*pb.Settle{
			{Verb: pb.Verb_VERB_COMPLETE, Key: "k", Token: "t"}, {Verb: pb.Verb_VERB_RENEW}, {Verb: 99},
		}},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, false)
		f.Add(data, true)
		f.Add(append(data, data...), false)               // everything twice: what is single is replaced
		f.Add(append(data, 0x7a, 1, 'x', 0x80), true)     // an unknown field, and half of one
		f.Add(append(data, 0x0b, 0x08, 1, 0x0c), false)   // a group
		f.Add(append(data, 0x0a, 2, 0xff, 0xfe), false)   // no UTF-8
		f.Add(append(data, 0x1a, 4, 0x0a, 2, 8, 1), true) // a varint in the place of bytes
	}
	f.Add([]byte("\x80\xc7\xed\xed\x30\xed\xed\x30"), true) // a field of a number that no field has
	f.Fuzz(func(t *testing.T, data []byte, settles bool) {
		if settles {
			got, want := settledByHand(data), settledByProtobuf(data)
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%x (-protobuf +by hand):\n%s", data, diff)
			}
			return
		}
		got, want := checkedByHand(data), checkedByProtobuf(data)
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%x (-protobuf +by hand):\n%s", data, diff)
		}
	})
}

// batchOf is a batch of n messages.
func batchOf(n int) *pb.CheckBatchRequest {
	in := &pb.CheckBatchRequest{Policy: "orders", Consumer: "billing"}
	for i := range n {
		in.Messages = append(in.Messages, &pb.BatchMessage{
			Attempt: fmt.Sprint("attempt", i),
			Message: &pb.Message{Headers: map[string]string{"message-id": fmt.Sprint(i), "Tenant": "ü"}, Body: []byte(`{"a":1}`)},
		})
	}
	return in
}

// seen is a request as the engine sees it: its headers in a map, since their order is nothing.
type seen struct {
	Policy, Consumer, Attempt, Body string
	Headers                         map[string]string
	Settle                          engine.Settle
	Err                             string
}

var unreadable = []seen{{Err: "unreadable"}}

func checkedByProtobuf(data []byte) []seen {
	in := &pb.CheckBatchRequest{}
	if proto.Unmarshal(data, in) != nil {
		return unreadable
	}
	s := &Service{}
	s.Limits.MaxBody = testMaxBody
	out := []seen{{Policy: in.GetPolicy()}}
	for i, m := range in.GetMessages() {
		one := seen{Policy: in.GetPolicy(), Consumer: in.GetConsumer(), Attempt: m.GetAttempt()}
		if r, err := s.request(m.GetMessage(), func() string { return fmt.Sprintf("messages[%d].message", i) }); err != nil {
			one.Err = err.Error()
		} else {
			one.Body, one.Headers = string(r.Message.Body), m.GetMessage().GetHeaders()
			for name := range one.Headers {
				if _, there := r.Message.Headers.Get(name); !there {
					one.Headers = lowered(one.Headers)
				}
			}
		}
		out = append(out, one)
	}
	return out
}

func lowered(m map[string]string) map[string]string {
	l, _ := key.NewMapHeaders(m) // it has been found good
	return l
}

func checkedByHand(data []byte) []seen {
	var w wireBatch
	if w.read(data, false, len(data)) != nil {
		return unreadable
	}
	messages, err := w.messages(testMaxBody)
	if err != nil {
		return unreadable
	}
	out := []seen{{Policy: w.policy}}
	for _, m := range messages {
		one := seen{Policy: w.policy, Consumer: m.request.Consumer, Attempt: m.request.Attempt}
		if m.err != nil {
			one.Err = m.err.Error()
		} else {
			one.Body, one.Headers = string(m.request.Message.Body), headersOf(m.request.Message.Headers)
		}
		out = append(out, one)
	}
	return out
}

func headersOf(h key.Headers) map[string]string {
	var all map[string]string
	switch h := h.(type) {
	case key.MapHeaders:
		all = h
	case *wireHeaders:
		for _, one := range *h {
			if all == nil {
				all = map[string]string{}
			}
			all[one.name] = one.value
		}
	}
	return all
}

func settledByProtobuf(data []byte) []seen {
	in := &pb.SettleBatchRequest{}
	if proto.Unmarshal(data, in) != nil {
		return unreadable
	}
	out := []seen{{Policy: in.GetPolicy()}}
	for i, one := range in.GetSettles() {
		op, err := settleOp(one, fmt.Sprintf("settles[%d]", i))
		if err != nil {
			return []seen{{Err: err.Error()}}
		}
		out = append(out, seen{Settle: op})
	}
	return out
}

func settledByHand(data []byte) []seen {
	var w wireBatch
	if w.read(data, true, len(data)) != nil {
		return unreadable
	}
	ops, err := w.settles()
	var known *engine.Error
	switch {
	case errors.As(err, &known):
		return []seen{{Err: err.Error()}}
	case err != nil:
		return unreadable
	}
	out := []seen{{Policy: w.policy}}
	for _, op := range ops {
		out = append(out, seen{Settle: op})
	}
	return out
}

// A request of the largest size may have eight million elements of nothing.
func TestABatchOfTooManyIsCountedAndNotKept(t *testing.T) {
	const n, most = 100_000, 10
	c := newCodec(Limits{MaxBatch: most})
	api := &grpcAPI{Service: &Service{Options: Options{Limits: c.limits}}}
	checks, settles := &checkWire{}, &settleWire{}
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
			var w wireBatch
			if err := w.read(data, false, n); err != nil {
				return err
			}
			messages, err := w.messages(testMaxBody)
			if err == nil && len(messages) != n {
				err = fmt.Errorf("%d messages", len(messages))
			}
			return err
		},
		"reading settlements": func() error {
			var w wireBatch
			if err := w.read(settleData, true, n); err != nil {
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
