package server

import (
	"errors"
	"fmt"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/message"
)

// batch is the body of check:batch.
type batch struct {
	consumer string
	messages []batchMessage
}

// batchMessage is one message of a batch. err is set where the message alone is at fault.
type batchMessage struct {
	request engine.Request
	named   bool // the message names its consumer itself
	err     error
}

// settleBody is the body of complete, release and renew.
type settleBody struct{ key, token string }

func invalid(field, format string, args ...any) error {
	return &engine.Error{Code: engine.InvalidArgument, Field: field, Message: fmt.Sprintf(format, args...)}
}

// refused is what is said to a caller whose JSON is at fault.
func refused(err error) error {
	var e *message.Error
	if errors.As(err, &e) {
		return invalid(e.Field, "%s", e.Text)
	}
	return err
}

// decodeBatch reads the body of check:batch.
func decodeBatch(data []byte, limits Limits) (batch, error) {
	var b batch
	if err := message.Validate(data); err != nil {
		return b, refused(err)
	}
	seen := false
	err := message.EachMember(data, "", func(name string, value []byte) error {
		var err error
		switch name {
		case "consumer":
			b.consumer, err = message.String(value, name)
		case "messages":
			seen = true
			b.messages, err = decodeMessages(value, limits)
		default:
			err = message.UnknownField(name, "consumer, messages")
		}
		return err
	})
	if err == nil && !seen {
		err = invalid("messages", "messages: absent; want an array of messages")
	}
	for i := range b.messages {
		if m := &b.messages[i]; !m.named {
			m.request.Consumer = b.consumer
		}
	}
	return b, refused(err)
}

func decodeMessages(data []byte, limits Limits) ([]batchMessage, error) {
	var messages []batchMessage
	err := message.EachElement(data, "messages", func(path string, value []byte) error {
		if len(messages) == limits.MaxBatch {
			return &engine.Error{
				Code: engine.TooLarge, Field: "messages",
				Message: fmt.Sprintf("messages: more than %d; send them in several batches", limits.MaxBatch),
			}
		}
		m, err := message.Decode(value, path)
		if err != nil {
			return err
		}
		in := batchMessage{request: engine.Request{Attempt: m.Attempt, Message: m.Message}}
		if m.Consumer != nil {
			in.request.Consumer, in.named = *m.Consumer, true
		}
		if int64(len(m.Body)) > limits.MaxBody {
			in.err = bodyTooLarge(path+".body", limits.MaxBody)
		}
		messages = append(messages, in)
		return nil
	})
	return messages, err
}

// decodeSettle reads the body of complete, release and renew.
func decodeSettle(data []byte) (settleBody, error) {
	var s settleBody
	if err := message.Validate(data); err != nil {
		return s, refused(err)
	}
	err := message.EachMember(data, "", func(name string, value []byte) error {
		var err error
		switch name {
		case "key":
			s.key, err = message.String(value, name)
		case "token":
			s.token, err = message.String(value, name)
		default:
			err = message.UnknownField(name, "key, token")
		}
		return err
	})
	return s, refused(err)
}
