package key

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParseRefusesWhatIsNotOneJSONValue(t *testing.T) {
	deep := strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1)
	for name, tc := range map[string]struct {
		text   string
		offset int
		reason string
	}{
		"nothing":                       {"", 0, "want a JSON value, found the end"},
		"white space only":              {" \n", 2, "want a JSON value, found the end"},
		"two values":                    {"1 2", 2, "want the end after one JSON value, found '2'"},
		"a byte order mark":             {"\ufeff{}", 0, "want a JSON value, found byte 0xEF"},
		"a NUL":                         {"\x00", 0, "want a JSON value, found byte 0x00"},
		"a bare word":                   {"nul", 0, "want a JSON value, found 'n'"},
		"a word too long":               {"nullx", 4, "want the end after one JSON value, found 'x'"},
		"NaN":                           {"NaN", 0, "want a JSON value, found 'N'"},
		"a trailing comma in an array":  {"[1,]", 3, "want a JSON value, found ']'"},
		"a trailing comma in an object": {`{"a":1,}`, 7, "want a member name in double quotes, found '}'"},
		"a leading comma":               {"[,1]", 1, "want a JSON value or ']', found ','"},
		"no comma":                      {"[1 2]", 3, "want ',' or ']', found '2'"},
		"no comma in an object":         {`{"a":1 "b":2}`, 7, "want ',' or '}', found '\"'"},
		"no colon":                      {`{"a" 1}`, 5, "want ':' after a member name, found '1'"},
		"no value":                      {`{"a":}`, 5, "want a JSON value, found '}'"},
		"a bare name":                   {`{a:1}`, 1, "want a member name in double quotes or '}', found 'a'"},
		"a number as a name":            {`{1:1}`, 1, "want a member name in double quotes or '}', found '1'"},
		"an open array":                 {"[1", 2, "want ',' or ']', found the end"},
		"an open object":                {`{"a":1`, 6, "want ',' or '}', found the end"},
		"brackets that do not match":    {"[1}", 2, "want ',' or ']', found '}'"},
		"a bracket too many":            {"[]]", 2, "want the end after one JSON value, found ']'"},
		"an open string":                {`"abc`, 0, "the string has no closing quote"},
		"a string that ends escaped":    {`"abc\`, 4, "not an escape sequence"},
		"an unknown escape":             {`"\x41"`, 1, "not an escape sequence"},
		"a short unicode escape":        {`"\u12"`, 1, "not an escape sequence"},
		"a lone high surrogate":         {`"\ud800"`, 1, "not an escape sequence of JSON, or a lone surrogate"},
		"a lone low surrogate":          {`"\udc00"`, 1, "not an escape sequence of JSON, or a lone surrogate"},
		"surrogates the wrong way":      {`"\udc00\ud800"`, 1, "not an escape sequence of JSON, or a lone surrogate"},
		"a line break in a string":      {"\"a\nb\"", 2, `control character 0x0A in a string; write it as \u000a`},
		"a byte that is not UTF-8":      {"\"a\xffb\"", 2, "byte 0xFF is not UTF-8"},
		"an overlong encoding":          {"\"\xc0\xa0\"", 1, "byte 0xC0 is not UTF-8"},
		"a surrogate in UTF-8":          {"\"\xed\xa0\x80\"", 1, "byte 0xED is not UTF-8"},
		"a minus":                       {"-", 1, "want a digit after '-'"},
		"a plus":                        {"+1", 0, "want a JSON value, found '+'"},
		"a leading zero":                {"[01]", 1, "a number has no leading zeros"},
		"a leading point":               {".5", 0, "want a JSON value, found '.'"},
		"a trailing point":              {"5.", 2, "want a digit after the decimal point"},
		"an empty exponent":             {"5e+", 3, "want a digit in the exponent"},
		"a comment":                     {"1 // one", 2, "want the end after one JSON value, found '/'"},
		"two members of one name":       {`{"a":1,"b":2,"a":1}`, 13, `the member name "a" stands twice in one object; names must be unique`},
		"two spellings of one name":     {`{"a":1,"\u0061":1}`, 7, `the member name "\\u0061" stands twice`},
		"a name twice further in":       {`[{"x":{"a":1,"a":1}}]`, 13, `the member name "a" stands twice`},
		"a name twice among many":       {`{"m":0,` + manyMembers(500) + `,"m":1}`, -1, `the member name "m" stands twice`},
		"a spelling twice among many":   {`{"\u006d":0,` + manyMembers(500) + `,"m":1}`, -1, `the member name "m" stands twice`},
		"nested too deep":               {deep, maxDepth, "arrays and objects are nested deeper than 1000"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse([]byte(tc.text))
			var e *MalformedError
			if !errors.As(err, &e) {
				t.Fatalf("got %v, want a *MalformedError", err)
			}
			if e.What != "body" || !strings.HasPrefix(e.Reason, tc.reason) || (tc.offset >= 0 && e.Offset != tc.offset) {
				t.Errorf("got %s at offset %d: %s\nwant body at offset %d: %s…", e.What, e.Offset, e.Reason, tc.offset, tc.reason)
			}
		})
	}
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"k%d":%d`, i, i)
	}
	return b.String()
}

