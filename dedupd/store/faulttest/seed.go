// Package faulttest breaks what a test depends on, by a seed: the same seed chooses the same
// faults in the same order. (Which of concurrent requests meets the next of them is up to the
// scheduler.)
package faulttest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
)

// SeedEnv is the environment variable that sets the seed of every test that has one.
const SeedEnv = "DEDUPD_SEED"

// NewSeed is what the environment says, or a seed that no run had before.
func NewSeed() uint64 {
	text := os.Getenv(SeedEnv)
	if text == "" {
		return rand.Uint64()
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		panic(fmt.Sprintf("%s=%s: want a whole number, as a failing test prints it", SeedEnv, text))
	}
	return seed
}

// Replay says how a run with a seed is repeated.
func Replay(seed uint64) string {
	return fmt.Sprintf("run it again with %s=%d", SeedEnv, seed)
}

// Seed is the seed of one test, which says how to repeat it if it fails.
func Seed(tb testing.TB) uint64 {
	tb.Helper()
	seed := NewSeed()
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Log(Replay(seed))
		}
	})
	return seed
}

// Dice choose faults. They may be shared by everything that one test breaks.
type Dice struct {
	mu     sync.Mutex
	random *rand.Rand // guarded by mu
	oneIn  int        // guarded by mu
	thrown int        // guarded by mu
}

// NewDice returns dice by which one in oneIn things goes wrong; none if that is zero.
func NewDice(seed uint64, oneIn int) *Dice {
	return &Dice{random: rand.New(rand.NewPCG(seed, 1)), oneIn: oneIn}
}

// Throw says whether the next thing goes wrong, and in which of kinds ways.
func (d *Dice) Throw(kinds int) (kind int, wrong bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.oneIn == 0 || d.random.IntN(d.oneIn) > 0 {
		return 0, false
	}
	d.thrown++
	return d.random.IntN(kinds), true
}

// Thrown is how many things have gone wrong.
func (d *Dice) Thrown() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.thrown
}

// OneIn has one in n things go wrong from now on; none if that is zero.
func (d *Dice) OneIn(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.oneIn = n
}
