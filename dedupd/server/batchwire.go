package server

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/key"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// The requests of the two batch calls are read from the wire by hand, into what the engine
// wants: protobuf's own objects of a message cost more than deciding about it. What is read,
// and what is refused, is the same as by protobuf; FuzzBatchWire holds the two together.

// wireBatch is a CheckBatchRequest or a SettleBatchRequest as it travels: a policy and a list.
type wireBatch struct {
	policy, consumer string

	count    int    // of the list's elements
	elements []span // those that a batch may have, still encoded

	// The request, twice: for what is read as a string, and for bodies.
	text string
	data []byte
}

// span is a part of the request.
type span struct{ from, to int }

// GetPolicy says, as that of generated requests, that this is about a policy.
func (w *wireBatch) GetPolicy() string { return w.policy }

// held is what the request holds in memory.
func (w *wireBatch) held() int64 { return RequestCost + 2*int64(len(w.text)) }

// The fields, each its number and its wire type. One of another type is none of ours.
const (
	varint = uint64(protowire.VarintType)
	length = uint64(protowire.BytesType)

	fieldPolicy   = 1<<3 | length
	fieldConsumer = 2<<3 | length // CheckBatchRequest
	fieldMessages = 3<<3 | length
	fieldSettles  = 2<<3 | length // SettleBatchRequest

	fieldMessage = 1<<3 | length // BatchMessage
	fieldAttempt = 2<<3 | length
	fieldHeaders = 1<<3 | length // Message
	fieldBody    = 2<<3 | length
	fieldName    = 1<<3 | length // an entry of Message.headers
	fieldValue   = 2<<3 | length

	fieldVerb  = 1<<3 | varint // Settle
	fieldKey   = 2<<3 | length
	fieldToken = 3<<3 | length
)

// field is one field of a message: its place, or its value if it is a varint.
type field struct {
	tag   uint64
	at    span
	value uint64
}

var (
	errWire = errors.New("not a message of protobuf")
	errUTF8 = errors.New("a string is not valid UTF-8")
)

// next reads the field that begins at from, and returns where the next one does.
func (w *wireBatch) next(from, to int) (field, int, error) {
	number, kind, n := protowire.ConsumeTag(w.data[from:to])
	if n < 0 || number > protowire.MaxValidNumber {
		return field{}, 0, errWire
	}
	from += n
	f := field{tag: protowire.EncodeTag(number, kind)}
	switch kind {
	case protowire.BytesType:
		var content []byte
		content, n = protowire.ConsumeBytes(w.data[from:to])
		f.at = span{from + n - len(content), from + n}
	case protowire.VarintType:
		f.value, n = protowire.ConsumeVarint(w.data[from:to])
	default:
		n = protowire.ConsumeFieldValue(number, kind, w.data[from:to])
	}
	if n < 0 {
		return field{}, 0, errWire
	}
	return f, from + n, nil
}

// string is the text at a place.
func (w *wireBatch) string(at span) (string, error) {
	s := w.text[at.from:at.to]
	if !utf8.ValidString(s) {
		return "", errUTF8
	}
	return s, nil
}

