package cgroup

import "testing"

func TestParseMemory(t *testing.T) {
	for text, want := range map[string]int64{"268435456\n": 256 << 20, "max\n": 0, "": 0, "0\n": 0} {
		if got, ok := parseMemory(text); ok != (want > 0) || ok && got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, ok, want)
		}
	}
}
