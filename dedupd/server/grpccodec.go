package server

import (
	"fmt"
	"strings"
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
	out.Shadow, out.Reason = a.Shadow, utf8Text(a.Reason)
	if seenBefore(a) {
		out.FirstSeen = timestamppb.New(a.FirstSeen)
	}
}

func settledPB(s engine.Settled) *pb.Settled {
	return &pb.Settled{State: statePB(s.State), Lease: durationPB(s.Lease)}
}

func errorPB(err error) *pb.Error {
	e := asError(err)
	return &pb.Error{Code: string(e.Code), Message: utf8Text(e.Message), Field: utf8Text(e.Field), RetryAfter: durationPB(e.RetryAfter)}
}

// utf8Text is a text that may quote a message: protobuf refuses to carry what is not UTF-8, and
// one such text would keep a whole batch from being answered.
func utf8Text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

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

// states are the states by their names, without the prefix that the protocol gives them.
var states = func() map[string]pb.State {
	named := make(map[string]pb.State, len(pb.State_value))
	for name, value := range pb.State_value {
		named[strings.TrimPrefix(name, "STATE_")] = pb.State(value)
	}
	return named
}()

func statePB(state string) pb.State { return states[state] }

func settleVerb(in pb.Verb) (verb store.Verb, known bool) {
	switch in {
	case pb.Verb_VERB_COMPLETE:
		return store.Complete, true
	case pb.Verb_VERB_RELEASE:
		return store.Release, true
	case pb.Verb_VERB_RENEW:
		return store.Renew, true
	default:
		return 0, false
	}
}

func unknownVerb(field string, verb pb.Verb) error {
	return &engine.Error{Code: engine.InvalidArgument, Field: field + ".verb", Message: fmt.Sprintf(
		"%s.verb: %s; want VERB_COMPLETE, VERB_RELEASE or VERB_RENEW", field, verb)}
}
