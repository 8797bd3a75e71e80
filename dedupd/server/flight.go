package server

import (
	"context"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// flights decides what arrives on a stream, batch after batch, in the same memory.
type flights struct {
	api  *grpcAPI
	ctx  context.Context //nolint:containedctx // the stream's, of which this is a part
	send func(*pb.CheckStreamResponse) error
	err  error // the first of send

	of map[string]*flight // by policy
}

// flight is what goes to one policy's store together.
type flight struct {
	settleIDs []uint64
	settles   []engine.Settle
	checkIDs  []uint64
	checks    []engine.Request
}

// maxIdlePolicies is how many policies' memory is kept for the next batch: streams are seldom
// about many, and a caller may name any.
const maxIdlePolicies = 8

// fly decides a batch and sends each its response. Settlements go first: a caller that
// completes a claim and then checks the same message again finds it completed, as it would over
// a connection of its own.
func (f *flights) fly(batch []*pb.CheckStreamRequest, send func(*pb.CheckStreamResponse) error) error {
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
	return f.err
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
func (f *flights) board(r *pb.CheckStreamRequest) {
	switch in := r.GetRequest().(type) {
	case *pb.CheckStreamRequest_Check:
		request, err := f.api.request(in.Check.GetMessage(), func() string { return "check.message" })
		if err != nil {
			f.refuse(r.GetId(), err)
			return
		}
		request.Consumer, request.Attempt = in.Check.GetConsumer(), in.Check.GetAttempt()
		to := f.to(in.Check.GetPolicy())
		to.checkIDs, to.checks = append(to.checkIDs, r.GetId()), append(to.checks, request)
	case *pb.CheckStreamRequest_Settle:
		op, err := settleOp(in.Settle.GetSettle(), "settle.settle")
		if err != nil {
			f.refuse(r.GetId(), err)
			return
		}
		to := f.to(in.Settle.GetPolicy())
		to.settleIDs, to.settles = append(to.settleIDs, r.GetId()), append(to.settles, op)
	default:
		f.refuse(r.GetId(), invalid("request", "request: absent; want check or settle"))
	}
}

func (f *flights) settle(policy string, one *flight) {
	if len(one.settles) == 0 {
		return
	}
	settled, err := f.api.settle(f.ctx, policy, one.settles)
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
	if len(one.checks) == 0 || f.err != nil {
		return // what nobody can be told of is better not marked
	}
	answers, err := f.api.check(f.ctx, policy, one.checks)
	// In one piece of memory. It is not used again: gRPC may look at a message after it was sent.
	all := make([]struct {
		item   pb.CheckStreamResponse
		result pb.CheckStreamResponse_Answer
		answer pb.Answer
	}, len(answers))
	for i, id := range one.checkIDs {
		switch {
		case err != nil:
			f.refuse(id, err)
		case answers[i].Err != nil:
			f.refuse(id, answers[i].Err)
		default:
			r := &all[i]
			fillAnswer(&r.answer, &answers[i])
			r.result.Answer = &r.answer
			r.item.Id, r.item.Response = id, &r.result
			f.respond(&r.item)
		}
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
	f.settleIDs, f.settles = f.settleIDs[:0], f.settles[:0]
	f.checkIDs, f.checks = f.checkIDs[:0], f.checks[:0]
}