func TestParseTakesEveryJSONValue(t *testing.T) {
	for _, text := range []string{
		"null", " true\r\n", "false", "0", "-0", "-1.5E+10", "1e-7", `""`, `"\"\\\/\b\f\n\r\t\u00e9\uD83D\uDE00"`,
		"[]", "{}", "[[],{},[{}]]", `{"a":{"a":{"a":[]}}}`, `{"":0}`, "{" + manyMembers(5000) + "}",
		strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth),
		strings.Repeat(`{"a":`, maxDepth) + "1" + strings.Repeat("}", maxDepth),
	} {
		if _, err := tryCanonical([]byte(text)); err != nil {
			t.Errorf("%.60s: %v", text, err)
		}
	}
}

// stricter says whether parse must refuse a text that encoding/json takes.
func stricter(text []byte) bool {
	if !utf8.Valid(text) {
		return true
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		i++
		if text[i] != 'u' {
			continue
		}
		r, _ := strconv.ParseUint(string(text[i+1:i+5]), 16, 16)
		i += 4
		if r >= 0xDC00 && r < 0xE000 {
			return true
		}
		if r >= 0xD800 && r < 0xDC00 {
			rest := text[i+1:]
			if len(rest) < 6 || rest[0] != '\\' || rest[1] != 'u' {
				return true
			}
			low, _ := strconv.ParseUint(string(rest[2:6]), 16, 16)
			if low < 0xDC00 || low >= 0xE000 {
				return true
			}
			i += 6
		}
	}
	return nestedOrTwice(text)
}

// nestedOrTwice says whether a valid text is nested too deep or has a name twice in one object.
func nestedOrTwice(text []byte) bool {
	type level struct {
		names  map[string]bool // nil in an array
		isName bool
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var stack []level
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return false
		}
		if err != nil {
			return true // deeper than encoding/json goes
		}
		if delim, ok := tok.(json.Delim); ok && (delim == ']' || delim == '}') {
			stack = stack[:len(stack)-1]
			continue
		}
		if top := len(stack) - 1; top >= 0 && stack[top].names != nil {
			l := &stack[top]
			l.isName = !l.isName
			if l.isName {
				name := tok.(string)
				if l.names[name] {
					return true
				}
				l.names[name] = true
				continue
			}
		}
		if delim, ok := tok.(json.Delim); ok {
			l := level{}
			if delim == '{' {
				l.names = map[string]bool{}
			}
			if stack = append(stack, l); len(stack) > maxDepth {
				return true
			}
		}
	}
}

func FuzzParseAgreesWithEncodingJSON(f *testing.F) {
	for _, s := range []string{
		`{"a":[1,2.5e-3,"x\u00e9\ud83d\ude00",true,false,null]}`, `{"a":1,"\u0061":2}`, "[", "[1,]", "\"\xff\"", `"\ud800"`, `"\ud800\u0041"`,
		"{" + manyMembers(20) + "}", "{" + manyMembers(20) + `,"k3":0}`, strings.Repeat("[", 1001), " 1 ", "-", "1.", "1e", "\"\x00\"", `{"a":{}}`, "tru", `"\`, `"\u12`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := parse(text)
		if err == nil {
			defer d.release()
		}
		want := json.Valid(text) && !stricter(text)
		if (err == nil) != want {
			t.Fatalf("%q: got %v, want valid: %v", text, err, want)
		}
		var e *MalformedError
		if err != nil && (!errors.As(err, &e) || e.Offset < 0 || e.Offset > len(text)) {
			t.Errorf("%q: %#v is no *MalformedError with an offset in the text", text, err)
		}
	})
}
