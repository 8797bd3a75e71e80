package main

import (
	"os"
	"os/exec"
	"runtime"
	"testing"
)

func TestGarbageIsNotCollectedForEveryFewMessages(t *testing.T) {
	// What other tests left in memory would have it collected more seldom: a process of its own has nothing there.
	const alone = "DEDUPD_TEST_ALONE"
	if os.Getenv(alone) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
		cmd.Env = append(os.Environ(), alone+"=yes")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
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
