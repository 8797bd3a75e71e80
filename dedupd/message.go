package main

import (
	"bytes"
	"encoding/base64"
	gojson "encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"sigs.k8s.io/json"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/key"
)

// messageParser reads recorded messages, one JSON object a line:
//
//	{"headers":{"name":"value"}, "body":…|"bodyText":"…"|"bodyBase64":"…", "consumer":"…", "attempt":"…"}
type messageParser struct {
	consumer string // of a message that names none
	maxBody  int    // in bytes
}

// parse returns the message of a line. The body is the text of the member body exactly as it
// is written, for hashing; or what bodyText or bodyBase64 decode to; or empty.
func (p messageParser) parse(text []byte) (engine.Request, error) {
	r := engine.Request{Consumer: p.consumer}
	if i := invalidUTF8(text); i >= 0 {
		return r, fmt.Errorf("byte %d is not UTF-8; put a body that is not text into bodyBase64", i+1)
	}
	members, err := object(text)
	if err != nil {
		return r, err
	}
	headers, bodies := key.MapHeaders{}, 0
	for _, name := range slices.Sorted(maps.Keys(members)) {
		value := members[name]
		switch name {
		case "headers":
			headers, err = parseHeaders(value)
		case "consumer":
			r.Consumer, err = parseString(name, value)
		case "attempt":
			r.Attempt, err = parseString(name, value)
		case "body":
			r.Message.Body, bodies = value, bodies+1
		case "bodyText":
			var s string
			s, err = parseString(name, value)
			r.Message.Body, bodies = []byte(s), bodies+1
		case "bodyBase64":
			r.Message.Body, err = parseBase64(value)
			bodies++
		default:
			err = fmt.Errorf("unknown member %q; want headers, body, bodyText, bodyBase64, consumer or attempt", name)
		}
		if err != nil {
			return r, err
		}
	}
	r.Message.Headers = headers
	switch {
	case bodies > 1:
		return r, errors.New("more than one of body, bodyText and bodyBase64; want one at most")
	case len(r.Message.Body) > p.maxBody:
		return r, fmt.Errorf("body: %d bytes, more than --max-body (%d)", len(r.Message.Body), p.maxBody)
	}
	return r, nil
}

// invalidUTF8 returns the place of the first byte that is not UTF-8, or -1.
func invalidUTF8(text []byte) int {
	if utf8.Valid(text) {
		return -1
	}
	for i := 0; ; {
		r, size := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && size <= 1 {
			return i
		}
		i += size
	}
}

// object reads a JSON object whose members are each there once.
func object(text []byte) (map[string]gojson.RawMessage, error) {
	if first := bytes.TrimLeft(text, " \t\r\n"); len(first) == 0 || first[0] != '{' {
		return nil, errors.New(`not a JSON object; want a message such as {"headers":{"id":"7"},"body":{}}`)
	}
	var members map[string]gojson.RawMessage
	twice, err := json.UnmarshalStrict(text, &members, json.DisallowDuplicateFields)
	if isSyntax, offset := json.SyntaxErrorOffset(err); isSyntax {
		return nil, fmt.Errorf("not JSON: at byte %d: %w", offset, err)
	}
	if err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if len(twice) > 0 {
		return nil, fmt.Errorf("%w; want each member once", twice[0])
	}
	return members, nil
}

func parseHeaders(value []byte) (key.MapHeaders, error) {
	if value[0] != '{' {
		return nil, fmt.Errorf("headers: %s; want an object of strings", kindOf(value))
	}
	members, err := object(value)
	if err != nil {
		return nil, fmt.Errorf("headers: %w", err)
	}
	out := make(map[string]string, len(members))
	for _, name := range slices.Sorted(maps.Keys(members)) {
		out[name], err = parseString(fmt.Sprintf("headers: %q", name), members[name])
		if err != nil {
			return nil, err
		}
	}
	return key.NewMapHeaders(out)
}

func parseString(name string, value []byte) (string, error) {
	if value[0] != '"' {
		return "", fmt.Errorf("%s: %s; want a string", name, kindOf(value))
	}
	var s string
	if err := gojson.Unmarshal(value, &s); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

func parseBase64(value []byte) ([]byte, error) {
	s, err := parseString("bodyBase64", value)
	if err != nil {
		return nil, err
	}
	body, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("bodyBase64: %w; want base64 (RFC 4648, section 4) with padding", err)
	}
	return body, nil
}

// kindOf names the kind of a JSON value.
func kindOf(value []byte) string {
	switch {
	case value[0] == '{':
		return "an object"
	case value[0] == '[':
		return "an array"
	case value[0] == '"':
		return "a string"
	case value[0] == 'n':
		return "null"
	case strings.ContainsRune("tf", rune(value[0])):
		return "a boolean"
	default:
		return "a number"
	}
}
