package server

import (
	"errors"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/key"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// The requests that carry messages or settlements, but for those of a single settlement, are read from the wire by
// hand, into what the engine wants: protobuf's own objects of a message cost more than deciding about it. What is
// read, and what is refused, is the same as by protobuf, but that a request on a stream may not ask several things;
// FuzzBatchWire and FuzzStreamWire hold the two together.

// wire is a request as it travels, twice: for what is read as a string, and for bodies.
type wire struct {
	text string
	data []byte
}

func wireOf(data []byte) wire { return wire{string(data), data} }

// whole is all of it.
func (w *wire) whole() span { return span{0, len(w.data)} }

// held is what it holds in memory.
func (w *wire) held() int64 { return requestCost + 2*int64(len(w.data)) }

// span is a part of a request.
type span struct{ from, to int }

// The fields, each its number and its wire type. One of another type is none of ours.
const (
	varint = uint64(protowire.VarintType)
	length = uint64(protowire.BytesType)

	fieldPolicy   = 1<<3 | length
	fieldConsumer = 2<<3 | length // CheckRequest, CheckBatchRequest
	fieldMessages = 3<<3 | length // CheckBatchRequest
	fieldSettles  = 2<<3 | length // SettleBatchRequest

	fieldCheckAttempt = 3<<3 | length // CheckRequest
	fieldCheckMessage = 4<<3 | length

	fieldMessage = 1<<3 | length // BatchMessage
	fieldAttempt = 2<<3 | length
	fieldHeaders = 1<<3 | length // Message
	fieldBody    = 2<<3 | length
	fieldName    = 1<<3 | length // an entry of Message.headers
	fieldValue   = 2<<3 | length

	fieldVerb  = 1<<3 | varint // Settle
	fieldKey   = 2<<3 | length
	fieldToken = 3<<3 | length

	fieldID           = 1<<3 | varint // CheckStreamRequest
	fieldCheck        = 2<<3 | length
	fieldStreamSettle = 3<<3 | length
	fieldBatch        = 4<<3 | length
	fieldSettle       = 2<<3 | length // StreamSettle
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

// each hands over the fields of a part, one after the other.
func (w *wire) each(at span, do func(f field) error) error {
	for from := at.from; from < at.to; {
		f, next, err := w.next(from, at.to)
		if err != nil {
			return err
		}
		if err := do(f); err != nil {
			return err
		}
		from = next
	}
	return nil
}

// next reads the field that begins at from, and returns where the next one does.
func (w *wire) next(from, to int) (field, int, error) {
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
func (w *wire) string(at span) (string, error) {
	s := w.text[at.from:at.to]
	if !utf8.ValidString(s) {
		return "", errUTF8
	}
	return s, nil
}

// name is a text that may be remembered, and must not keep the whole request then.
func (w *wire) name(at span) (string, error) {
	s, err := w.string(at)
	return strings.Clone(s), err
}

// message reads a Message. Its headers are appended to pairs, until these are one more than most: then there are too many.
func (w *wire) message(at span, m *key.Message, pairs wireHeaders, most int) (wireHeaders, error) {
	err := w.each(at, func(f field) error {
		switch f.tag {
		case fieldHeaders:
			h, err := w.header(f.at)
			if err == nil && len(pairs) <= most {
				pairs = append(pairs, h)
			}
			return err
		case fieldBody:
			m.Body = w.data[f.at.from:f.at.to:f.at.to]
		}
		return nil
	})
	return pairs, err
}

// header reads an entry of Message.headers.
func (w *wire) header(at span) (h wireHeader, err error) {
	err = w.each(at, func(f field) (err error) {
		switch f.tag {
		case fieldName:
			h.name, err = w.string(f.at)
		case fieldValue:
			h.value, err = w.string(f.at)
		}
		return err
	})
	return h, err
}

// settle reads a Settle. Its verb is one of those that the protocol has, or none.
func (w *wire) settle(at span, op *engine.Settle, verb *pb.Verb) error {
	return w.each(at, func(f field) (err error) {
		switch f.tag {
		case fieldVerb:
			*verb = pb.Verb(int32(f.value))
		case fieldKey:
			op.Key, err = w.string(f.at)
		case fieldToken:
			op.Token, err = w.string(f.at)
		}
		return err
	})
}

// complete gives a message its headers. The error is of a message that dedupd does not take; field names it.
func (l Limits) complete(m *key.Message, headers *wireHeaders, field func() string) error {
	if int64(len(m.Body)) > l.MaxBody {
		return bodyTooLarge(field()+".body", l.MaxBody)
	}
	var err error
	if m.Headers, err = headers.headers(); err != nil {
		name := field() + ".headers"
		return &engine.Error{Code: engine.InvalidMessage, Field: name, Message: name + ": " + err.Error()}
	}
	return nil
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
	if len(*h) > key.MaxHeaders {
		return nil, key.ErrHeaders
	}
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
