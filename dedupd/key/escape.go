package key

import (
	"crypto/sha256"
	"encoding/hex"
)

// MaxReadable is the length in bytes up to which a key is kept as it is.
const MaxReadable = 256

// separator stands between parts, and nowhere else.
const separator = ':'

// typed starts a part that is a JSON value other than a string. No escaped text contains it.
const typed = '~'

// plain says which bytes stand for themselves. They are those that neither a URL path segment,
// a shell nor a Redis hash tag gives a meaning to.
var plain = func() (t [256]bool) {
	const punctuation = "-._@+,"
	for c := '0'; c <= '9'; c++ {
		t[c] = true
	}
	for c := 'A'; c <= 'Z'; c++ {
		t[c], t[c|0x20] = true, true
	}
	for _, c := range punctuation {
		t[c] = true
	}
	return t
}()

// AppendEscaped appends the escaped form of s to dst. The dots of a part that is "." or ".."
// as a whole are escaped too, since clients resolve such a path segment away.
func AppendEscaped(dst []byte, s string) []byte { return appendEscaped(dst, s) }

// AppendConsumer appends the part that keeps consumers apart, the escaped name. The ':' that
// separates it from the parts of the message is the caller's.
func AppendConsumer(dst []byte, consumer string) []byte { return appendEscaped(dst, consumer) }

func appendEscaped[T string | []byte](dst []byte, s T) []byte {
	if len(s) <= 2 && (string(s) == "." || string(s) == "..") {
		for range len(s) {
			dst = append(dst, "=2E"...)
		}
		return dst
	}
	const digits = "0123456789ABCDEF"
	done := 0
	for i := range len(s) {
		if c := s[i]; !plain[c] {
			dst = append(dst, s[done:i]...)
			dst = append(dst, '=', digits[c>>4], digits[c&15])
			done = i + 1
		}
	}
	return append(dst, s[done:]...)
}

// Shorten returns a key of at most MaxReadable bytes as it is. Of a longer one it keeps the
// first prefixLen bytes, the consumer's part and its ':', and replaces the rest by "~sha256:" and the
// SHA-256 of the rest in hexadecimal; no readable key has that form, since '~' is followed by
// JSON there. The result may use the memory of key.
func Shorten(key []byte, prefixLen int) []byte {
	if len(key) <= MaxReadable {
		return key
	}
	sum := sha256.Sum256(key[prefixLen:])
	key = append(key[:prefixLen], "~sha256:"...)
	return hex.AppendEncode(key, sum[:])
}
