package server

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/key"
)

// The bodies of requests are read strictly and without encoding/json's leniency: it takes
// names in any case, the last of two members of one name, and U+FFFD for what is no Unicode.
// Each of these can make two identifiers one, and so a fresh message a duplicate.

// batch is the body of check:batch.
type batch struct {
	consumer string
	messages []batchMessage
}

// batchMessage is one message of a batch. err is set where the message alone is at fault.
type batchMessage struct {
	request engine.Request
	err     error
}

// settleBody is the body of complete, release and renew.
type settleBody struct{ key, token string }

func invalid(field, format string, args ...any) error {
	return &engine.Error{Code: engine.InvalidArgument, Field: field, Message: fmt.Sprintf(format, args...)}
}

// checkJSON makes sure that data is one JSON text in UTF-8, which the rest of this file
// relies on.
func checkJSON(data []byte) error {
	if i := invalidUTF8(data); i >= 0 {
		return invalid("body", "body at offset %d: not UTF-8; send binary payloads as bodyBase64", i)
	}
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			// Its offset counts the byte that is wrong.
			return invalid("body", "body at offset %d: not JSON: %s", max(syntax.Offset-1, 0), syntax.Error())
		}
		return invalid("body", "body: not JSON: %s", err.Error())
	}
	return nil
}

func invalidUTF8(data []byte) int {
	if utf8.Valid(data) {
		return -1
	}
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size <= 1 {
			return i
		}
		i += size
	}
	return -1
}

// decodeBatch reads the body of check:batch.
func decodeBatch(data []byte, limits Limits) (batch, error) {
	var b batch
	if err := checkJSON(data); err != nil {
		return b, err
	}
	seen := false
	err := eachMember(data, "", func(name string, value []byte) error {
		var err error
		switch name {
		case "consumer":
			b.consumer, err = decodeString(value, name)
		case "messages":
			seen = true
			b.messages, err = decodeMessages(value, limits)
		default:
			err = unknownField(name, "consumer, messages")
		}
		return err
	})
	if err == nil && !seen {
		err = invalid("messages", "messages: absent; want an array of messages")
	}
	for i := range b.messages {
		b.messages[i].request.Consumer = b.consumer
	}
	return b, err
}

func decodeMessages(data []byte, limits Limits) ([]batchMessage, error) {
	var messages []batchMessage
	err := eachElement(data, "messages", func(path string, value []byte) error {
		if len(messages) == limits.MaxBatch {
			return &engine.Error{
				Code: engine.TooLarge, Field: "messages",
				Message: fmt.Sprintf("messages: more than %d; send them in several batches", limits.MaxBatch),
			}
		}
		m, err := decodeMessage(value, path)
		if err == nil && int64(len(m.request.Message.Body)) > limits.MaxBody {
			m.err = bodyTooLarge(path+".body", limits.MaxBody)
		}
		messages = append(messages, m)
		return err
	})
	return messages, err
}

func decodeMessage(data []byte, path string) (batchMessage, error) {
	var m batchMessage
	bodies := 0
	err := eachMember(data, path, func(name string, value []byte) error {
		var err error
		var text string
		field := path + "." + name
		switch name {
		case "headers":
			m.request.Message.Headers, err = decodeHeaders(value, field)
		case "attempt":
			m.request.Attempt, err = decodeString(value, field)
		case "body":
			bodies++
			m.request.Message.Body = value
		case "bodyText":
			bodies++
			text, err = decodeString(value, field)
			m.request.Message.Body = []byte(text)
		case "bodyBase64":
			bodies++
			m.request.Message.Body, err = decodeBase64(value, field)
		default:
			err = unknownField(field, "headers, body, bodyText, bodyBase64, attempt")
		}
		return err
	})
	if err == nil && bodies > 1 {
		err = invalid(path, "%s: one of body, bodyText and bodyBase64, not %d of them", path, bodies)
	}
	if m.request.Message.Headers == nil {
		m.request.Message.Headers = key.MapHeaders{}
	}
	return m, err
}

func decodeHeaders(data []byte, path string) (key.Headers, error) {
	headers := map[string]string{}
	err := eachMember(data, path, func(name string, value []byte) error {
		s, err := decodeString(value, path+"."+name)
		headers[name] = s
		return err
	})
	if err != nil {
		return nil, err
	}
	h, err := key.NewMapHeaders(headers)
	if err != nil {
		return nil, invalid(path, "%s: %s", path, err.Error())
	}
	return h, nil
}

// decodeSettle reads the body of complete, release and renew.
func decodeSettle(data []byte) (settleBody, error) {
	var s settleBody
	if err := checkJSON(data); err != nil {
		return s, err
	}
	err := eachMember(data, "", func(name string, value []byte) error {
		var err error
		switch name {
		case "key":
			s.key, err = decodeString(value, name)
		case "token":
			s.token, err = decodeString(value, name)
		default:
			err = unknownField(name, "key, token")
		}
		return err
	})
	return s, err
}

func unknownField(field, known string) error {
	return invalid(field, "%s: unknown field; known here: %s", field, known)
}

// decodeString reads a JSON string. Half of a surrogate pair is no character: it is refused,
// since all such halves would become the same U+FFFD.
func decodeString(data []byte, path string) (string, error) {
	if data[0] != '"' {
		return "", invalid(path, "%s: want a string, got %s", path, kindOf(data))
	}
	if loneSurrogate(data) {
		return "", invalid(path, `%s: a \u escape of half a surrogate pair is no character`, path)
	}
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return "", invalid(path, "%s: %s", path, err.Error())
	}
	return s, nil
}

func decodeBase64(data []byte, path string) ([]byte, error) {
	s, err := decodeString(data, path)
	if err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, invalid(path, "%s: want standard base64 with padding: %s", path, err.Error())
	}
	return b, nil
}

// loneSurrogate says whether a valid JSON string has a \u escape of half a surrogate pair.
func loneSurrogate(quoted []byte) bool {
	for {
		i := bytes.IndexByte(quoted, '\\')
		if i < 0 {
			return false
		}
		quoted = quoted[i:]
		switch u := escaped(quoted); {
		case u >= 0xD800 && u < 0xDC00:
			if low := escaped(quoted[6:]); low < 0xDC00 || low > 0xDFFF {
				return true
			}
			quoted = quoted[12:]
		case u >= 0xDC00 && u < 0xE000:
			return true
		default:
			quoted = quoted[2:]
		}
	}
}

// escaped is the code unit of the \u escape at the start of s, -1 if there is none.
func escaped(s []byte) int {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return -1
	}
	u := 0
	for _, c := range s[2:6] {
		switch {
		case c >= '0' && c <= '9':
			u = u<<4 | int(c-'0')
		default:
			u = u<<4 | int(c|0x20-'a'+10)
		}
	}
	return u
}
