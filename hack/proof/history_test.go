package proof

import (
	"fmt"
	"sync"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/client"
)

// attempt is one check of a message and what its consumer did by the answer. A time that is
// zero is that of something that was not seen to happen.
type attempt struct {
	key, consumer string

	called, answered time.Time
	decision         client.Decision // empty: an error, or no answer
	fence            uint64
	lease            time.Duration
	failure          string

	effect time.Time

	completing, completed time.Time
	refused               bool // the completion: the claim was lost
	unknown               bool // the completion: there was an error
}

// granted says whether the attempt was told to process the message.
func (a *attempt) granted() bool { return a.decision == client.Fresh }

// history is everything that was seen in a run.
type history struct {
	mode mode
	ttl  time.Duration

	mu       sync.Mutex
	produced map[string]bool       // guarded by mu
	attempts map[string][]*attempt // guarded by mu, by key, in the order in which they were begun
}

func newHistory(m mode) *history {
	return &history{mode: m, ttl: time.Hour, produced: map[string]bool{}, attempts: map[string][]*attempt{}}
}

// begin notes a check that is about to be sent.
func (h *history) begin(a *attempt) *attempt {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.attempts[a.key] = append(h.attempts[a.key], a)
	return a
}

// note changes what is known of an attempt.
func (h *history) note(a *attempt, change func(a *attempt)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(a)
}

// count is how many attempts are of a kind.
func (h *history) count(is func(a *attempt) bool) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, attempts := range h.attempts {
		for _, a := range attempts {
			if is(a) {
				n++
			}
		}
	}
	return n
}

// keys are the messages that were produced.
func (h *history) keys() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var keys []string
	for k := range h.produced {
		keys = append(keys, k)
	}
	return keys
}

// tell lists the attempts on a key.
func (h *history) tell(key string) string {
	text := ""
	for _, a := range h.attempts[key] {
		text += fmt.Sprintf("\n  %-12s check %s to %s: %s%s fence %d", a.consumer, clock(a.called), clock(a.answered), a.decision, a.failure, a.fence)
		if !a.effect.IsZero() {
			text += ", effect " + clock(a.effect)
		}
		if !a.completing.IsZero() {
			text += fmt.Sprintf(", complete %s to %s (refused %t, unknown %t)", clock(a.completing), clock(a.completed), a.refused, a.unknown)
		}
	}
	return text
}

func clock(t time.Time) string {
	if t.IsZero() {
		return "…"
	}
	return t.Format("05.000000")
}
