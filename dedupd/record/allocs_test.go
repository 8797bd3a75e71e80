package record_test

import (
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/record"
)

func TestARecordIsWrittenAndReadWithoutAnAllocation(t *testing.T) {
	r := record.Record{
		State: record.Claimed, Owner: record.OwnerOf("a"), FirstSeen: time.UnixMilli(1_700_000_000_000).UTC(),
		Fence: 7, Lease: time.Second, Window: time.Minute, Digest: record.DigestOf([]byte("x")),
	}
	b := make([]byte, 0, 64)
	for name, step := range map[string]func(){
		"written": func() { b = r.Append(b[:0]) },
		"read": func() {
			if got, err := record.Decode(b); err != nil || got != r {
				t.Errorf("%+v %v", got, err)
			}
		},
		"its owner": func() { r.Owner = record.OwnerOf("a") },
	} {
		b = r.Append(b[:0])
		if n := testing.AllocsPerRun(100, step); n != 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
}
