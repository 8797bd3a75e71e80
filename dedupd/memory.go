package main

import (
	"runtime/debug"

	"github.com/dedupd/dedup-operator/dedupd/cgroup"
)

// ballastSize is how much garbage there may at least be before it is collected. What lives in
// dedupd is a few MB, and each message leaves a little garbage: as much again as what lives, as
// is the rule, would be collected some forty times a second, for a third of the processor's time.
const ballastSize = 48 << 20

// ballast lives, for the collector; it is never touched, and so is no memory for the system.
var ballast []byte //nolint:unused // that it lives is its use

// tuneGC trades memory for time as long as there is memory: up to nine tenths of what the
// container may have. What the environment says in GOGC and GOMEMLIMIT goes first.
func tuneGC(getenv func(string) string) {
	if getenv("GOGC") != "" || getenv("GOMEMLIMIT") != "" {
		return
	}
	ballast = make([]byte, ballastSize)
	if limit, ok := cgroup.Memory(); ok {
		debug.SetMemoryLimit(limit/10*9 + ballastSize)
	}
}
