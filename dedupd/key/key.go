// Package key turns a message into the text by which it is recognised. It is pure: the same
// message gives the same key on every machine and in every version, since keys are what a
// store remembers; a change of what is written here is a change of every user's key space.
//
// A key is parts joined by ':'. The bytes A-Z a-z 0-9 - . _ @ + , of a part stand for
// themselves, every other byte is =XX (two upper-case hexadecimal digits). A value that is a
// JSON number, boolean, array or object is '~' and its escaped canonical form, so that 1 and
// "1" differ. Different lists of values therefore never give the same key, whatever the
// values contain.
package key

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// ID stands for a key where a store does not hold its text: 128 bits of SHA-256 over it.
type ID [16]byte

// IDOf returns the ID of a key.
func IDOf(key string) ID {
	sum := sha256.Sum256([]byte(key))
	return ID(sum[:])
}

// Headers are the headers, properties or attributes of a message.
type Headers interface {
	// Get returns the value of a header by its name in lower case, and whether it is there.
	Get(lowerName string) (value string, ok bool)
}

// MapHeaders are headers in a map whose names are in lower case.
type MapHeaders map[string]string

// MaxHeaders is how many headers a message may have. In memory each takes many times what it takes in a request.
const MaxHeaders = 256

// ErrHeaders is what is wrong with a message that has more.
var ErrHeaders = fmt.Errorf("more than %d; send those that the key is made of, and no others", MaxHeaders)

// NewMapHeaders returns m with its names in lower case, which is m itself where they are. Two
// names that differ by case only are an error: which of the two values counts would be left to
// chance.
func NewMapHeaders(m map[string]string) (MapHeaders, error) {
	if lower(m) {
		return m, nil
	}
	h := make(MapHeaders, len(m))
	for name, value := range m {
		name = strings.ToLower(name)
		if _, ok := h[name]; ok {
			return nil, fmt.Errorf("%q is given more than once (names are compared without case); send it once", name)
		}
		h[name] = value
	}
	return h, nil
}

// lower says whether all names are in lower case.
func lower(m map[string]string) bool {
	for name := range m {
		if strings.ToLower(name) != name {
			return false
		}
	}
	return true
}

// Get returns the value of a header by its name in lower case.
func (h MapHeaders) Get(lowerName string) (string, bool) {
	value, ok := h[lowerName]
	return value, ok
}

// Message is what a key is formed of. Headers may be nil.
type Message struct {
	Headers Headers
	Body    []byte
}

// header returns a header by its name in lower case.
func (m Message) header(lowerName string) (string, bool) {
	if m.Headers == nil {
		return "", false
	}
	return m.Headers.Get(lowerName)
}

// Strategy forms keys. Strategies are immutable and safe for concurrent use.
type Strategy interface {
	// AppendKey appends the key of m to dst: escaped parts joined by ':'. With an error, which
	// is a *MissingError or a *MalformedError, dst comes back as it was.
	AppendKey(dst []byte, m Message) ([]byte, error)
}

// MissingError says that a message lacks what its key is formed of. An empty value is as good
// as none: it would make one message of all that have it.
type MissingError struct {
	// What is missing, such as `header "message-id"` or `path $.id`.
	What string

	// How it is missing: "absent", "null" or "empty".
	How string
}

// Error says what is missing, and how.
func (e *MissingError) Error() string { return e.What + " is " + e.How }

// How a value can be missing.
const (
	absent = "absent"
	null   = "null"
	empty  = "empty"
)

// MalformedError says that a message is not of the form that its key needs.
type MalformedError struct {
	// What is malformed, such as `body` or `header "ce-id"`.
	What string

	// Offset is where in it, in bytes; negative where it is the whole.
	Offset int

	// Reason says what is wrong and what would be right.
	Reason string
}

// Error says what is wrong, and where.
func (e *MalformedError) Error() string {
	if e.Offset < 0 {
		return e.What + ": " + e.Reason
	}
	return fmt.Sprintf("%s at offset %d: %s", e.What, e.Offset, e.Reason)
}
