package key

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func header(name string) Source { return Source{Header: name} }
func path(tb testing.TB, s string) Source {
	tb.Helper()
	return Source{Path: mustPath(tb, s)}
}
func body(s string) Message                  { return Message{Body: []byte(s)} }
func headers(m map[string]string) MapHeaders { return MapHeaders(m) }
func sha(s string) string                    { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) }
func with(h map[string]string, b string) Message {
	return Message{Headers: headers(h), Body: []byte(b)}
}

func paths(tb testing.TB, list ...string) []Path {
	tb.Helper()
	var out []Path
	for _, s := range list {
		out = append(out, *mustPath(tb, s))
	}
	return out
}

func TestKeys(t *testing.T) {
	const order = `{"id":"A-1","n":1,"s":"1","null":null,"empty":"","yes":true,"list":[1,"a"],"obj":{"b":2,"a":1},"nested":{"deep":[{"x y":"é:/{}"}]}}`
	h := map[string]string{"message-id": "m 1", "empty": "", "dot": ".", "dots": "..", "raw": "\xff\x00"}
	for name, tc := range map[string]struct {
		strategy Strategy
		want     string
		err      string
	}{
		"a header":                       {MessageID(header("Message-ID")), "m=201", ""},
		"a header of arbitrary bytes":    {MessageID(header("raw")), "=FF=00", ""},
		"an absent header":               {MessageID(header("X-None")), "", `header "x-none" is absent`},
		"an empty header":                {MessageID(header("empty")), "", `header "empty" is empty`},
		"a dot alone":                    {MessageID(header("dot")), "=2E", ""},
		"two dots alone":                 {MessageID(header("dots")), "=2E=2E", ""},
		"a string":                       {MessageID(path(t, "$.id")), "A-1", ""},
		"a number":                       {MessageID(path(t, "$.n")), "~1", ""},
		"the string of a number":         {MessageID(path(t, "$.s")), "1", ""},
		"a boolean":                      {MessageID(path(t, "$.yes")), "~true", ""},
		"an array":                       {MessageID(path(t, "$.list")), "~=5B1,=22a=22=5D", ""},
		"an object":                      {MessageID(path(t, "$.obj")), "~=7B=22a=22=3A1,=22b=22=3A2=7D", ""},
		"a nested quoted name":           {MessageID(path(t, "$.nested['deep'][-1]['x y']")), "=C3=A9=3A=2F=7B=7D", ""},
		"an absent member":               {MessageID(path(t, "$.nested.none")), "", "path $.nested.none is absent"},
		"null":                           {MessageID(path(t, "$.null")), "", "path $.null is null"},
		"an empty string":                {MessageID(path(t, "$.empty")), "", "path $.empty is empty"},
		"several parts":                  {Composite([]Source{path(t, "$.id"), header("MESSAGE-ID"), path(t, "$.n")}), "A-1:m=201:~1", ""},
		"several parts, the last absent": {Composite([]Source{path(t, "$.id"), header("none")}), "", `header "none" is absent`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tc.strategy.AppendKey([]byte("dst:"), with(h, order))
			if tc.err != "" {
				var missing *MissingError
				if !errors.As(err, &missing) || err.Error() != tc.err {
					t.Errorf("got error %v, want %s", err, tc.err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if string(got) != "dst:"+tc.want {
				t.Errorf("got %s, want dst:%s", got, tc.want)
			}
		})
	}
}

func TestAMessageWithoutHeaders(t *testing.T) {
	_, err := MessageID(header("id")).AppendKey(nil, body("{}"))
	if err == nil || err.Error() != `header "id" is absent` {
		t.Errorf("got %v", err)
	}
}

func TestABodyThatIsNoJSON(t *testing.T) {
	for name, tc := range map[string]struct {
		strategy Strategy
		body     string
	}{
		"a path into text":                         {MessageID(path(t, "$.id")), "hello"},
		"a path into nothing":                      {MessageID(path(t, "$.id")), ""},
		"a path before the error":                  {MessageID(path(t, "$.id")), `{"id":"1",}`},
		"a path that selects a number too great":   {MessageID(path(t, "$.id")), `{"id":1e999}`},
		"the canonical form of text":               {ContentHash(ContentOptions{Canonical: true}), "hello"},
		"the canonical form of nothing":            {ContentHash(ContentOptions{Canonical: true}), ""},
		"the canonical form of a name twice":       {ContentHash(ContentOptions{Canonical: true}), `{"a":1,"a":2}`},
		"an included path into text":               {ContentHash(ContentOptions{Include: paths(t, "$.a")}), "hello"},
		"the canonical form of a number too great": {ContentHash(ContentOptions{Canonical: true}), "1e999"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tc.strategy.AppendKey([]byte("dst"), body(tc.body))
			var malformed *MalformedError
			if !errors.As(err, &malformed) || malformed.What != "body" {
				t.Errorf("got %v, want a *MalformedError of the body", err)
			}
			if string(got) != "dst" {
				t.Errorf("dst came back as %s", got)
			}
		})
	}
}

// frame is the encoding that the documentation of ContentHash describes.
func frame(values ...any) string {
	var b strings.Builder
	for _, v := range values {
		if v == nil {
			b.WriteByte(0)
			continue
		}
		s := v.(string)
		b.WriteByte(1)
		_ = binary.Write(&b, binary.BigEndian, uint64(len(s)))
		b.WriteString(s)
	}
	return b.String()
}

func TestContentHash(t *testing.T) {
	const text = `{ "b": 1.0, "a": [1, {"x": "y"}, 3], "t": null }`
	h := map[string]string{"tenant": "t1", "empty": ""}
	for name, tc := range map[string]struct {
		options ContentOptions
		hashed  string
		err     string
	}{
		"the bytes":                      {ContentOptions{}, text, ""},
		"the canonical form":             {ContentOptions{Canonical: true}, `{"a":[1,{"x":"y"},3],"b":1,"t":null}`, ""},
		"without a member":               {ContentOptions{Exclude: paths(t, "$.t")}, `{"a":[1,{"x":"y"},3],"b":1}`, ""},
		"without the first member":       {ContentOptions{Exclude: paths(t, "$.a")}, `{"b":1,"t":null}`, ""},
		"without elements":               {ContentOptions{Exclude: paths(t, "$.a[0]", "$.a[1]")}, `{"a":[3],"b":1,"t":null}`, ""},
		"without the last element":       {ContentOptions{Exclude: paths(t, "$.a[-1]")}, `{"a":[1,{"x":"y"}],"b":1,"t":null}`, ""},
		"without all elements":           {ContentOptions{Exclude: paths(t, "$.a[0]", "$.a[1]", "$.a[2]")}, `{"a":[],"b":1,"t":null}`, ""},
		"without a nested member":        {ContentOptions{Exclude: paths(t, "$.a[1].x")}, `{"a":[1,{},3],"b":1,"t":null}`, ""},
		"without what is not there":      {ContentOptions{Exclude: paths(t, "$.none", "$.a[7]", "$.b.c")}, `{"a":[1,{"x":"y"},3],"b":1,"t":null}`, ""},
		"without anything":               {ContentOptions{Exclude: paths(t, "$")}, "", "the content beside what is excluded is absent"},
		"a member":                       {ContentOptions{Include: paths(t, "$.b")}, frame("1"), ""},
		"members, one absent":            {ContentOptions{Include: paths(t, "$.none", "$.a[1]")}, frame(nil, `{"x":"y"}`), ""},
		"a null is present":              {ContentOptions{Include: paths(t, "$.t")}, frame("null"), ""},
		"a member that is absent":        {ContentOptions{Include: paths(t, "$.none")}, "", "path $.none is absent"},
		"members that are all absent":    {ContentOptions{Include: paths(t, "$.none", "$.a.b")}, "", "each of the paths $.none, $.a.b is absent"},
		"headers and bytes":              {ContentOptions{Headers: []string{"Tenant", "none", "empty"}}, frame("t1", nil, "", text), ""},
		"headers and the canonical form": {ContentOptions{Canonical: true, Headers: []string{"tenant"}}, frame("t1", `{"a":[1,{"x":"y"},3],"b":1,"t":null}`), ""},
		"headers and members":            {ContentOptions{Include: paths(t, "$.b"), Headers: []string{"tenant"}}, frame("t1", "1"), ""},
		"headers and exclusion":          {ContentOptions{Exclude: paths(t, "$.a"), Headers: []string{"none"}}, frame(nil, `{"b":1,"t":null}`), ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ContentHash(tc.options).AppendKey(nil, with(h, text))
			if tc.err != "" {
				var missing *MissingError
				if !errors.As(err, &missing) || err.Error() != tc.err {
					t.Errorf("got %v, want %s", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := sha(tc.hashed); string(got) != want {
				t.Errorf("got %s, want %s, of %q", got, want, tc.hashed)
			}
		})
	}
}

func TestExclusionDoesNotOutliveItsMessage(t *testing.T) {
	strip := ContentHash(ContentOptions{Exclude: paths(t, "$.a")})
	whole := ContentHash(ContentOptions{Canonical: true})
	for range 100 { // so that the pool surely hands out what strip used
		if _, err := strip.AppendKey(nil, body(`{"a":1,"b":2}`)); err != nil {
			t.Fatal(err)
		}
		got, err := whole.AppendKey(nil, body(`{"a":1,"b":2}`))
		if err != nil || string(got) != sha(`{"a":1,"b":2}`) {
			t.Fatalf("got %s, %v", got, err)
		}
	}
}

func TestStrategiesMayBeSharedByGoroutines(t *testing.T) {
	s := Composite([]Source{path(t, "$.o"), path(t, "$['\\u00e9']")})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			m := body(fmt.Sprintf(`{"\u00e9":"%d","o":{"\u0062":%d,"a":"\n"}}`, i, i))
			want := fmt.Sprintf("~=7B=22a=22=3A=22=5Cn=22,=22b=22=3A%d=7D:%d", i, i)
			for range 500 {
				got, err := s.AppendKey(nil, m)
				if err != nil || string(got) != want {
					t.Errorf("got %s, %v, want %s", got, err, want)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestNewMapHeaders(t *testing.T) {
	got, err := NewMapHeaders(map[string]string{"Message-ID": "1", "ce-id": "2"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(MapHeaders{"message-id": "1", "ce-id": "2"}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := NewMapHeaders(map[string]string{"A": "1", "a": "2"}); err == nil || !strings.Contains(err.Error(), `"a" is given more than once`) {
		t.Errorf("two names that differ by case: got %v", err)
	}
}

func TestEscaping(t *testing.T) {
	for in, want := range map[string]string{
		"":             "",
		"azAZ09-._@+,": "azAZ09-._@+,",
		"a:b":          "a=3Ab",
		"=":            "=3D",
		"~1":           "=7E1",
		"{tag}/%20 é":  "=7Btag=7D=2F=2520=20=C3=A9",
		".":            "=2E",
		"..":           "=2E=2E",
		"...":          "...",
		".a":           ".a",
	} {
		if got := string(AppendEscaped([]byte("x"), in)); got != "x"+want {
			t.Errorf("%q: got %s, want x%s", in, got, want)
		}
	}
	if got := string(AppendConsumer(nil, "billing:eu")); got != "billing=3Aeu" {
		t.Errorf("consumer: got %s", got)
	}
}

func TestShorten(t *testing.T) {
	fits := strings.Repeat("k", MaxReadable)
	if got := string(Shorten([]byte(fits), 10)); got != fits {
		t.Errorf("a key of %d bytes became %s", MaxReadable, got)
	}
	const prefix = "billing:"
	long := prefix + strings.Repeat("k", MaxReadable)
	want := prefix + "~sha256:" + sha(long[len(prefix):])
	if got := string(Shorten([]byte(long), len(prefix))); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	wide := strings.Repeat("p", 300) + ":"
	want = wide + "~sha256:" + sha("rest")
	if got := string(Shorten([]byte(wide+"rest"), len(wide))); got != want {
		t.Errorf("a long prefix: got %s, want %s", got, want)
	}
}

// partsOf reads a fuzzer's bytes as a message of parts, separated by the byte 0x1F, and returns
// it with its strategy and an encoding of the parts that is injective without doubt. A part that
// starts with '~' and is JSON is a value in the body, any other is a header.
func partsOf(t *testing.T, data []byte) (Strategy, Message, string) {
	t.Helper()
	values, h, identity := []string{}, MapHeaders{}, []string{}
	var sources []Source
	for i, part := range strings.Split(string(data), "\x1f") {
		text, err := "", errors.New("no JSON")
		if rest, ok := strings.CutPrefix(part, "~"); ok {
			text, err = tryCanonical([]byte(rest))
		}
		if err == nil {
			sources = append(sources, path(t, fmt.Sprintf("$[%d]", len(values))))
			values = append(values, text)
			var s string
			if json.Unmarshal([]byte(text), &s) == nil && text != "null" {
				identity = append(identity, "text", s)
			} else {
				identity = append(identity, "json", text)
			}
			continue
		}
		name := fmt.Sprint("h", i)
		sources = append(sources, header(name))
		h[name] = part
		identity = append(identity, "text", part)
	}
	m := Message{Headers: h, Body: []byte("[" + strings.Join(values, ",") + "]")}
	var all []any
	for _, s := range identity {
		all = append(all, s)
	}
	return Composite(sources), m, frame(all...)
}

func FuzzKeysAreInjective(f *testing.F) {
	for _, s := range [][2]string{
		{"a\x1fbc", "ab\x1fc"}, {"a:b", "a\x1fb"}, {"1", "~1"}, {"~\"1\"", "1"}, {"=3A", ":"}, {"~true", "true"}, {"~[1]", "~[1.0]"},
		{"~{\"a\":1,\"b\":2}", "~{\"b\":2,\"a\":1}"}, {".", "=2E"}, {"~9007199254740993", "~9007199254740992"}, {"~null", "null"}, {"\xff", "\xef\xbf\xbd"}, {"~1e21", "~1000000000000000000000"},
	} {
		f.Add([]byte(s[0]), []byte(s[1]))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		sa, ma, identityA := partsOf(t, a)
		sb, mb, identityB := partsOf(t, b)
		ka, errA := sa.AppendKey(nil, ma)
		kb, errB := sb.AppendKey(nil, mb)
		if errA != nil || errB != nil {
			return // something is empty or null, or nested too deep
		}
		if (identityA == identityB) != bytes.Equal(ka, kb) {
			t.Errorf("%q and %q: keys %s and %s", a, b, ka, kb)
		}
		for _, c := range ka {
			if !plain[c] && c != '=' && c != ':' && c != '~' {
				t.Errorf("%q: key %s holds %q", a, ka, c)
			}
		}
		for _, part := range strings.Split(string(ka), ":") {
			if part == "" || part == "." || part == ".." {
				t.Errorf("%q: key %s has the part %q", a, ka, part)
			}
		}
	})
}

func TestHotPathsDoNotAllocate(t *testing.T) {
	h := map[string]string{"message-id": "6f1c2b9e-8a53-4f0e-9d6c-2f7d3b1a9c55", "ce-source": "/orders", "ce-id": "A-1"}
	m := with(h, `{"id":"A-1","user":{"id":42,"name":"J\u00f6rg"},"items":[{"sku":"x","n":2}]}`)
	for name, s := range map[string]Strategy{
		"a header":           MessageID(header("Message-ID")),
		"a CloudEvent":       CloudEvent(),
		"a path":             MessageID(path(t, "$.id")),
		"header and paths":   Composite([]Source{header("message-id"), path(t, "$.user.id"), path(t, "$.items[-1]")}),
		"the bytes":          ContentHash(ContentOptions{}),
		"the canonical form": ContentHash(ContentOptions{Canonical: true}),
	} {
		dst := make([]byte, 0, MaxReadable)
		n := testing.AllocsPerRun(200, func() {
			if _, err := s.AppendKey(dst, m); err != nil {
				t.Fatal(err)
			}
		})
		// A pool may lose what it holds at any time, most of all under the race detector.
		if n > 0 && (name == "a header" || name == "a CloudEvent" || !raceEnabled) {
			t.Errorf("%s: %v allocations for each key, want none", name, n)
		}
	}
}
