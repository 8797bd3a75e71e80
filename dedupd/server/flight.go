package server

import (
	"context"
	"errors"

	"google.golang.org/grpc/metadata"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// flights decides what arrives on a stream, batch after batch, in the same memory.
type flights struct {
	api  *grpcAPI
	ctx  context.Context //nolint:containedctx // the stream's, of which this is a part
	send func(*pb.CheckStreamResponse) error
	err  error // the first of send
	ends error // why the stream ends when what has arrived is answered

	of map[string]*flight // by policy
}

// flight is what goes to one policy's store together.
type flight struct {
	settleIDs []uint64
	settles   []engine.Settle

	checks []engine.Request
	askers []asker // whose checks are whose, in their order
}

// asker is a request on the stream that asks for checks.
type asker struct {
	id uint64

	// batch is the response to a batch: its answers are nil where they are to come, each of the
	// next check, and set where a message was at fault. Nil: it asks for the next check alone.
	batch *pb.CheckBatchResponse
}

// maxIdlePolicies is how many policies' memory is kept for the next batch: streams are seldom
// about many, and a caller may name any.
const maxIdlePolicies = 8

// fly decides a batch and sends each its response. Settlements go first: a caller that
// completes a claim and then checks the same message again finds it completed, as it would over
// a connection of its own.
func (f *flights) fly(batch []*streamRequest, send func(*pb.CheckStreamResponse) error) error {
	f.send = send
	for _, r := range batch {
		f.board(r)
	}
	for policy, one := range f.of {
		f.settle(policy, one)
		f.check(policy, one)
		one.clear()
	}
	if len(f.of) > maxIdlePolicies {
		clear(f.of)
	}
	if f.err != nil {
		return f.err
	}
	return f.ends
}

// to is the flight to a policy's store.
func (f *flights) to(policy string) *flight {
	one := f.of[policy]
	if one == nil {
		one = &flight{}
		if f.of == nil {
			f.of = map[string]*flight{}
		}
		f.of[policy] = one
	}
	return one
}

// board puts a request on its flight, or answers it where it is at fault.
func (f *flights) board(r *streamRequest) {
	if r.refused != nil {
		f.refuse(r.id, r.refused)
		return
	}
	switch in := r.asked.(type) {
	case *wireCheck:
		request, err := in.check(f.api.Limits, "check.message")
		if err != nil {
			f.refuse(r.id, err)
			return
		}
		to := f.to(in.policy)
		to.askers, to.checks = append(to.askers, asker{id: r.id}), append(to.checks, request)
	case *wireBatch:
		messages, err := in.checks(f.api.Limits, "batch.messages")
		if err != nil {
			f.refuse(r.id, invalid("batch", "batch: %s", err))
			return
		}
		f.boardBatch(r.id, in.policy, messages)
	case *wireSettle:
		op, err := in.settlement("settle.settle")
		if err != nil {
			f.refuse(r.id, err)
			return
		}
		to := f.to(in.policy)
		to.settleIDs, to.settles = append(to.settleIDs, r.id), append(to.settles, op)
	default:
		f.refuse(r.id, invalid("request", "request: absent; want check, batch or settle"))
	}
}

func (f *flights) boardBatch(id uint64, policy string, messages []batchMessage) {
	to := f.to(policy)
	response := &pb.CheckBatchResponse{Answers: make([]*pb.BatchAnswer, len(messages))}
	for i, m := range messages {
		if m.err != nil {
			response.Answers[i] = &pb.BatchAnswer{Result: &pb.BatchAnswer_Error{Error: errorPB(m.err)}}
			continue
		}
		to.checks = append(to.checks, m.request)
	}
	to.askers = append(to.askers, asker{id: id, batch: response})
}

func (f *flights) settle(policy string, one *flight) {
	if len(one.settles) == 0 {
		return
	}
	settled, err := f.api.settle(f.ctx, policy, one.settles)
	f.endIf(err)
	for i, id := range one.settleIDs {
		switch {
		case err != nil:
			f.refuse(id, err)
		case settled[i].Err != nil:
			f.refuse(id, settled[i].Err)
		default:
			f.respond(&pb.CheckStreamResponse{
				Id: id, Response: &pb.CheckStreamResponse_Settled{Settled: settledPB(settled[i])},
			})
		}
	}
}

func (f *flights) check(policy string, one *flight) {
	if len(one.askers) == 0 || f.err != nil {
		return // what nobody can be told of is better not marked
	}
	answers, err := f.api.check(f.ctx, policy, one.checks)
	f.endIf(err)
	for _, to := range one.askers {
		switch {
		case err != nil:
			f.refuse(to.id, err)
		case to.batch == nil:
			f.answer(to.id, &answers[0])
			answers = answers[1:]
		default:
			answers = answers[fillBatch(to.batch, answers):]
			f.respond(&pb.CheckStreamResponse{Id: to.id, Response: &pb.CheckStreamResponse_Batch{Batch: to.batch}})
		}
	}
}

// fillBatch writes the first of answers into the places of a batch that wait for one, and
// returns how many those are.
func fillBatch(batch *pb.CheckBatchResponse, answers []engine.Answer) int {
	n := 0
	for _, a := range batch.GetAnswers() {
		if a == nil {
			n++
		}
	}
	filled := batchAnswersPB(answers[:n])
	for i, a := range batch.GetAnswers() {
		if a == nil {
			batch.Answers[i], filled = filled[0], filled[1:]
		}
	}
	return n
}

// batchAnswersPB makes the answers of a batch in one piece of memory.
func batchAnswersPB(answers []engine.Answer) []*pb.BatchAnswer {
	all := make([]struct {
		item   pb.BatchAnswer
		result pb.BatchAnswer_Answer
		answer pb.Answer
	}, len(answers))
	out := make([]*pb.BatchAnswer, len(answers))
	for i := range answers {
		one := &all[i]
		out[i] = &one.item
		if err := answers[i].Err; err != nil {
			one.item.Result = &pb.BatchAnswer_Error{Error: errorPB(err)}
			continue
		}
		fillAnswer(&one.answer, &answers[i])
		one.result.Answer = &one.answer
		one.item.Result = &one.result
	}
	return out
}

func (f *flights) answer(id uint64, a *engine.Answer) {
	if a.Err != nil {
		f.refuse(id, a.Err)
		return
	}
	// In one piece of memory. It is not used again: gRPC may look at a message after it was sent.
	r := &struct {
		item   pb.CheckStreamResponse
		result pb.CheckStreamResponse_Answer
		answer pb.Answer
	}{}
	fillAnswer(&r.answer, a)
	r.result.Answer = &r.answer
	r.item.Id, r.item.Response = id, &r.result
	f.respond(&r.item)
}

// endIf has the stream end, once what went together is answered, if the token that it was opened
// with is not accepted: it cannot show another.
func (f *flights) endIf(err error) {
	var e *engine.Error
	if errors.As(err, &e) && e.Code == CodeUnauthenticated && len(metadata.ValueFromIncomingContext(f.ctx, authorization)) > 0 {
		f.ends = grpcError(err)
	}
}

func (f *flights) refuse(id uint64, err error) {
	f.respond(&pb.CheckStreamResponse{Id: id, Response: &pb.CheckStreamResponse_Error{Error: errorPB(err)}})
}

// respond sends a response, unless the stream is broken already.
func (f *flights) respond(r *pb.CheckStreamResponse) {
	if f.err == nil {
		f.err = f.send(r)
	}
}

// clear makes the flight ready for the next batch, and forgets what it refers to.
func (f *flight) clear() {
	clear(f.settles)
	clear(f.checks)
	clear(f.askers)
	f.settleIDs, f.settles = f.settleIDs[:0], f.settles[:0]
	f.checks, f.askers = f.checks[:0], f.askers[:0]
}
