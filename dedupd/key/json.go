package key

import (
	"fmt"
	"math"
	"unicode/utf8"
)

// maxDepth is how deep arrays and objects may be nested. What walks a document may recurse,
// since it never does so deeper than this.
const maxDepth = 1000

// want is what the grammar allows at a position.
type want uint8

const (
	wantValue   want = iota
	wantElement      // a value, or the end of the array that was just opened
	wantName
	wantMember // a name, or the end of the object that was just opened
	wantNext   // a comma, or the end of the container
	wantEnd
)

func (d *document) parse() error {
	if uint64(len(d.text)) > math.MaxUint32 {
		return d.fail(0, "%d bytes are too many for JSON", len(d.text))
	}
	w := wantValue
	for w != wantEnd {
		c := d.token()
		var err error
		switch {
		case c == ']' && (w == wantElement || w == wantNext && d.closes(kindArray)),
			c == '}' && (w == wantMember || w == wantNext && d.closes(kindObject)):
			w, err = d.close()
		case w == wantNext && c == ',':
			d.pos++
			w = wantValue
			if d.closes(kindObject) {
				w = wantName
			}
		case w == wantValue || w == wantElement:
			w, err = d.value(c, w)
		case w == wantName || w == wantMember:
			w, err = wantValue, d.name(c, w)
		default:
			err = d.unexpected(c, w)
		}
		if err != nil {
			return err
		}
	}
	if c := d.token(); c >= 0 {
		return d.fail(d.pos, "want the end after one JSON value, found %s", describe(c))
	}
	return nil
}

// closes says whether the innermost open container is of kind k.
func (d *document) closes(k kind) bool {
	return len(d.open) > 0 && d.nodes[d.open[len(d.open)-1]].kind == k
}

// token skips white space and returns the byte that follows, or -1 at the end.
func (d *document) token() int {
	for ; d.pos < len(d.text); d.pos++ {
		switch c := d.text[d.pos]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return int(c)
		}
	}
	return -1
}

func (d *document) fail(offset int, format string, args ...any) error {
	return &MalformedError{What: "body", Offset: offset, Reason: fmt.Sprintf(format, args...)}
}

func (d *document) unexpected(c int, w want) error {
	wanted := [...]string{
		wantValue:   "a JSON value",
		wantElement: "a JSON value or ']'",
		wantName:    "a member name in double quotes",
		wantMember:  "a member name in double quotes or '}'",
		wantNext:    "',' or '}'",
	}[w]
	if w == wantNext && d.closes(kindArray) {
		wanted = "',' or ']'"
	}
	return d.fail(d.pos, "want %s, found %s", wanted, describe(c))
}

func describe(c int) string {
	switch {
	case c < 0:
		return "the end"
	case c > ' ' && c < 0x7F:
		return fmt.Sprintf("'%c'", c)
	}
	return fmt.Sprintf("byte 0x%02X", c)
}

// add appends a node that ends at the present position and has no content.
func (d *document) add(k kind, start int) {
	d.nodes = append(d.nodes, node{start: uint32(start), end: uint32(d.pos), next: uint32(len(d.nodes) + 1), kind: k})
}

// after is what may follow a value.
func (d *document) after() want {
	if len(d.open) == 0 {
		return wantEnd
	}
	return wantNext
}

func (d *document) value(c int, w want) (want, error) {
	start := d.pos
	switch {
	case c == '"':
		return d.after(), d.string()
	case c == '{':
		return wantMember, d.begin(kindObject)
	case c == '[':
		return wantElement, d.begin(kindArray)
	case c == '-' || c >= '0' && c <= '9':
		return d.after(), d.number()
	case d.skip("true"):
		d.add(kindTrue, start)
	case d.skip("false"):
		d.add(kindFalse, start)
	case d.skip("null"):
		d.add(kindNull, start)
	default:
		return 0, d.unexpected(c, w)
	}
	return d.after(), nil
}

func (d *document) skip(word string) bool {
	if end := d.pos + len(word); end > len(d.text) || string(d.text[d.pos:end]) != word {
		return false
	}
	d.pos += len(word)
	return true
}

