package key

import (
	"fmt"
	"math"
	"slices"
	"strconv"
)

// member is a member of an object that is being written.
type member struct {
	name  []byte // decoded
	value uint32
}

// appendCanonical appends the canonical form of a value, RFC 8785, without what is excluded.
// It deviates in one point, see appendNumber.
func (d *document) appendCanonical(dst []byte, at uint32) ([]byte, error) {
	n := d.nodes[at]
	switch n.kind {
	case kindNumber:
		return d.appendNumber(dst, at)
	case kindString:
		return d.appendText(dst, at), nil
	case kindArray:
		return d.appendArray(dst, at)
	case kindObject:
		// Decoded names of the objects around this one lie before what this one appends.
		members, scratch := len(d.members), len(d.scratch)
		dst, err := d.appendObject(dst, at)
		clear(d.members[members:]) // they point into the message, which may go
		d.members, d.scratch = d.members[:members], d.scratch[:scratch]
		return dst, err
	default:
		return append(dst, d.raw(at)...), nil
	}
}

// appendText appends a string. Without a backslash it has nothing that needs one.
func (d *document) appendText(dst []byte, at uint32) []byte {
	if d.nodes[at].escaped {
		base := len(d.scratch)
		d.scratch = appendDecoded(d.scratch, d.raw(at))
		dst = appendQuoted(dst, d.scratch[base:])
		d.scratch = d.scratch[:base]
		return dst
	}
	dst = append(dst, '"')
	dst = append(dst, d.raw(at)...)
	return append(dst, '"')
}

func (d *document) appendArray(dst []byte, array uint32) ([]byte, error) {
	dst = append(dst, '[')
	first := len(dst)
	var err error
	for at := array + 1; at < d.nodes[array].next; at = d.nodes[at].next {
		if d.nodes[at].excluded {
			continue
		}
		if len(dst) > first {
			dst = append(dst, ',')
		}
		if dst, err = d.appendCanonical(dst, at); err != nil {
			return dst, err
		}
	}
	return append(dst, ']'), nil
}

func (d *document) appendObject(dst []byte, object uint32) ([]byte, error) {
	base := len(d.members)
	sorted := true
	for at := object + 1; at < d.nodes[object].next; at = d.nodes[at+1].next {
		if d.nodes[at+1].excluded {
			continue
		}
		name := d.raw(at)
		if d.nodes[at].escaped {
			start := len(d.scratch)
			d.scratch = appendDecoded(d.scratch, name)
			name = d.scratch[start:len(d.scratch):len(d.scratch)]
		}
		if len(d.members) > base && compareUTF16(d.members[len(d.members)-1].name, name) > 0 {
			sorted = false
		}
		d.members = append(d.members, member{name: name, value: at + 1})
	}
	end := len(d.members)
	if !sorted {
		slices.SortFunc(d.members[base:end], func(a, b member) int { return compareUTF16(a.name, b.name) })
	}
	dst = append(dst, '{')
	var err error
	for i := base; i < end; i++ {
		if i > base {
			dst = append(dst, ',')
		}
		dst = d.appendText(dst, d.members[i].value-1)
		dst = append(dst, ':')
		if dst, err = d.appendCanonical(dst, d.members[i].value); err != nil {
			return dst, err
		}
	}
	return append(dst, '}'), nil
}

// plainDigits is how many digits ECMAScript writes an integer with before it uses an exponent.
const plainDigits = 21

// appendNumber appends a number as ECMAScript writes the double nearest to it. RFC 8785 lets an
// integer beyond 2^53 become another one that way, and two identifiers one; so an integer whose
// value is not that of the text that ECMAScript writes keeps its digits.
func (d *document) appendNumber(dst []byte, at uint32) ([]byte, error) {
	literal := d.raw(at)
	integer := isInteger(literal)
	if integer && len(literal) <= plainDigits && string(literal) != "-0" {
		return append(dst, literal...), nil // what ECMAScript writes, or what must be kept
	}
	f, err := strconv.ParseFloat(string(literal), 64)
	if err != nil {
		return dst, d.fail(int(d.nodes[at].start), "the number %s is beyond ±%g; write such a value as a string", clip(literal), math.MaxFloat64)
	}
	start := len(dst)
	dst = appendES6(dst, f)
	if integer && f != 0 && !sameInteger(literal, dst[start:]) {
		dst = append(dst[:start], literal...)
	}
	return dst, nil
}

func clip(literal []byte) string {
	if len(literal) > 24 {
		return fmt.Sprintf("%s... (%d characters)", literal[:24], len(literal))
	}
	return string(literal)
}

// isInteger says whether a number has neither a fraction nor an exponent.
func isInteger(literal []byte) bool {
	for _, c := range literal {
		if c == '.' || c == 'e' || c == 'E' {
			return false
		}
	}
	return true
}

// appendES6 appends a finite number as ECMAScript's Number::toString does.
func appendES6(dst []byte, f float64) []byte {
	if f == 0 {
		return append(dst, '0') // also for -0
	}
	if abs := math.Abs(f); abs >= 1e-6 && abs < 1e21 {
		return strconv.AppendFloat(dst, f, 'f', -1, 64)
	}
	dst = strconv.AppendFloat(dst, f, 'e', -1, 64)
	// Go writes at least two digits of exponent: 1e-07.
	if n := len(dst); dst[n-2] == '0' && (dst[n-3] == '-' || dst[n-3] == '+') {
		dst[n-2] = dst[n-1]
		dst = dst[:n-1]
	}
	return dst
}

// sameInteger says whether an integer without exponent has the value of what appendES6 wrote
// for it, that is, the same digits once those of the mantissa are followed by zeros.
func sameInteger(literal, es6 []byte) bool {
	digits := 0 // of literal, matched so far
	for i, c := range es6 {
		switch c {
		case '.':
		case 'e':
			for _, zero := range literal[digits:] {
				if zero != '0' {
					return false
				}
			}
			exponent, err := strconv.Atoi(string(es6[i+1:]))
			sign := 0
			if literal[0] == '-' {
				sign = 1
			}
			return err == nil && len(literal) == sign+1+exponent
		default:
			if digits == len(literal) || literal[digits] != c {
				return false
			}
			digits++
		}
	}
	return digits == len(literal)
}
