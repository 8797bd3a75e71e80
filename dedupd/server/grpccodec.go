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
	out := &pb.Answer{
		Decision:   decisionPB(a.Decision),
		Key:        a.Key,
		Token:      a.Token,
		Fence:      a.Fence,
		Lease:      durationPB(a.Lease),
		RetryAfter: durationPB(a.RetryAfter),
		Shadow:     a.Shadow,
		Reason:     a.Reason,
	}
	if seenBefore(a) {
		out.FirstSeen = timestamppb.New(a.FirstSeen)
	}
	return out
}

func batchAnswerPB(a engine.Answer) *pb.BatchAnswer {
	if a.Err != nil {
		return &pb.BatchAnswer{Result: &pb.BatchAnswer_Error{Error: errorPB(a.Err)}}
	}
	return &pb.BatchAnswer{Result: &pb.BatchAnswer_Answer{Answer: answerPB(a)}}
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

func decisionPB(d engine.Decision) pb.Decision {
	return pb.Decision(pb.Decision_value["DECISION_"+string(d)])
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
