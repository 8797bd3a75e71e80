// Package message reads a message in its JSON form, of a line of `dedupd check` or of a batch:
//
//	{"headers":{"name":"value"}, "body":…|"bodyText":"…"|"bodyBase64":"…", "attempt":"…", "consumer":"…"}
//
// It is strict where encoding/json is lenient: that takes names in any case, the last of two
// members of one name, and U+FFFD for what is no Unicode. Each of these can make two
// identifiers one, and so a fresh message a duplicate.
package message

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/dedupd/dedup-operator/dedupd/key"
)

// Error says which field of a message, or of what holds it, is wrong and what would be right.
type Error struct {
	Field string
	Text  string
}

// Error returns the text, which names the field.
func (e *Error) Error() string { return e.Text }

func invalid(field, format string, args ...any) error {
	return &Error{Field: field, Text: fmt.Sprintf(format, args...)}
}

// UnknownField is the error for a member that is none of the known ones.
func UnknownField(field, known string) error {
	return invalid(field, "%s: unknown field; known here: %s", field, known)
}

// Message is a message with what accompanies a check of it.
type Message struct {
	key.Message

	Attempt string

	// Consumer is nil where the message names none.
	Consumer *string
}

// Decode reads the message in data, which Validate has passed. path is where it stands, for
// errors. A body is the text of the member exactly as it is written, for hashing, and points
// into data.
func Decode(data []byte, path string) (Message, error) {
	m := Message{Message: key.Message{Headers: key.MapHeaders{}}}
	bodies := 0
	err := EachMember(data, path, func(name string, value []byte) error {
		var err error
		var text string
		field := join(path, name)
		switch name {
		case "headers":
			m.Headers, err = decodeHeaders(value, field)
		case "attempt":
			m.Attempt, err = String(value, field)
		case "consumer":
			text, err = String(value, field)
			m.Consumer = &text
		case "body":
			bodies++
			m.Body = value
		case "bodyText":
			bodies++
			text, err = String(value, field)
			m.Body = []byte(text)
		case "bodyBase64":
			bodies++
			m.Body, err = decodeBase64(value, field)
		default:
			err = UnknownField(field, "headers, body, bodyText, bodyBase64, attempt, consumer")
		}
		return err
	})
	if err == nil && bodies > 1 {
		err = invalid(path, "%s: one of body, bodyText and bodyBase64, not %d of them", cmp.Or(path, "message"), bodies)
	}
	return m, err
}

// Validate makes sure that data is one JSON text in UTF-8, which the rest of this package
// relies on.
func Validate(data []byte) error {
	if i := invalidUTF8(data); i >= 0 {
		return invalid("body", "at offset %d: not UTF-8; send binary payloads as bodyBase64", i)
	}
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			// Its offset counts the byte that is wrong.
			return invalid("body", "at offset %d: not JSON: %s", max(syntax.Offset-1, 0), syntax.Error())
		}
		return invalid("body", "not JSON: %s", err.Error())
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

func decodeHeaders(data []byte, path string) (key.Headers, error) {
	headers := map[string]string{}
	err := EachMember(data, path, func(name string, value []byte) error {
		if len(headers) == key.MaxHeaders {
			return invalid(path, "%s: %s", path, key.ErrHeaders)
		}
		s, err := String(value, join(path, name))
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

// String reads a JSON string. Half of a surrogate pair is no character: it is refused,
// since all such halves would become the same U+FFFD.
func String(data []byte, path string) (string, error) {
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
	s, err := String(data, path)
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
