package key

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"
)

func TestVectorsOfRFC8785(t *testing.T) {
	inputs, err := filepath.Glob("testdata/rfc8785/input/*.json")
	if err != nil || len(inputs) != 6 {
		t.Fatalf("%d inputs (%v), want 6", len(inputs), err)
	}
	for _, input := range inputs {
		t.Run(filepath.Base(input), func(t *testing.T) {
			in, err := os.ReadFile(input)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(filepath.Join("testdata/rfc8785/output", filepath.Base(input)))
			if err != nil {
				t.Fatal(err)
			}
			if got := canonical(t, in); got != string(want) {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestCanonicalForm(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"the example of RFC 8785, section 3.2.2": {
			`{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
			  "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/", "literals": [null, true, false]}`,
			`{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}`,
		},
		"the example of RFC 8785, section 3.2.3": {
			`{"\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh", "1": "One",
			  "\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control", "\u00f6": "Latin Small Letter O With Diaeresis"}`,
			"{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u0080\":\"Control\",\"ö\":\"Latin Small Letter O With Diaeresis\"," +
				"\"€\":\"Euro Sign\",\"😀\":\"Emoji: Grinning Face\",\"\ufb33\":\"Hebrew Letter Dalet With Dagesh\"}",
		},
		"names are ordered by UTF-16":       {"{\"\uFB33\":1,\"\U0001F600\":2,\"\uD7FF\":3,\"\uE000\":4}", "{\"\uD7FF\":3,\"\U0001F600\":2,\"\uE000\":4,\"\uFB33\":1}"},
		"a prefix comes first":              {`{"ab":1,"a":2,"":3}`, `{"":3,"a":2,"ab":1}`},
		"control characters":                {`"\u0000\u0007\b\t\n\u000b\f\r\u001f\u007f"`, `"\u0000\u0007\b\t\n\u000b\f\r\u001f` + "\x7f\""},
		"a solidus is not escaped":          {`"\/"`, `"/"`},
		"white space goes":                  {" [ 1 , { } ] ", "[1,{}]"},
		"minus zero":                        {"[-0,-0.0,-0e5]", "[0,0,0]"},
		"a whole fraction":                  {"[1.0,10e-1,1e2]", "[1,1,100]"},
		"the borders of the exponent":       {"[1e21,1e20,999999999999999999999,1e-6,1e-7,1.5e-10]", "[1e+21,100000000000000000000,999999999999999999999,0.000001,1e-7,1.5e-10]"},
		"an integer of 2^53":                {"9007199254740992", "9007199254740992"},
		"an integer that no double holds":   {"[9007199254740993,-9007199254740993]", "[9007199254740993,-9007199254740993]"},
		"a snowflake":                       {"1234567890123456789", "1234567890123456789"},
		"the shortest digits of a double":   {"[295147905179352830000,-295147905179352830000]", "[295147905179352830000,-295147905179352830000]"},
		"integers of 21 digits":             {"[-999999999999999999999,-295147905179352825856]", "[-999999999999999999999,-295147905179352825856]"},
		"the exact value of that double":    {"295147905179352825856", "295147905179352825856"},
		"the same with a fraction":          {"295147905179352825856.0", "295147905179352830000"},
		"a power of ten beyond 10^21":       {"[1000000000000000000000,-1000000000000000000000]", "[1e+21,-1e+21]"},
		"its neighbour":                     {"[1000000000000000000001,10000000000000000000000]", "[1000000000000000000001,1e+22]"},
		"digits and zeros beyond 10^21":     {"1500000000000000000000", "1.5e+21"},
		"the greatest and the least double": {"[1.7976931348623157e308,5e-324]", "[1.7976931348623157e+308,5e-324]"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := canonical(t, []byte(tc.in)); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestNumbersBeyondADoubleAreMalformed(t *testing.T) {
	for _, in := range []string{"[0,1e400]", "[0,-1e309]", "[0,1" + strings.Repeat("0", 400) + "]"} {
		_, err := tryCanonical([]byte(in))
		var e *MalformedError
		if !errors.As(err, &e) || e.Offset != 3 {
			t.Errorf("%.20s: got %v, want a *MalformedError at offset 3", in, err)
		}
		if err != nil && len(err.Error()) > 200 {
			t.Errorf("%.20s: the error repeats the number: %d bytes", in, len(err.Error()))
		}
	}
}

func TestNumbersOfRFC8785AppendixB(t *testing.T) {
	for bits, want := range map[uint64]string{
		0x0000000000000000: "0", 0x8000000000000000: "0",
		0x0000000000000001: "5e-324", 0x8000000000000001: "-5e-324",
		0x7fefffffffffffff: "1.7976931348623157e+308", 0xffefffffffffffff: "-1.7976931348623157e+308",
		0x4340000000000000: "9007199254740992", 0xc340000000000000: "-9007199254740992",
		0x4430000000000000: "295147905179352830000",
		0x44b52d02c7e14af5: "9.999999999999997e+22", 0x44b52d02c7e14af6: "1e+23", 0x44b52d02c7e14af7: "1.0000000000000001e+23",
		0x444b1ae4d6e2ef4e: "999999999999999700000", 0x444b1ae4d6e2ef4f: "999999999999999900000", 0x444b1ae4d6e2ef50: "1e+21",
		0x3eb0c6f7a0b5ed8c: "9.999999999999997e-7", 0x3eb0c6f7a0b5ed8d: "0.000001",
		0x41b3de4355555553: "333333333.3333332", 0x41b3de4355555554: "333333333.33333325",
		0x41b3de4355555555: "333333333.3333333", 0x41b3de4355555556: "333333333.3333334",
		0x41b3de4355555557: "333333333.33333343", 0xbecbf647612f3696: "-0.0000033333333333333333",
		0x43143ff3c1cb0959: "1424953923781206.2",
	} {
		if got := string(appendES6(nil, math.Float64frombits(bits))); got != want {
			t.Errorf("%016x: got %s, want %s", bits, got, want)
		}
	}
}

// The sequence of numbers and its checksum are defined in the README of the public test data.
func TestSequenceOfES6Numbers(t *testing.T) {
	const lines, want = 100_000, "22776e6d4b49fa294a0d0f349268e5c28808fe7e0cb2bcbe28f63894e494d4c7"
	data, err := os.ReadFile("testdata/rfc8785/numbers.txt")
	if err != nil {
		t.Fatal(err)
	}
	var numbers []uint64
	for _, bits := range strings.Fields(string(data)) {
		n, err := strconv.ParseUint(bits, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, n)
	}
	for i := range uint64(2000) {
		numbers = append(numbers, 0x0010000000000000+i)
	}
	for block := [32]byte{}; len(numbers) < lines; {
		block = sha256.Sum256(block[:])
		for i := 0; i < len(block); i += 8 {
			n := binary.LittleEndian.Uint64(block[i:])
			if f := math.Float64frombits(n); f != 0 && !math.IsInf(f, 0) && !math.IsNaN(f) {
				numbers = append(numbers, n)
			}
		}
	}
	h := sha256.New()
	var line []byte
	for _, n := range numbers[:lines] {
		line = strconv.AppendUint(line[:0], n, 16)
		line = append(line, ',')
		line = appendES6(line, math.Float64frombits(n))
		h.Write(append(line, '\n'))
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		t.Errorf("checksum of %d lines: got %s, want %s", lines, got, want)
	}
}

// scramble writes a value in another way: members in reverse, white space everywhere, every
// character of a string as an escape.
func scramble(d *document, b *strings.Builder, at uint32) {
	n := d.nodes[at]
	b.WriteString(" \t")
	switch n.kind {
	case kindString:
		b.WriteByte('"')
		for _, u := range utf16.Encode([]rune(string(d.decoded(at)))) {
			fmt.Fprintf(b, `\u%04X`, u)
		}
		b.WriteByte('"')
	case kindArray:
		b.WriteByte('[')
		for i := at + 1; i < n.next; i = d.nodes[i].next {
			if i > at+1 {
				b.WriteByte(',')
			}
			scramble(d, b, i)
		}
		b.WriteByte(']')
	case kindObject:
		var names []uint32
		for i := at + 1; i < n.next; i = d.nodes[i+1].next {
			names = append(names, i)
		}
		b.WriteByte('{')
		for i := len(names) - 1; i >= 0; i-- {
			scramble(d, b, names[i])
			b.WriteByte(':')
			scramble(d, b, names[i]+1)
			if i > 0 {
				b.WriteByte(',')
			}
		}
		b.WriteByte('}')
	default:
		b.Write(d.raw(at))
	}
	b.WriteString("\r\n")
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{
		`{"b":[1.50,9007199254740993,1e21,-0],"a":{"\u00e9":"\n","😀":null,"":true}}`, "[1000000000000000000000]", `"\u007f"`,
		"{" + manyMembers(20) + "}", `{"\ufb33":1,"\ud83d\ude00":2}`, "295147905179352825856.0", "1e-7", "123456789012345678901234567890",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := parse(text)
		if err != nil {
			return
		}
		defer d.release()
		first, err := d.appendCanonical(nil, 0)
		if err != nil {
			return // a number beyond a double
		}
		if again := canonical(t, first); again != string(first) {
			t.Errorf("%q: canonical form %s becomes %s", text, first, again)
		}
		var b strings.Builder
		scramble(d, &b, 0)
		if other := canonical(t, []byte(b.String())); other != string(first) {
			t.Errorf("%q: got %s, written otherwise %s", text, first, other)
		}
		if len(d.members) != 0 {
			t.Errorf("%q: %d members left over", text, len(d.members))
		}
	})
}
