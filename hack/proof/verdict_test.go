package proof

import (
	"fmt"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/client"
)

// mode is the policy's.
type mode string

const (
	modeMark  mode = "Mark"
	modeClaim mode = "Claim"
)

// violation is a promise that a history shows broken.
type violation struct {
	rule string // G1, G2, G3, or "lost": a message without an effect
	key  string
	why  string
}

// losses says whether the store demonstrably lost what was written under a key, at some time
// between two moments. Nil: it lost nothing.
type losses func(key string, from, to time.Time) bool

// judge holds a history to the guarantees, and returns what breaks them and, apart, what would if
// the store had not lost the writes in question. Nothing excuses a false duplicate.
func (h *history) judge(lost losses) (broken, excused []violation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key := range h.produced {
		attempts := h.attempts[key]
		broken = append(broken, h.duplicates(attempts, lost != nil)...)
		if !processed(attempts) {
			broken = append(broken, violation{"lost", key, "it was produced and acknowledged, and never processed"})
		}
		for i, a := range attempts {
			for _, b := range attempts[i+1:] {
				v, from, to := h.pair(a, b)
				switch {
				case v.rule == "":
				case lost != nil && lost(key, from, to):
					excused = append(excused, v)
				default:
					broken = append(broken, v)
				}
			}
		}
	}
	return broken, excused
}

// mustHold fails the test for everything that breaks the guarantees.
func (h *history) mustHold(t *testing.T, lost losses) (excused []violation) {
	t.Helper()
	broken, excused := h.judge(lost)
	for _, v := range broken[:min(len(broken), 5)] {
		t.Errorf("%s is broken for %s: %s%s", v.rule, v.key, v.why, h.tell(v.key))
	}
	if len(broken) > 5 {
		t.Errorf("and %d more", len(broken)-5)
	}
	return excused
}

func processed(attempts []*attempt) bool {
	for _, a := range attempts {
		if !a.effect.IsZero() {
			return true
		}
	}
	return false
}

// duplicates is G1: each DUPLICATE has a reason that can have come about before it was answered.
func (h *history) duplicates(attempts []*attempt, lossy bool) []violation {
	var broken []violation
	for _, a := range attempts {
		if a.decision != client.Duplicate {
			continue
		}
		justified := false
		for _, b := range attempts {
			justified = justified || b.mayHaveFinished(h.mode, lossy, a)
		}
		if !justified {
			why := "DUPLICATE, and no claim was completed before"
			if h.mode == modeMark {
				why = "DUPLICATE, and no other attempt can have marked it"
			}
			broken = append(broken, violation{"G1", a.key, why})
		}
	}
	return broken
}

// mayHaveFinished says whether a can be a duplicate because of b.
func (b *attempt) mayHaveFinished(m mode, lossy bool, a *attempt) bool {
	if m == modeMark {
		// Not one that was told that somebody else had: it has marked nothing.
		marked := b.decision == client.Fresh || b.decision == client.Unchecked || b.decision == ""
		return b != a && marked && b.called.Before(a.answered)
	}
	// A completion that was refused has done nothing, unless its first try had, and then the
	// store forgot.
	return b.granted() && !b.completing.IsZero() && b.completing.Before(a.answered) && (!b.refused || lossy)
}

// pair is G2 and G3 for two attempts on one key. It returns the moments between which the store
// must have lost something, if this is not to be dedupd's fault.
func (h *history) pair(a, b *attempt) (v violation, from, to time.Time) {
	if !a.granted() || !b.granted() {
		return violation{}, from, to
	}
	if b.answered.Before(a.answered) {
		a, b = b, a
	}
	broken := func(rule, why string, args ...any) (violation, time.Time, time.Time) {
		return violation{rule, a.key, fmt.Sprintf(why, args...)}, a.called, b.answered
	}
	if h.mode == modeMark {
		return broken("G3", "two attempts were let through within the ttl")
	}
	// Whichever was granted first held until its call and the lease, at least, unless it
	// had settled by then.
	first := a.called
	if b.called.Before(first) {
		first = b.called
	}
	settled := before(a.completing, b.answered) || before(b.completing, b.answered)
	switch {
	case !settled && b.answered.Before(first.Add(a.lease)):
		return broken("G2", "two attempts held it at once")
	case a.answered.Before(b.called) && a.fence >= b.fence:
		return broken("G2", "a later holder has fence %d after %d", b.fence, a.fence)
	case a.acknowledged() && a.completed.Before(b.called) && b.answered.Before(a.completing.Add(h.ttl)):
		return broken("G3", "granted again after it was completed")
	case a.acknowledged() && a.answered.Before(b.called) && b.answered.Before(a.completing):
		return broken("G2", "completed after another had taken over")
	}
	return violation{}, from, to
}

// acknowledged says whether the attempt was told that it has completed its claim.
func (a *attempt) acknowledged() bool { return !a.completed.IsZero() && !a.refused && !a.unknown }

func before(a, b time.Time) bool { return !a.IsZero() && a.Before(b) }
