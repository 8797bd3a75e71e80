package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/policy"
)

// summary is what a run comes to.
type summary struct {
	policy, store string
	decisions     map[engine.Decision]int
	shadow        map[string]int
	keys, errors  int
	oldest        time.Duration
	took          time.Duration
	sizing        *sizing
}

func newSummary(p *policy.Policy, storeName string) summary {
	return summary{
		policy:    p.Namespace + "/" + p.Name,
		store:     storeName,
		decisions: map[engine.Decision]int{},
		shadow:    map[string]int{},
		sizing:    newSizing(p),
	}
}

func (s *summary) count(a *engine.Answer) {
	s.decisions[a.Decision]++
	if a.Shadow != "" {
		s.shadow[a.Shadow]++
	}
	if a.Key == "" {
		return
	}
	s.keys++
	if a.Shadow == string(engine.Fresh) || a.Shadow == "" && a.Decision == engine.Fresh {
		s.sizing.add(a.Key)
	}
}

// String is the summary as it is told, some lines.
func (s *summary) String() string {
	var b strings.Builder
	total := s.errors
	for _, n := range s.decisions {
		total += n
	}
	perSecond := float64(total) / max(s.took.Seconds(), 1e-9)
	fmt.Fprintf(&b, "policy %s, store %s: %d messages in %s, %.0f ids/second\n", s.policy, s.store, total, s.took.Round(time.Microsecond), perSecond)
	fmt.Fprintf(&b, "decisions: %s\n", counts(s.decisions))
	if len(s.shadow) > 0 {
		fmt.Fprintf(&b, "without enforcement: Shadow: %s\n", counts(s.shadow))
	}
	fmt.Fprintf(&b, "keys formed: %d, errors: %d\n", s.keys, s.errors)
	if s.decisions[engine.Duplicate]+s.decisions[engine.Conflict]+s.shadow[string(engine.Duplicate)] > 0 {
		fmt.Fprintf(&b, "oldest duplicate: %s after the first\n", s.oldest.Round(time.Millisecond))
	}
	return b.String()
}

// counts writes a table of counts in the order of its names.
func counts[K ~string](m map[K]int) string {
	if len(m) == 0 {
		return "none"
	}
	var parts []string
	for name, n := range m {
		parts = append(parts, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}
