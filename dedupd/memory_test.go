package main

import (
	"runtime"
	"testing"
)

func TestGarbageIsNotCollectedForEveryFewMessages(t *testing.T) {
	defer func() { ballast = nil }()
	collections := func() uint32 {
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 30 << 10 {
			garbage = make([]byte, 1<<10)
		}
		runtime.ReadMemStats(&after)
		return after.NumGC - before.NumGC
	}
	tuneGC(func(string) string { return "set" })
	if untuned := collections(); untuned < 2 {
		t.Errorf("%d collections for 30 MB with a setting of the user's own: it is not heeded, or this test shows nothing", untuned)
	}
	tuneGC(func(string) string { return "" })
	if tuned := collections(); tuned > 1 {
		t.Errorf("%d collections for 30 MB, want one at most", tuned)
	}
}

// garbage keeps the compiler from doing without it.
var garbage []byte
