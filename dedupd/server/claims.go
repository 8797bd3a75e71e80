package server

import (
	"hash/maphash"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// claims counts, for each policy, the claims in flight as this process knows of them: granted
// or renewed through it, neither settled through it nor past their lease by its clock. A claim
// that is settled through another replica counts here until its lease has run out.
//
// It keeps a hash of each token and the time at which its lease ends, about 30 bytes a claim.
type claims struct {
	now  func() time.Time
	seed maphash.Seed
	desc *prometheus.Desc

	mu       sync.Mutex
	policies map[string]map[uint64]time.Time // guarded by mu: when each lease ends
}

func newClaims(now func() time.Time) *claims {
	return &claims{
		now:  now,
		seed: maphash.MakeSeed(),
		desc: prometheus.NewDesc("dedupd_claims_in_flight",
			"Claims granted or renewed by this process, not settled through it, whose lease has not run out.",
			[]string{"policy"}, nil),
		policies: map[string]map[uint64]time.Time{},
	}
}

func (c *claims) granted(policy string, answers []engine.Answer) {
	locked := false
	for i := range answers {
		if answers[i].Lease == 0 {
			continue
		}
		if !locked {
			c.mu.Lock()
			defer c.mu.Unlock()
			locked = true
		}
		c.hold(policy, answers[i].Token, answers[i].Lease)
	}
}

func (c *claims) settled(policy string, ops []engine.Settle, settled []engine.Settled) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range settled {
		switch {
		case s.Err != nil && asError(s.Err).Code != engine.StaleToken:
		case s.Err == nil && ops[i].Verb == store.Renew && s.Lease > 0:
			c.hold(policy, ops[i].Token, s.Lease)
		default:
			delete(c.policies[policy], maphash.String(c.seed, ops[i].Token))
		}
	}
}

// hold requires mu.
func (c *claims) hold(policy, token string, lease time.Duration) {
	held := c.policies[policy]
	if held == nil {
		held = map[uint64]time.Time{}
		c.policies[policy] = held
	}
	held[maphash.String(c.seed, token)] = c.now().Add(lease)
}

// sweep forgets the claims whose lease has run out, and returns how many are left.
func (c *claims) sweep() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	left := make(map[string]int, len(c.policies))
	for policy, held := range c.policies {
		for token, ends := range held {
			if !now.Before(ends) {
				delete(held, token)
			}
		}
		left[policy] = len(held)
	}
	return left
}

func (c *claims) forget(policy string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.policies, policy)
}

// Describe implements prometheus.Collector.
func (c *claims) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector.
func (c *claims) Collect(ch chan<- prometheus.Metric) {
	for policy, n := range c.sweep() {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), policy)
	}
}
