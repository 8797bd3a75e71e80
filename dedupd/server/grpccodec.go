package server

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

func answerPB(a engine.Answer) *pb.Answer {
	out := &pb.Answer{}
	fillAnswer(out, &a)
	return out
}

// fillAnswer writes a into out, which is empty.
func fillAnswer(out *pb.Answer, a *engine.Answer) {
	out.Decision = decisions[a.Decision]
	out.Key, out.Token, out.Fence = a.Key, a.Token, a.Fence
	out.Lease, out.RetryAfter = durationPB(a.Lease), durationPB(a.RetryAfter)
	out.Shadow, out.Reason = a.Shadow, a.Reason
	if seenBefore(a) {
		out.FirstSeen = timestamppb.New(a.FirstSeen)
	}
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

func settledPB(s engine.Settled) *pb.Settled {
	return &pb.Settled{State: statePB(s.State), Lease: durationPB(s.Lease)}
}

func errorPB(err error) *pb.Error {
	e := asError(err)
	return &pb.Error{Code: string(e.Code), Message: e.Message, Field: e.Field, RetryAfter: durationPB(e.RetryAfter)}
}

// durationPB leaves out what does not apply: no lease and no wait is ever zero.
func durationPB(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

// decisions are the decisions as they travel. A test holds the table complete.
var decisions = map[engine.Decision]pb.Decision{
	engine.Fresh:      pb.Decision_DECISION_FRESH,
	engine.Duplicate:  pb.Decision_DECISION_DUPLICATE,
	engine.InProgress: pb.Decision_DECISION_IN_PROGRESS,
	engine.Conflict:   pb.Decision_DECISION_CONFLICT,
	engine.Unchecked:  pb.Decision_DECISION_UNCHECKED,
}

func statePB(state string) pb.State {
	return pb.State(pb.State_value["STATE_"+state])
}

func settleOp(in *pb.Settle, field string) (engine.Settle, error) {
	op := engine.Settle{Key: in.GetKey(), Token: in.GetToken()}
	switch in.GetVerb() {
	case pb.Verb_VERB_COMPLETE:
		op.Verb = store.Complete
	case pb.Verb_VERB_RELEASE:
		op.Verb = store.Release
	case pb.Verb_VERB_RENEW:
		op.Verb = store.Renew
	default:
		return op, &engine.Error{Code: engine.InvalidArgument, Field: field + ".verb", Message: fmt.Sprintf(
			"%s.verb: %s; want VERB_COMPLETE, VERB_RELEASE or VERB_RENEW", field, in.GetVerb())}
	}
	return op, nil
}
