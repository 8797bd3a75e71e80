package key

import (
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// The letters that may follow a backslash in a JSON string, but for u, and what they mean.
const (
	escapeLetters = `"\/bfnrt`
	escapeValues  = "\"\\/\b\f\n\r\t"
)

func indexByte(s string, c byte) int { return strings.IndexByte(s, c) }

// decodeUnicodeEscape reads \uXXXX, or two of them that are a surrogate pair, at the start of
// s. The size is 0 where there is no such escape or the surrogate is alone.
func decodeUnicodeEscape[T string | []byte](s T) (r rune, size int) {
	r, ok := hex4(s)
	if !ok {
		return 0, 0
	}
	if !utf16.IsSurrogate(r) {
		return r, 6
	}
	low, ok := hex4(s[6:])
	if !ok {
		return 0, 0
	}
	if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
		return 0, 0
	}
	return r, 12
}

// hex4 reads one \uXXXX at the start of s.
func hex4[T string | []byte](s T) (r rune, ok bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	for i := 2; i < 6; i++ {
		digit := hexDigit(s[i])
		if digit < 0 {
			return 0, false
		}
		r = r<<4 | rune(digit)
	}
	return r, true
}

// hexDigit returns the value of a hexadecimal digit, or -1.
func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}

// appendDecoded appends what the inside of a valid JSON string stands for.
func appendDecoded(dst, raw []byte) []byte {
	done := 0
	for i := 0; i < len(raw); {
		if raw[i] != '\\' {
			i++
			continue
		}
		dst = append(dst, raw[done:i]...)
		if raw[i+1] == 'u' {
			r, size := decodeUnicodeEscape(raw[i:])
			dst = utf8.AppendRune(dst, r)
			i += size
		} else {
			dst = append(dst, escapeValues[indexByte(escapeLetters, raw[i+1])])
			i += 2
		}
		done = i
	}
	return append(dst, raw[done:]...)
}

// appendQuoted appends s as a JSON string in the form of RFC 8785, section 3.2.2.2.
func appendQuoted(dst, s []byte) []byte {
	const digits = "0123456789abcdef"
	dst = append(dst, '"')
	done := 0
	for i, c := range s {
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[done:i]...)
		done = i + 1
		if at := indexByte(escapeValues, c); at >= 0 {
			dst = append(dst, '\\', escapeLetters[at])
		} else {
			dst = append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
	}
	dst = append(dst, s[done:]...)
	return append(dst, '"')
}

// compareUTF16 orders UTF-8 texts by their UTF-16 code units, as RFC 8785, section 3.2.3
// demands. It differs from the order of bytes only where surrogates (of characters from
// U+10000 on, whose UTF-8 starts with F0 or more) meet U+E000..U+FFFF (EE, EF).
func compareUTF16(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		less := x < y
		if x >= 0xEE && y >= 0xEE && (x >= 0xF0) != (y >= 0xF0) {
			less = !less
		}
		if less {
			return -1
		}
		return 1
	}
	return len(a) - len(b)
}
