package message_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/dedupd/dedup-operator/dedupd/message"
)

func decode(text string) (message.Message, error) {
	if err := message.Validate([]byte(text)); err != nil {
		return message.Message{}, err
	}
	return message.Decode([]byte(text), "")
}

func TestBodiesComeAsTheyAreWritten(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                             "",
		`{"body": {"b":1, "a" : 1.0} }`:  `{"b":1, "a" : 1.0}`,
		`{"body":null}`:                  "null",
		`{"bodyText":"a\n\ud83d\ude00"}`: "a\n😀",
		`{"bodyBase64":"AP8="}`:          "\x00\xff",
	} {
		m, err := decode(text)
		if err != nil || string(m.Body) != want {
			t.Errorf("%s: body %q, error %v; want %q", text, m.Body, err, want)
		}
	}
}

// Each of these is a message to encoding/json, and to it some of them are the same one.
func TestWhatTwoReadersMightReadDifferentlyIsRefused(t *testing.T) {
	for text, field := range map[string]string{
		`{"Headers":{}}`:                     "Headers",
		`{"attempt":"a","attempt":"b"}`:      "attempt",
		`{"headers":{"id":"a","id":"b"}}`:    "headers.id",
		`{"headers":{"id":"a","ID":"b"}}`:    "headers",
		`{"headers":{"id":"\ud800"}}`:        "headers.id",
		`{"headers":{"\udc00":"a"}}`:         `headers."\udc00"`,
		`{"attempt":"\ud800\ud800"}`:         "attempt",
		`{"bodyText":"a","bodyBase64":"YQ"}`: "bodyBase64",
		`{"bodyText":"a","body":"a"}`:        "",
		"{\"bodyText\":\"\xff\"}":            "body",
		`{"attempt":null}`:                   "attempt",
		`null`:                               "body",
	} {
		_, err := decode(text)
		var e *message.Error
		if !errors.As(err, &e) {
			t.Errorf("%s: error %v, want a *message.Error", text, err)
			continue
		}
		if e.Field != field || !strings.Contains(e.Text, " ") {
			t.Errorf("%s: field %q, text %q; want field %q and a sentence", text, e.Field, e.Text, field)
		}
	}
}
