package key

import (
	"fmt"
	"unicode/utf8"
)

// Path is a compiled singular query of RFC 9535, such as $.order.id, $['user id'] or
// $.items[-1]: it selects one value at most. The zero Path is the root, $.
type Path struct {
	text     string
	segments []segment
}

// segment is one step of a path: into a member of an object or an element of an array.
type segment struct {
	name    string
	index   int64 // negative: from the end
	isIndex bool
}

// maxIndex is the greatest index that RFC 9535 allows (section 2.1), 2^53-1.
const maxIndex = 1<<53 - 1

// ParsePath compiles a singular query. Its errors say at which offset, in bytes, what would be
// right; a query that may select several values is an error, since a key needs exactly one.
func ParsePath(s string) (Path, error) {
	if !utf8.ValidString(s) {
		return Path{}, fmt.Errorf("offset %d: not UTF-8", invalidAt(s))
	}
	p := pathParser{text: s}
	if p.next() != '$' {
		return Path{}, p.fail("a path starts with $, such as $.id")
	}
	p.pos++
	path := Path{text: s}
	for p.pos < len(s) {
		seg, err := p.segment()
		if err != nil {
			return Path{}, err
		}
		path.segments = append(path.segments, seg)
	}
	return path, nil
}

// String returns the path as it was written.
func (p Path) String() string {
	if p.text == "" {
		return "$"
	}
	return p.text
}

func invalidAt(s string) int {
	for i, r := range s {
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(s[i:]); size == 1 {
				return i
			}
		}
	}
	return len(s)
}

// pathParser reads a path that is valid UTF-8.
type pathParser struct {
	text string
	pos  int
}

// next returns the byte at pos, or 0 at the end; a NUL is nowhere allowed, so that the two
// need not be told apart.
func (p *pathParser) next() byte {
	if p.pos < len(p.text) {
		return p.text[p.pos]
	}
	return 0
}

func (p *pathParser) fail(format string, args ...any) error {
	return fmt.Errorf("offset %d: %s", p.pos, fmt.Sprintf(format, args...))
}

func (p *pathParser) skipBlank() {
	for c := p.next(); c == ' ' || c == '\t' || c == '\n' || c == '\r'; c = p.next() {
		p.pos++
	}
}

// segment reads one segment and the white space that may stand before it.
func (p *pathParser) segment() (segment, error) {
	blank := p.pos
	p.skipBlank()
	switch c := p.next(); {
	case c == '.':
		p.pos++
		return p.dotted()
	case c == '[':
		p.pos++
		return p.bracketed()
	case p.pos == len(p.text):
		p.pos = blank
		return segment{}, p.fail("white space at the end; remove it")
	default:
		return segment{}, p.fail("want '.' or '[' before the next name or index, such as $.id or $['user id']")
	}
}

// dotted reads the member name after a dot.
func (p *pathParser) dotted() (segment, error) {
	switch p.next() {
	case '.':
		p.pos--
		return segment{}, p.fail("'..' may select several values; write every step, such as $.order.id")
	case '*':
		return segment{}, p.failWildcard()
	}
	start := p.pos
	for p.pos < len(p.text) {
		c := p.text[p.pos]
		digit := c >= '0' && c <= '9' && p.pos > start
		if !digit && c != '_' && c < utf8.RuneSelf && (c|0x20 < 'a' || c|0x20 > 'z') {
			break
		}
		p.pos++
	}
	if p.pos == start {
		return segment{}, p.fail("want a member name of letters, digits and '_' that starts with no digit; write any other name in quotes, such as $['user id']")
	}
	return segment{name: p.text[start:p.pos]}, nil
}

func (p *pathParser) failWildcard() error {
	return p.fail("the wildcard * may select several values; name one member or index, such as $.id or $.items[0]")
}

// bracketed reads what stands between brackets.
func (p *pathParser) bracketed() (segment, error) {
	p.skipBlank()
	var seg segment
	var err error
	switch c := p.next(); {
	case c == '\'' || c == '"':
		seg.name, err = p.quoted(c)
	case c == '-' || c >= '0' && c <= '9':
		seg.isIndex = true
		seg.index, err = p.index()
	case c == '*':
		err = p.failWildcard()
	case c == '?':
		err = p.fail("a filter may select several values; name one member or index, such as $.items[0]")
	case c == ':':
		err = p.failSlice()
	default:
		err = p.fail("want a name in quotes, such as ['user id'], or an index, such as [0]")
	}
	if err != nil {
		return segment{}, err
	}
	p.skipBlank()
	switch c := p.next(); {
	case c == ']':
		p.pos++
		return seg, nil
	case c == ',':
		return segment{}, p.fail("several selectors may select several values; keep one")
	case c == ':' && seg.isIndex:
		return segment{}, p.failSlice()
	}
	return segment{}, p.fail("want ']'")
}

func (p *pathParser) failSlice() error {
	return p.fail("a slice may select several values; name one index, such as $.items[0]")
}

// index reads an integer: no leading zeros, no "-0", in the range of RFC 9535.
func (p *pathParser) index() (int64, error) {
	start := p.pos
	negative := p.next() == '-'
	if negative {
		p.pos++
	}
	digits := p.pos
	var n int64
	for c := p.next(); c >= '0' && c <= '9'; c = p.next() {
		if n = n*10 + int64(c-'0'); n > maxIndex {
			p.pos = start
			return 0, p.fail("the index is out of range; want one from -%d to %d", maxIndex, maxIndex)
		}
		p.pos++
	}
	if p.pos == digits {
		return 0, p.fail("want a digit after '-'")
	}
	if p.text[digits] == '0' && (negative || p.pos > digits+1) {
		p.pos = start
		return 0, p.fail("an index has no leading zeros and is not -0; write 0, 1 or -1")
	}
	if negative {
		n = -n
	}
	return n, nil
}

// quoted reads a name in quotes.
func (p *pathParser) quoted(quote byte) (string, error) {
	open := p.pos
	p.pos++
	var name []byte
	for p.pos < len(p.text) {
		c := p.text[p.pos]
		switch {
		case c == quote:
			p.pos++
			return string(name), nil
		case c < ' ':
			return "", p.fail("control character %#02x; write it as \\u%04x", c, c)
		case c == '\\':
			r, err := p.escape(quote)
			if err != nil {
				return "", err
			}
			name = utf8.AppendRune(name, r)
		default:
			name = append(name, c)
			p.pos++
		}
	}
	p.pos = open
	return "", p.fail("the name has no closing %c", quote)
}

// escape reads an escape sequence at its backslash.
func (p *pathParser) escape(quote byte) (rune, error) {
	if p.pos+1 < len(p.text) {
		c := p.text[p.pos+1]
		switch i := indexByte(escapeLetters, c); {
		case c == quote:
			p.pos += 2
			return rune(c), nil
		case c == 'u':
			r, size := decodeUnicodeEscape(p.text[p.pos:])
			if size == 0 {
				return 0, p.fail("want \\u and four hexadecimal digits, a surrogate only in a pair such as \\uD83D\\uDE00")
			}
			p.pos += size
			return r, nil
		case i >= 0 && c != '"':
			p.pos += 2
			return rune(escapeValues[i]), nil
		}
	}
	return 0, p.fail(`not an escape of RFC 9535; want one of \b \f \n \r \t \/ \\ \%c \uXXXX`, quote)
}