// read reads the request as a whole. What is beyond most elements is counted and not kept: an element may be two
// bytes long, and its place in memory is not.
func (w *wireBatch) read(data []byte, settles bool, most int) error {
	w.data, w.text = data, string(data)
	for from := 0; from < len(data); {
		f, next, err := w.next(from, len(data))
		if err != nil {
			return err
		}
		from = next
		switch {
		case f.tag == fieldPolicy:
			// A policy's name may be remembered, and must not keep the whole request then.
			w.policy, err = w.string(f.at)
			w.policy = strings.Clone(w.policy)
		case settles && f.tag == fieldSettles, !settles && f.tag == fieldMessages:
			if w.count++; w.count <= most {
				w.elements = append(w.elements, f.at)
			}
		case f.tag == fieldConsumer && !settles:
			w.consumer, err = w.string(f.at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// messages reads the list of a CheckBatchRequest. The error is of one that is none; what is
// wrong with a single message stands there.
func (w *wireBatch) messages(maxBody int64) ([]batchMessage, error) {
	out := make([]batchMessage, len(w.elements))
	headers := make([]wireHeaders, len(w.elements))
	pairs := make([]wireHeader, 0, len(w.elements)) // of all messages
	for i, element := range w.elements {
		begin := len(pairs)
		var err error
		if pairs, err = w.batchMessage(element, &out[i].request, pairs); err != nil {
			return nil, err
		}
		headers[i] = pairs[begin:len(pairs):len(pairs)]
		r := &out[i].request
		r.Consumer = w.consumer
		if r.Message.Headers, err = headers[i].headers(); err != nil {
			name := fmt.Sprintf("messages[%d].message.headers", i)
			out[i].err = &engine.Error{Code: engine.InvalidMessage, Field: name, Message: name + ": " + err.Error()}
		}
		if int64(len(r.Message.Body)) > maxBody {
			out[i].err = bodyTooLarge(fmt.Sprintf("messages[%d].message.body", i), maxBody)
		}
	}
	return out, nil
}

// batchMessage reads a BatchMessage. Its headers are appended to pairs.
func (w *wireBatch) batchMessage(at span, r *engine.Request, pairs []wireHeader) ([]wireHeader, error) {
	for from := at.from; from < at.to; {
		f, next, err := w.next(from, at.to)
		if err != nil {
			return nil, err
		}
		from = next
		switch f.tag {
		case fieldMessage:
			pairs, err = w.message(f.at, &r.Message, pairs)
		case fieldAttempt:
			r.Attempt, err = w.string(f.at)
		}
		if err != nil {
			return nil, err
		}
	}
	return pairs, nil
}

// message reads a Message.
func (w *wireBatch) message(at span, m *key.Message, pairs []wireHeader) ([]wireHeader, error) {
	for from := at.from; from < at.to; {
		f, next, err := w.next(from, at.to)
		if err != nil {
			return nil, err
		}
		from = next
		switch f.tag {
		case fieldHeaders:
			h, err := w.header(f.at)
			if err != nil {
				return nil, err
			}
			pairs = append(pairs, h)
		case fieldBody:
			m.Body = w.data[f.at.from:f.at.to:f.at.to]
		}
	}
	return pairs, nil
}

// header reads an entry of Message.headers.
func (w *wireBatch) header(at span) (wireHeader, error) {
	var h wireHeader
	for from := at.from; from < at.to; {
		f, next, err := w.next(from, at.to)
		if err != nil {
			return h, err
		}
		from = next
		switch f.tag {
		case fieldName:
			h.name, err = w.string(f.at)
		case fieldValue:
			h.value, err = w.string(f.at)
		}
		if err != nil {
			return h, err
		}
	}
	return h, nil
}

// settles reads the list of a SettleBatchRequest.
func (w *wireBatch) settles() ([]engine.Settle, error) {
	out := make([]engine.Settle, len(w.elements))
	verbs := make([]pb.Verb, len(w.elements))
	for i, element := range w.elements {
		for from := element.from; from < element.to; {
			f, next, err := w.next(from, element.to)
			if err != nil {
				return nil, err
			}
			from = next
			switch f.tag {
			case fieldVerb:
				verbs[i] = pb.Verb(int32(f.value))
			case fieldKey:
				out[i].Key, err = w.string(f.at)
			case fieldToken:
				out[i].Token, err = w.string(f.at)
			}
			if err != nil {
				return nil, err
			}
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

// wireHeaders are the headers of one message as they came.
type wireHeaders []wireHeader

type wireHeader struct{ name, value string }

// Get implements key.Headers.
func (h *wireHeaders) Get(lowerName string) (string, bool) {
	for i := range *h {
		if (*h)[i].name == lowerName {
			return (*h)[i].value, true
		}
	}
	return "", false
}

// headers are h itself if they are few, of different names and these in lower case, as they
// mostly are; else a map, where the last of a name counts.
func (h *wireHeaders) headers() (key.Headers, error) {
	const few = 16
	plain := len(*h) <= few
	for i := 0; plain && i < len(*h); i++ {
		name := (*h)[i].name
		plain = strings.ToLower(name) == name
		for _, before := range (*h)[:i] {
			plain = plain && before.name != name
		}
	}
	if plain {
		return h, nil
	}
	all := make(map[string]string, len(*h))
	for _, one := range *h {
		all[one.name] = one.value
	}
	return key.NewMapHeaders(all)
}
