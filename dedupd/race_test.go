//go:build race

package main

// raceMemory is how many times as much memory a process takes under the race detector, as
// those do that tests start.
const raceMemory = 6
