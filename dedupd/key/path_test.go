package key

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"unicode/utf8"
)

func mustPath(tb testing.TB, s string) *Path {
	tb.Helper()
	p, err := ParsePath(s)
	if err != nil {
		tb.Fatalf("path %s: %v", s, err)
	}
	return &p
}

func canonical(tb testing.TB, text []byte) string {
	tb.Helper()
	out, err := tryCanonical(text)
	if err != nil {
		tb.Fatalf("%s: %v", text, err)
	}
	return out
}

func tryCanonical(text []byte) (string, error) {
	d, err := parse(text)
	if err != nil {
		return "", err
	}
	defer d.release()
	out, err := d.appendCanonical(nil, 0)
	return string(out), err
}

func TestComplianceSuiteOfRFC9535(t *testing.T) {
	data, err := os.ReadFile("testdata/rfc9535.json")
	if err != nil {
		t.Fatal(err)
	}
	var suite struct {
		Tests []struct {
			Name        string
			Selector    string
			Document    json.RawMessage
			Result      []json.RawMessage
			Invalid     bool `json:"invalid_selector"`
			NotSingular bool `json:"not_singular"`
		}
	}
	if err := json.Unmarshal(data, &suite); err != nil {
		t.Fatal(err)
	}
	if len(suite.Tests) < 300 {
		t.Fatalf("%d tests, the file has lost some", len(suite.Tests))
	}
	for _, tc := range suite.Tests {
		t.Run(tc.Name, func(t *testing.T) {
			p, err := ParsePath(tc.Selector)
			if tc.Invalid || tc.NotSingular {
				if err == nil {
					t.Fatalf("%q was accepted", tc.Selector)
				}
				if tc.NotSingular && !strings.Contains(err.Error(), "may select several values") {
					t.Errorf("%q: %v; does not say that it may select several values", tc.Selector, err)
				}
				return
			}
			if err != nil {
				t.Fatalf("%q: %v", tc.Selector, err)
			}
			d, err := parse(tc.Document)
			if err != nil {
				t.Fatal(err)
			}
			defer d.release()
			at, ok := d.find(&p)
			if ok != (len(tc.Result) == 1) {
				t.Fatalf("%q found a value: %v, want %d", tc.Selector, ok, len(tc.Result))
			}
			if !ok {
				return
			}
			got, err := d.appendCanonical(nil, at)
			if err != nil {
				t.Fatal(err)
			}
			if want := canonical(t, tc.Result[0]); string(got) != want {
				t.Errorf("%q: got %s, want %s", tc.Selector, got, want)
			}
		})
	}
}

func TestPathErrorsSayWhereAndWhat(t *testing.T) {
	for name, tc := range map[string]struct{ path, want string }{
		"empty":                     {"", "offset 0: a path starts with $"},
		"no root":                   {"id", "offset 0: a path starts with $"},
		"a relative path":           {"@.id", "offset 0: a path starts with $"},
		"no dot":                    {"$id", "offset 1: want '.' or '['"},
		"a hyphen in a dotted name": {"$.user-id", "offset 6: want '.' or '['"},
		"a trailing dot":            {"$.a.", "offset 4: want a member name"},
		"a trailing space":          {"$.a ", "offset 3: white space at the end"},
		"a descendant segment":      {"$.a..b", "offset 3: '..' may select several values"},
		"a wildcard after a dot":    {"$.a.*", "offset 4: the wildcard * may select several values"},
		"a wildcard in brackets":    {"$.a[ * ]", "offset 5: the wildcard * may select several values"},
		"a filter":                  {"$.a[?@.b]", "offset 4: a filter may select several values"},
		"a slice":                   {"$.a[1:2]", "offset 5: a slice may select several values"},
		"two names":                 {"$['a','b']", "offset 5: several selectors may select several values"},
		"an open bracket":           {"$['a'", "offset 5: want ']'"},
		"an open quote":             {"$['a", "offset 2: the name has no closing '"},
		"a bare name in brackets":   {"$[a]", "offset 2: want a name in quotes"},
		"a leading zero":            {"$[07]", "offset 2: an index has no leading zeros"},
		"an index beyond 2^53-1":    {"$[9007199254740992]", "offset 2: the index is out of range"},
		"a lone surrogate":          {`$["\uD800"]`, "offset 3: want \\u and four hexadecimal digits, a surrogate only in a pair"},
		"an unknown escape":         {`$["a\q"]`, "offset 4: not an escape of RFC 9535"},
		"the other quote escaped":   {`$["\'"]`, "offset 3: not an escape of RFC 9535"},
		"a control character":       {"$['a\tb']", "offset 4: control character 0x09"},
		"a NUL":                     {"$\x00.a", "offset 1: want '.' or '['"},
		"not UTF-8":                 {"$.a\xff", "offset 3: not UTF-8"},
		"a replacement character is allowed, what follows is not": {"$.\uFFFD\xff", "offset 5: not UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParsePath(tc.path)
			if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("%q: got %v, want %s…", tc.path, err, tc.want)
			}
		})
	}
}

func TestPathKeepsItsText(t *testing.T) {
	for _, s := range []string{"$", "$.a", "$ ['a'] [ -1 ]"} {
		if got := mustPath(t, s).String(); got != s {
			t.Errorf("got %q, want %q", got, s)
		}
	}
	if got := (Path{}).String(); got != "$" {
		t.Errorf("zero path: got %q, want $", got)
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"$", "$.a.b", "$['\\u00e9'][-1]", `$["\uD83D\uDE00"]`, "$..a", "$[?@.a]", "$[0:1]", "$\xff", "$['", "$[-", "$[''"} {
		f.Add(s)
	}
	d, err := parse([]byte(`{"a":[{"b":1},[]],"":{"":{}}}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePath(s)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "offset ") {
				t.Errorf("%q: %v has no offset", s, err)
			}
			return
		}
		if !utf8.ValidString(s) || s[0] != '$' {
			t.Errorf("%q was accepted", s)
		}
		if p.String() != s {
			t.Errorf("String: got %q, want %q", p.String(), s)
		}
		d.find(&p)
	})
}
