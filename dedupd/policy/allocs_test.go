package policy

import (
	"testing"

	"github.com/dedupd/dedup-operator/dedupd/key"
)

// A key costs one allocation: the name under which the store keeps it, of which it is a part. In
// the compact format they are two.
func TestAllocationsOfAKey(t *testing.T) {
	const manifest = `
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: orders}
spec:
  key: {strategy: Composite, composite: {parts: [{jsonPath: $.user.id}, {jsonPath: $.event_type}, {header: tenant}]}}
  ttl: 1h
  store: {redis: {addresses: ["r:6379"], keyFormat: `
	m := key.Message{
		Headers: key.MapHeaders{"tenant": "a"},
		Body:    []byte(`{"user": {"id": 17, "name": "Ada"}, "event_type": "signup", "items": [1, 2, {"a": null}]}`),
	}
	for format, want := range map[string]float64{"Readable": 1, "Compact": 2} {
		policies, err := Read([]byte(manifest+format+"}}\n"), true)
		if err != nil {
			t.Fatal(err)
		}
		got := testing.AllocsPerRun(1000, func() {
			k, stored, err := policies[0].Keys("billing", m)
			if err != nil || k != "billing:~17:signup:a" || format == "Readable" && stored != "dedup:default:orders:billing:~17:signup:a" {
				t.Errorf("%q %q %v", k, stored, err)
			}
		})
		if raced {
			want += 4 // pools lose a part of what is put into them
		}
		if got > want {
			t.Errorf("%s: %v allocations, at most %v", format, got, want)
		}
		t.Logf("%s: %v", format, got)
	}
}
