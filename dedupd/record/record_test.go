package record_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dedupd/dedup-operator/dedupd/record"
)

var (
	owner = record.OwnerOf("attempt-1")
	seen  = time.Date(2024, 5, 1, 10, 0, 0, int(123*time.Millisecond), time.UTC)
)

// sample is a record of a state with every field that the state stores.
func sample(s record.State) record.Record {
	r := record.Record{State: s, Owner: owner, FirstSeen: seen}
	if s != record.Marked {
		r.Fence, r.Window = 1<<63+7, 168*time.Hour
	}
	if s == record.Claimed {
		r.Lease = 30 * time.Second
	}
	return r
}

func withDigest(r record.Record) record.Record {
	r.Digest = record.DigestOf([]byte("content"))
	return r
}

var states = []record.State{record.Marked, record.Claimed, record.Completed, record.Released}

func TestRoundTrip(t *testing.T) {
	records := map[string]record.Record{
		"the longest lease and window": {State: record.Claimed, Owner: owner, FirstSeen: seen, Fence: 1, Lease: record.MaxLease, Window: record.MaxWindow},
		"the least lease and window":   {State: record.Claimed, Owner: owner, FirstSeen: seen, Fence: 1, Lease: time.Millisecond, Window: time.Millisecond},
		"a time of 1970":               {State: record.Marked, Owner: owner, FirstSeen: time.UnixMilli(0).UTC()},
		"a time far away":              {State: record.Marked, Owner: owner, FirstSeen: time.UnixMilli(1<<48 - 1).UTC()},
		"a zero owner":                 {State: record.Completed, FirstSeen: seen, Fence: 1, Window: time.Hour},
	}
	for _, s := range states {
		records[s.String()] = sample(s)
		records[s.String()+" with a digest"] = withDigest(sample(s))
	}
	for name, r := range records {
		t.Run(name, func(t *testing.T) {
			got, err := record.Decode(r.Append(nil))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(r, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAppendKeepsWhatStandsBefore(t *testing.T) {
	b := sample(record.Claimed).Append([]byte("before"))
	if !strings.HasPrefix(string(b), "before") {
		t.Fatalf("got %q", b)
	}
	if _, err := record.Decode(b[len("before"):]); err != nil {
		t.Error(err)
	}
}

// The lengths tell the forms apart, for Redis scripts too.
func TestLengths(t *testing.T) {
	for _, s := range states {
		want, wantDigest := 41, 57
		if s == record.Marked {
			want, wantDigest = 23, 39
		}
		if got := len(sample(s).Append(nil)); got != want {
			t.Errorf("%s: %d bytes, want %d", s, got, want)
		}
		if got := len(withDigest(sample(s)).Append(nil)); got != wantDigest {
			t.Errorf("%s with a digest: %d bytes, want %d", s, got, wantDigest)
		}
	}
}

// What is stored outlives this version of the software: these bytes may never mean anything else.
func TestTheBinaryFormIsFixed(t *testing.T) {
	r := record.Record{
		State: record.Claimed, Owner: record.Owner([]byte("0123456789abcdef")), FirstSeen: time.UnixMilli(0x0102030405).UTC(),
		Fence: 7, Lease: 0x1000 * time.Millisecond, Window: 0x20000 * time.Millisecond, Digest: record.Digest([]byte("ABCDEFGHIJKLMNOP")),
	}
	const want = "\x120123456789abcdef\x00\x01\x02\x03\x04\x05ABCDEFGHIJKLMNOP" +
		"\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x10\x00\x00\x00\x00\x02\x00\x00"
	if got := string(r.Append(nil)); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestATimeBefore1970IsStoredAs1970(t *testing.T) {
	got, err := record.Decode(record.Record{State: record.Marked, FirstSeen: time.Unix(-5, 0)}.Append(nil))
	if err != nil || !got.FirstSeen.Equal(time.UnixMilli(0)) {
		t.Errorf("got %v, %v", got.FirstSeen, err)
	}
}

func TestCorruptInput(t *testing.T) {
	marked, claimed := sample(record.Marked).Append(nil), sample(record.Claimed).Append(nil)
	altered := func(b []byte, first byte) []byte { return append([]byte{first}, b[1:]...) }
	for name, b := range map[string][]byte{
		"nothing":                   nil,
		"the value of a bare SETNX": []byte("1"),
		"one byte short":            marked[:len(marked)-1],
		"one byte long":             append(marked[:len(marked):len(marked)], 0),
		"a claim one byte short":    claimed[:len(claimed)-1],
		"a claim one byte long":     append(claimed[:len(claimed):len(claimed)], 0),
		"a claim cut to a mark":     claimed[:len(marked)],
		"a mark as long as a claim": altered(claimed, 0x11),
		"state 0":                   altered(marked, 0x10),
		"state 5":                   altered(claimed, 0x15),
		"version 0":                 altered(marked, 0x01),
		"version 2":                 altered(marked, 0x21),
		"a window beyond MaxWindow": append(claimed[:len(claimed)-6:len(claimed)-6], 0xff, 0xff, 0xff, 0xff, 0xff, 0xff),
		"text of a record's length": []byte("twenty-three characters"),
	} {
		t.Run(name, func(t *testing.T) {
			r, err := record.Decode(b)
			if !errors.Is(err, record.ErrCorrupt) {
				t.Errorf("got %+v, %v, want ErrCorrupt", r, err)
			}
		})
	}
}

// Owners and digests are stored too: they may never be computed otherwise.
func TestOwnersAndDigestsAreFixed(t *testing.T) {
	const abc = "\xba\x78\x16\xbf\x8f\x01\xcf\xea\x41\x41\x40\xde\x5d\xae\x22\x23" // SHA-256 of "abc"
	if got := record.OwnerOf("abc"); string(got[:]) != abc {
		t.Errorf("owner: got %x, want %x", got, abc)
	}
	if got := record.DigestOf([]byte("abc")); string(got[:]) != abc {
		t.Errorf("digest: got %x, want %x", got, abc)
	}
	if record.DigestOf(nil) == (record.Digest{}) {
		t.Error("the digest of nothing is that of an unverified content")
	}
}

func TestStatesHaveNames(t *testing.T) {
	want := []string{"MARKED", "CLAIMED", "COMPLETED", "RELEASED"}
	for i, s := range states {
		if s.String() != want[i] {
			t.Errorf("got %s, want %s", s, want[i])
		}
	}
	if got := record.State(9).String(); got != "State(9)" {
		t.Errorf("got %s", got)
	}
}

func TestTokens(t *testing.T) {
	for _, want := range []record.Token{{}, {Owner: owner}, {Owner: owner, Fence: 1}, {Owner: record.Owner([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")), Fence: 1<<64 - 1}} {
		s := want.String()
		if len(s) != 32 || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			t.Errorf("%+v travels as %q, want 32 characters that a URL takes", want, s)
		}
		got, err := record.ParseToken(s)
		if err != nil || got != want {
			t.Errorf("%q: got %+v, %v, want %+v", s, got, err, want)
		}
	}
}

func TestWhatIsNoToken(t *testing.T) {
	good := record.Token{Owner: owner, Fence: 3}.String()
	for name, s := range map[string]string{
		"nothing":             "",
		"none":                "none",
		"one character short": good[:31],
		"one character long":  good + "A",
		"four characters on":  good + "AAAA",
		"padding":             good[:31] + "=",
		"standard base64":     good[:31] + "+",
		"a line break within": good[:16] + "\n" + good[16:],
		"a space before":      " " + good,
	} {
		if got, err := record.ParseToken(s); !errors.Is(err, record.ErrToken) {
			t.Errorf("%s: got %+v, %v, want ErrToken", name, got, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range states {
		f.Add(sample(s).Append(nil))
		f.Add(withDigest(sample(s)).Append(nil))
	}
	f.Add([]byte("1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := record.Decode(b)
		if err != nil {
			if !errors.Is(err, record.ErrCorrupt) {
				t.Errorf("%x: %v is no ErrCorrupt", b, err)
			}
			return
		}
		again, err := record.Decode(r.Append(nil))
		if err != nil {
			t.Fatalf("%x: %+v does not decode: %v", b, r, err)
		}
		if diff := cmp.Diff(r, again); diff != "" {
			t.Errorf("%x: %s", b, diff)
		}
	})
}

func FuzzParseToken(f *testing.F) {
	f.Add(record.Token{Owner: owner, Fence: 3}.String())
	f.Add("none")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := record.ParseToken(s)
		if err == nil && token.String() != s {
			t.Errorf("%q and %q are one token", s, token.String())
		}
	})
}
