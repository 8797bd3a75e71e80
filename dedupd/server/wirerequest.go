package server

import (
	"fmt"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/key"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// wireCheck is a CheckRequest.
type wireCheck struct {
	wire

	policy  string
	request engine.Request
	headers wireHeaders
}

// GetPolicy says, as that of generated requests, that this is about a policy.
func (w *wireCheck) GetPolicy() string { return w.policy }

func (w *wireCheck) read(at span) error {
	return w.each(at, func(f field) (err error) {
		switch f.tag {
		case fieldPolicy:
			w.policy, err = w.name(f.at)
		case fieldConsumer:
			w.request.Consumer, err = w.string(f.at)
		case fieldCheckAttempt:
			w.request.Attempt, err = w.string(f.at)
		case fieldCheckMessage:
			w.headers, err = w.message(f.at, &w.request.Message, w.headers, key.MaxHeaders)
		}
		return err
	})
}

// check is what is asked. field names the message.
func (w *wireCheck) check(limits Limits, field string) (engine.Request, error) {
	err := limits.complete(&w.request.Message, &w.headers, func() string { return field })
	return w.request, err
}

// wireSettle is a StreamSettle.
type wireSettle struct {
	wire

	policy string
	op     engine.Settle
	verb   pb.Verb
}

func (w *wireSettle) read(at span) error {
	return w.each(at, func(f field) (err error) {
		switch f.tag {
		case fieldPolicy:
			w.policy, err = w.name(f.at)
		case fieldSettle:
			err = w.settle(f.at, &w.op, &w.verb)
		}
		return err
	})
}

// settlement is what is asked.
func (w *wireSettle) settlement(field string) (engine.Settle, error) {
	verb, ok := settleVerb(w.verb)
	if !ok {
		return w.op, unknownVerb(field, w.verb)
	}
	w.op.Verb = verb
	return w.op, nil
}

// wireBatch is a CheckBatchRequest or a SettleBatchRequest: a policy and a list.
type wireBatch struct {
	wire

	policy, consumer string

	count    int    // of the list's elements
	elements []span // those that a batch may have, still encoded
}

// GetPolicy says, as that of generated requests, that this is about a policy.
func (w *wireBatch) GetPolicy() string { return w.policy }

// readChecks reads a CheckBatchRequest. What is beyond most elements is counted and not kept: an
// element may be two bytes long, and its place in memory is not.
func (w *wireBatch) readChecks(at span, most int) error {
	return w.each(at, func(f field) (err error) {
		switch f.tag {
		case fieldPolicy:
			w.policy, err = w.name(f.at)
		case fieldConsumer:
			w.consumer, err = w.string(f.at)
		case fieldMessages:
			w.element(f.at, most)
		}
		return err
	})
}

// readSettles is readChecks for a SettleBatchRequest.
func (w *wireBatch) readSettles(at span, most int) error {
	return w.each(at, func(f field) (err error) {
		switch f.tag {
		case fieldPolicy:
			w.policy, err = w.name(f.at)
		case fieldSettles:
			w.element(f.at, most)
		}
		return err
	})
}

func (w *wireBatch) element(at span, most int) {
	if w.count++; w.count <= most {
		w.elements = append(w.elements, at)
	}
}

// checks reads the list of a CheckBatchRequest, whose name is for errors. The error is of one that is none; what is
// wrong with a single message stands there.
func (w *wireBatch) checks(limits Limits, name string) ([]batchMessage, error) {
	out := make([]batchMessage, len(w.elements))
	headers := make([]wireHeaders, len(w.elements))
	pairs := make(wireHeaders, 0, len(w.elements)) // of all messages
	for i, element := range w.elements {
		begin := len(pairs)
		r := &out[i].request
		r.Consumer = w.consumer
		var err error
		if pairs, err = w.batchMessage(element, r, pairs); err != nil {
			return nil, err
		}
		headers[i] = pairs[begin:len(pairs):len(pairs)]
		out[i].err = limits.complete(&r.Message, &headers[i], func() string { return fmt.Sprintf("%s[%d].message", name, i) })
	}
	return out, nil
}

// batchMessage reads a BatchMessage. Its headers are appended to pairs.
func (w *wireBatch) batchMessage(at span, r *engine.Request, pairs wireHeaders) (wireHeaders, error) {
	most := len(pairs) + key.MaxHeaders
	err := w.each(at, func(f field) (err error) {
		switch f.tag {
		case fieldMessage:
			pairs, err = w.message(f.at, &r.Message, pairs, most)
		case fieldAttempt:
			r.Attempt, err = w.string(f.at)
		}
		return err
	})
	return pairs, err
}

// settles reads the list of a SettleBatchRequest.
func (w *wireBatch) settles() ([]engine.Settle, error) {
	out := make([]engine.Settle, len(w.elements))
	verbs := make([]pb.Verb, len(w.elements))
	for i, element := range w.elements {
		if err := w.settle(element, &out[i], &verbs[i]); err != nil {
			return nil, err
		}
	}
	for i, verb := range verbs {
		known, ok := settleVerb(verb)
		if !ok {
			return nil, unknownVerb(fmt.Sprintf("settles[%d]", i), verb)
		}
		out[i].Verb = known
	}
	return out, nil
}
