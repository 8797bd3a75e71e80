package server

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/key"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

const testMaxBody = 64

var testLimits = Limits{MaxBody: testMaxBody}

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
			sameAsProtobuf(t, data, settledByHand(data), settledByProtobuf(data))
			return
		}
		sameAsProtobuf(t, data, checkedByHand(data), checkedByProtobuf(data))
	})
}

// FuzzStreamWire is FuzzBatchWire for what comes on a stream.
func FuzzStreamWire(f *testing.F) {
	for _, m := range []*pb.CheckStreamRequest{
		{},
		checkOf("ids", "1"),
		{Id: 1 << 60, Request: &pb.CheckStreamRequest_Batch{Batch: batchOf(2)}},
		{Id: 3, Request: &pb.CheckStreamRequest_Settle{Settle: &pb.StreamSettle{
			Policy: "p", Settle: &pb.Settle{Verb: pb.Verb_VERB_RELEASE, Key: "k", Token: "t"},
		}}},
		{Request: &pb.CheckStreamRequest_Settle{}},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(append(data, data...))                      // everything twice
		f.Add(append(data, 0x22, 4, 0x1a, 2, 0x12, 0))    // then a batch
		f.Add(append(data, 0x12, 3, 0x1a, 1, 'x'))        // then a check
		f.Add(append(data, 0x1a, 4, 0x12, 2, 8, 1))       // then a settlement
		f.Add(append(data, 0x22, 3, 0x1a, 1, 0x80))       // then a batch with half a message
		f.Add(append(data, 0x12, 4, 0x22, 2, 0x0a, 0x0a)) // then a check with half a header
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		sameAsProtobuf(t, data, streamedByHand(data), streamedByProtobuf(data))
	})
}

func sameAsProtobuf(t *testing.T, data []byte, got, want []seen) {
	t.Helper()
	tooMany := func(s seen) bool { return strings.HasSuffix(s.Err, key.ErrHeaders.Error()) }
	if len(data) > 2*key.MaxHeaders && slices.ContainsFunc(got, tooMany) {
		return // protobuf counts a name that comes twice once
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%x (-protobuf +by hand):\n%s", data, diff)
	}
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
	ID uint64

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
	return batchByProtobuf(in, "messages")
}

func batchByProtobuf(in *pb.CheckBatchRequest, name string) []seen {
	out := []seen{{Policy: in.GetPolicy()}}
	for i, m := range in.GetMessages() {
		out = append(out, checkByProtobuf(&pb.CheckRequest{
			Policy: in.GetPolicy(), Consumer: in.GetConsumer(), Attempt: m.GetAttempt(), Message: m.GetMessage(),
		}, fmt.Sprintf("%s[%d].message", name, i)))
	}
	return out
}

func checkByProtobuf(in *pb.CheckRequest, field string) seen {
	one := seen{Policy: in.GetPolicy(), Consumer: in.GetConsumer(), Attempt: in.GetAttempt()}
	headers, err := key.NewMapHeaders(in.GetMessage().GetHeaders())
	switch {
	case len(in.GetMessage().GetBody()) > testMaxBody:
		one.Err = bodyTooLarge(field+".body", testMaxBody).Error()
	case err != nil:
		one.Err = field + ".headers: " + err.Error()
	default:
		one.Body, one.Headers = string(in.GetMessage().GetBody()), headers
	}
	return one
}

func checkedByHand(data []byte) []seen {
	w := wireBatch{wire: wireOf(data)}
	if w.readChecks(w.whole(), len(data)) != nil {
		return unreadable
	}
	return batchByHand(&w, "messages")
}

func batchByHand(w *wireBatch, name string) []seen {
	messages, err := w.checks(testLimits, name)
	if err != nil {
		return unreadable
	}
	out := []seen{{Policy: w.policy}}
	for _, m := range messages {
		out = append(out, seenOf(w.policy, m.request, m.err))
	}
	return out
}

func seenOf(policy string, r engine.Request, err error) seen {
	one := seen{Policy: policy, Consumer: r.Consumer, Attempt: r.Attempt}
	if err != nil {
		one.Err = err.Error()
	} else {
		one.Body, one.Headers = string(r.Message.Body), headersOf(r.Message.Headers)
	}
	return one
}

// headersOf are headers in a map, their names in lower case.
func headersOf(h key.Headers) map[string]string {
	all := map[string]string{}
	switch h := h.(type) {
	case key.MapHeaders:
		return h
	case *wireHeaders:
		for _, one := range *h {
			all[one.name] = one.value
		}
	}
	return all
}

func streamedByProtobuf(data []byte) []seen {
	in := &pb.CheckStreamRequest{}
	if proto.Unmarshal(data, in) != nil || members(data) > 1 {
		return unreadable
	}
	out := []seen{{ID: in.GetId()}}
	switch in := in.GetRequest().(type) {
	case *pb.CheckStreamRequest_Check:
		out = append(out, checkByProtobuf(in.Check, "check.message"))
	case *pb.CheckStreamRequest_Batch:
		out = append(out, batchByProtobuf(in.Batch, "batch.messages")...)
	case *pb.CheckStreamRequest_Settle:
		op, err := settleOp(in.Settle.GetSettle(), "settle.settle")
		out = append(out, settleSeen(in.Settle.GetPolicy(), op, err))
	}
	return out
}

// members is how many of the things that a request on a stream may ask stand in one. For protobuf the last counts.
func members(data []byte) (n int) {
	for len(data) > 0 {
		number, kind, size := protowire.ConsumeField(data)
		if kind == protowire.BytesType && number >= 2 && number <= 4 {
			n++
		}
		data = data[size:]
	}
	return n
}

func streamedByHand(data []byte) []seen {
	r := &streamRequest{}
	limits := testLimits
	limits.MaxBatch = len(data)
	if r.read(data, limits) != nil {
		return unreadable
	}
	out := []seen{{ID: r.id}}
	switch in := r.asked.(type) {
	case *wireCheck:
		request, err := in.check(testLimits, "check.message")
		out = append(out, seenOf(in.policy, request, err))
	case *wireBatch:
		batch := batchByHand(in, "batch.messages")
		if len(batch) == 1 && batch[0].Err == unreadable[0].Err {
			return unreadable
		}
		out = append(out, batch...)
	case *wireSettle:
		op, err := in.settlement("settle.settle")
		out = append(out, settleSeen(in.policy, op, err))
	}
	return out
}

func settleSeen(policy string, op engine.Settle, err error) seen {
	if err != nil {
		return seen{Policy: policy, Err: err.Error()}
	}
	return seen{Policy: policy, Settle: op}
}

func settleOp(in *pb.Settle, field string) (engine.Settle, error) {
	verb, ok := settleVerb(in.GetVerb())
	if !ok {
		return engine.Settle{}, unknownVerb(field, in.GetVerb())
	}
	return engine.Settle{Verb: verb, Key: in.GetKey(), Token: in.GetToken()}, nil
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
	w := wireBatch{wire: wireOf(data)}
	if w.readSettles(w.whole(), len(data)) != nil {
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
