package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"unicode/utf8"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/key"
)

var generous = Limits{MaxBody: 1 << 20, MaxBatch: 1000, MaxBatchBytes: 1 << 24, MaxHeader: 1 << 16}

func TestDecodeBatchKeepsBodiesByteForByte(t *testing.T) {
	b, err := decodeBatch([]byte(` { "messages" : [ { "body" : { "a" : [ 1, "}\"]" ] , "a":2} , "headers":{"K":"\u0041\ud83d\ude00"} } ,
		{"body":null},{"body":"s"},{"body":-1.50e+3},{"bodyText":"s\n"},{"bodyBase64":"AP8="},{} ] , "consumer":"c" } `), generous)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`{ "a" : [ 1, "}\"]" ] , "a":2}`, `null`, `"s"`, `-1.50e+3`, "s\n", "\x00\xff", ""}
	if len(b.messages) != len(want) {
		t.Fatalf("%d messages, want %d", len(b.messages), len(want))
	}
	for i, m := range b.messages {
		if string(m.request.Message.Body) != want[i] || m.request.Consumer != "c" {
			t.Errorf("message %d: body %q of %q, want %q of c", i, m.request.Message.Body, m.request.Consumer, want[i])
		}
	}
	if h, ok := b.messages[0].request.Message.Headers.Get("k"); !ok || h != "A😀" {
		t.Errorf("header %q %t", h, ok)
	}
}

func TestDecodeBatchLetsAMessageNameItsConsumer(t *testing.T) {
	b, err := decodeBatch([]byte(`{"consumer":"all","messages":[{},{"consumer":"own"},{"consumer":""}]}`), generous)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"all", "own", ""} {
		if got := b.messages[i].request.Consumer; got != want {
			t.Errorf("message %d is for %q, want %q", i, got, want)
		}
	}
}

// FuzzDecodeBatch holds the decoder to encoding/json: it panics on nothing, it accepts only
// what encoding/json accepts under the same names, and then it reads the same.
func FuzzDecodeBatch(f *testing.F) {
	for _, seed := range []string{
		`{"consumer":"c","messages":[{"headers":{"a":"b"},"body":{"x":[1,2,{"y":"z"}]},"attempt":"t"}]}`,
		`{"messages":[{"bodyText":"\ud83d\ude00"},{"bodyBase64":"AP8="}]}`,
		`{"messages":[{"body":"\"}]"}, {"body":{"\\":"\\\""}}]}`,
		`{"messages":[{"headers":{"a":"\ud800"}}]}`, `{"messages":[{"headers":{"a":"\udc00\ud800"}}]}`,
		`{"messages":[{"body":1,"body":2}]}`, `{"messages":[{"bodyBase64":"AP8"}]}`,
		`{"messages":[{"headers":{"A":"1","a":"1"}}]}`, `{"messages":{}}`, `{"messages":[null]}`,
		"{\"messages\":[{\"bodyText\":\"\xff\"}]}", ` [1] `, `"`, `{`, `{"a"`, `null`, ``, ` `, `{"messages":[ ]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := decodeBatch(data, generous)
		if err != nil {
			var e *engine.Error
			if !errors.As(err, &e) || e.Message == "" {
				t.Fatalf("%q: an error that says nothing: %v", data, err)
			}
			return
		}
		var oracle struct {
			Consumer string `json:"consumer"`
			Messages []struct {
				Headers    map[string]string `json:"headers"`
				Body       json.RawMessage   `json:"body"`
				BodyText   *string           `json:"bodyText"`
				BodyBase64 []byte            `json:"bodyBase64"`
				Attempt    string            `json:"attempt"`
				Consumer   *string           `json:"consumer"`
			} `json:"messages"`
		}
		decoder := json.NewDecoder(bytes.NewReader(data))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&oracle); err != nil {
			t.Fatalf("%q: accepted, where encoding/json says %v", data, err)
		}
		if b.consumer != oracle.Consumer || len(b.messages) != len(oracle.Messages) || !utf8.Valid(data) {
			t.Fatalf("%q: %+v, want %+v", data, b, oracle)
		}
		for i, want := range oracle.Messages {
			got := b.messages[i]
			if got.err != nil {
				continue // over the limit of a body
			}
			body := want.Body
			if want.BodyText != nil {
				body = []byte(*want.BodyText)
			} else if want.BodyBase64 != nil {
				body = want.BodyBase64
			}
			if !bytes.Equal(got.request.Message.Body, body) || got.request.Attempt != want.Attempt {
				t.Fatalf("%q: message %d: %+v, want %+v", data, i, got, want)
			}
			headers := got.request.Message.Headers.(key.MapHeaders)
			if len(headers) != len(want.Headers) {
				t.Fatalf("%q: message %d: headers %v, want %v", data, i, headers, want.Headers)
			}
		}
	})
}