func (d *document) begin(k kind) error {
	if len(d.open) == maxDepth {
		return d.fail(d.pos, "arrays and objects are nested deeper than %d", maxDepth)
	}
	d.open = append(d.open, uint32(len(d.nodes)))
	d.add(k, d.pos)
	d.pos++
	return nil
}

// close ends the innermost container, whose closing bracket is at the present position.
func (d *document) close() (want, error) {
	d.pos++
	at := d.open[len(d.open)-1]
	d.open = d.open[:len(d.open)-1]
	n := &d.nodes[at]
	n.end, n.next = uint32(d.pos), uint32(len(d.nodes))
	if n.kind == kindObject {
		return d.after(), d.checkNames(at)
	}
	return d.after(), nil
}

// name reads a member name and its colon.
func (d *document) name(c int, w want) error {
	if c != '"' {
		return d.unexpected(c, w)
	}
	if err := d.string(); err != nil {
		return err
	}
	if c := d.token(); c != ':' {
		return d.fail(d.pos, "want ':' after a member name, found %s", describe(c))
	}
	d.pos++
	return nil
}

// number reads a number by the grammar of RFC 8259; its value is of no interest yet.
func (d *document) number() error {
	start := d.pos
	if d.text[d.pos] == '-' {
		d.pos++
	}
	zero := d.pos < len(d.text) && d.text[d.pos] == '0'
	n := d.digits()
	if n == 0 {
		return d.fail(d.pos, "want a digit after '-'")
	}
	if zero && n > 1 {
		return d.fail(start, "a number has no leading zeros")
	}
	if d.pos < len(d.text) && d.text[d.pos] == '.' {
		d.pos++
		if d.digits() == 0 {
			return d.fail(d.pos, "want a digit after the decimal point")
		}
	}
	if d.pos < len(d.text) && d.text[d.pos]|0x20 == 'e' {
		d.pos++
		if d.pos < len(d.text) && (d.text[d.pos] == '+' || d.text[d.pos] == '-') {
			d.pos++
		}
		if d.digits() == 0 {
			return d.fail(d.pos, "want a digit in the exponent")
		}
	}
	d.add(kindNumber, start)
	return nil
}

// digits skips decimal digits and returns how many.
func (d *document) digits() int {
	start := d.pos
	for d.pos < len(d.text) && d.text[d.pos] >= '0' && d.text[d.pos] <= '9' {
		d.pos++
	}
	return d.pos - start
}

// string reads a string at its opening quote.
func (d *document) string() error {
	open := d.pos
	escaped := false
	for i := open + 1; ; {
		for i < len(d.text) && ordinary[d.text[i]] {
			i++
		}
		if i == len(d.text) {
			return d.fail(open, "the string has no closing quote")
		}
		switch c := d.text[i]; {
		case c == '"':
			d.pos = i
			d.add(kindString, open+1)
			d.nodes[len(d.nodes)-1].escaped = escaped
			d.pos++
			return nil
		case c == '\\':
			size := d.escapeLen(i)
			if size == 0 {
				return d.fail(i, `not an escape sequence of JSON, or a lone surrogate; want one of \" \\ \/ \b \f \n \r \t \uXXXX, surrogates in pairs`)
			}
			escaped = true
			i += size
		case c < ' ':
			return d.fail(i, `control character 0x%02X in a string; write it as \u%04x`, c, c)
		default:
			_, size := utf8.DecodeRune(d.text[i:])
			if size == 1 {
				return d.fail(i, "byte 0x%02X is not UTF-8", c)
			}
			i += size
		}
	}
}

// ordinary says which bytes stand in a string for themselves and need no further look.
var ordinary = func() (t [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// escapeLen returns the length of the escape sequence at i, 0 where there is none.
func (d *document) escapeLen(i int) int {
	switch {
	case i+1 == len(d.text):
		return 0
	case d.text[i+1] == 'u':
		_, size := decodeUnicodeEscape(d.text[i:])
		return size
	case indexByte(escapeLetters, d.text[i+1]) >= 0:
		return 2
	}
	return 0
}
