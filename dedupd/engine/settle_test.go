package engine_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/memory"
	"github.com/dedupd/dedup-operator/dedupd/store/storetest"
)

// codeOf is the code of an *engine.Error, or what else the error says.
func codeOf(err error) string {
	var e *engine.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return string(e.Code)
	}
	return err.Error()
}

func TestAClaimIsGrantedWithTokenFenceAndLease(t *testing.T) {
	b := newBench(t, claimMode)
	a := check(t, b.Engine, message("a"))
	if a.Fence != 1 || a.Lease != 30*time.Second {
		t.Errorf("fence %d, lease %s, want 1, 30s", a.Fence, a.Lease)
	}
	token, err := record.ParseToken(a.Token)
	if err != nil || token.Fence != 1 {
		t.Errorf("token %q: %+v, %v", a.Token, token, err)
	}
	b.clock.Advance(10 * time.Second)
	if a := check(t, b.Engine, message("a")); a.Decision != engine.InProgress || a.RetryAfter != 20*time.Second {
		t.Errorf("%s, retry after %s, want IN_PROGRESS, 20s", a.Decision, a.RetryAfter)
	}
	if a := check(t, newBench(t).Engine, message("a")); a.Token != "" || a.Fence != 0 || a.Lease != 0 {
		t.Errorf("mode Mark: %+v, want no claim", a)
	}
}

func TestACompletedMessageIsADuplicateForAWholeTTL(t *testing.T) {
	b := newBench(t, claimMode)
	a := check(t, b.Engine, message("a"))
	for range 2 { // an answer may be lost: it may be repeated
		if s := settle(t, b.Engine, store.Complete, a); s.Err != nil || s.State != "COMPLETED" {
			t.Errorf("%+v, want COMPLETED", s)
		}
	}
	b.clock.Advance(time.Hour - time.Millisecond)
	if got := check(t, b.Engine, message("a")); got.Decision != engine.Duplicate || !got.FirstSeen.Equal(a.FirstSeen) {
		t.Errorf("%+v, want DUPLICATE, first seen %s", got, a.FirstSeen)
	}
	b.clock.Advance(time.Millisecond)
	if got := check(t, b.Engine, message("a")); got.Decision != engine.Fresh {
		t.Errorf("%s, want FRESH", got.Decision)
	}
}

func TestAHolderThatWasTakenOverCannotSettle(t *testing.T) {
	b := newBench(t, claimMode)
	first := check(t, b.Engine, message("a"))
	b.clock.Advance(31 * time.Second)
	second := check(t, b.Engine, message("a"))
	if second.Decision != engine.Fresh || second.Fence != 2 || !second.FirstSeen.Equal(first.FirstSeen) {
		t.Errorf("%+v, want FRESH with fence 2", second)
	}
	for _, verb := range []store.Verb{store.Complete, store.Release, store.Renew} {
		if s := settle(t, b.Engine, verb, first); codeOf(s.Err) != "STALE_TOKEN" || !strings.Contains(s.Err.Error(), "took it over") {
			t.Errorf("verb %d: %+v, want STALE_TOKEN", verb, s)
		}
	}
	if s := settle(t, b.Engine, store.Complete, second); s.Err != nil {
		t.Error(s.Err)
	}
	if s := settle(t, b.Engine, store.Complete, first); codeOf(s.Err) != "STALE_TOKEN" || !strings.Contains(s.Err.Error(), "was completed") {
		t.Errorf("%+v, want STALE_TOKEN", s)
	}
}

func TestRenewKeepsAClaimAndReleaseGivesItBack(t *testing.T) {
	b := newBench(t, claimMode)
	a := check(t, b.Engine, message("a"))
	b.clock.Advance(25 * time.Second)
	if s := settle(t, b.Engine, store.Renew, a); s.Err != nil || s.Lease != 30*time.Second || s.State != "CLAIMED" {
		t.Errorf("%+v, want CLAIMED for 30s", s)
	}
	b.clock.Advance(25 * time.Second)
	if got := check(t, b.Engine, message("a")); got.Decision != engine.InProgress {
		t.Errorf("%s, want IN_PROGRESS", got.Decision)
	}
	if s := settle(t, b.Engine, store.Release, a); s.Err != nil || s.State != "RELEASED" || s.Lease != 0 {
		t.Errorf("%+v, want RELEASED", s)
	}
	if s := settle(t, b.Engine, store.Complete, a); codeOf(s.Err) != "STALE_TOKEN" || !strings.Contains(s.Err.Error(), "released") {
		t.Errorf("%+v, want STALE_TOKEN", s)
	}
	if got := check(t, b.Engine, message("a")); got.Decision != engine.Fresh || got.Fence != 2 {
		t.Errorf("%+v, want FRESH with fence 2", got)
	}
	b.clock.Advance(2 * time.Hour)
	if s := settle(t, b.Engine, store.Complete, a); codeOf(s.Err) != "STALE_TOKEN" || !strings.Contains(s.Err.Error(), "ttl") {
		t.Errorf("%+v, want STALE_TOKEN", s)
	}
}

func TestWhatCannotBeSettledIsNamed(t *testing.T) {
	b := newBench(t, claimMode)
	a := check(t, b.Engine, message("a"))
	tests := map[string]struct {
		op    engine.Settle
		code  string
		field string
	}{
		"no claim, nothing to do":     {engine.Settle{Verb: store.Complete, Token: engine.NoClaim}, "", ""},
		"no claim, whatever the key":  {engine.Settle{Verb: store.Renew, Key: strings.Repeat("k", 999), Token: engine.NoClaim}, "", ""},
		"no key":                      {engine.Settle{Verb: store.Complete, Token: a.Token}, "INVALID_ARGUMENT", "key"},
		"a key that is too long":      {engine.Settle{Verb: store.Complete, Key: strings.Repeat("k", 257), Token: a.Token}, "INVALID_ARGUMENT", "key"},
		"no token":                    {engine.Settle{Verb: store.Complete, Key: a.Key}, "INVALID_ARGUMENT", "token"},
		"a token that is none":        {engine.Settle{Verb: store.Complete, Key: a.Key, Token: "NONE"}, "INVALID_ARGUMENT", "token"},
		"a verb that does not settle": {engine.Settle{Verb: store.Forget, Key: a.Key, Token: a.Token}, "INVALID_ARGUMENT", "verb"},
		"another key":                 {engine.Settle{Verb: store.Complete, Key: "billing:b", Token: a.Token}, "STALE_TOKEN", "token"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := b.Settle(t.Context(), []engine.Settle{test.op})[0]
			if codeOf(s.Err) != test.code {
				t.Fatalf("%+v, want %q", s, test.code)
			}
			var e *engine.Error
			if errors.As(s.Err, &e) && e.Field != test.field {
				t.Errorf("field %q, want %q", e.Field, test.field)
			}
			if test.code == "" && s.State != engine.StateNone {
				t.Errorf("state %q, want %q", s.State, engine.StateNone)
			}
		})
	}
	if got := check(t, b.Engine, message("a")); got.Decision != engine.InProgress {
		t.Errorf("%s, want IN_PROGRESS: nothing was settled", got.Decision)
	}
}

func TestABatchOfSettlementsKeepsItsOrder(t *testing.T) {
	b := newBench(t, claimMode)
	x, y := check(t, b.Engine, message("x")), check(t, b.Engine, message("y"))
	got := b.Settle(t.Context(), []engine.Settle{
		{Verb: store.Release, Key: y.Key, Token: y.Token},
		{Verb: store.Complete, Key: "", Token: engine.NoClaim},
		{Verb: store.Complete, Key: x.Key, Token: "bad"},
		{Verb: store.Complete, Key: x.Key, Token: x.Token},
	})
	var states []string
	for _, s := range got {
		states = append(states, s.State+codeOf(s.Err))
	}
	if diff := cmp.Diff([]string{"RELEASED", "NONE", "INVALID_ARGUMENT", "COMPLETED"}, states); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAStoreThatIsDownSettlesNothingEvenUnderFailOpen(t *testing.T) {
	a := check(t, newBench(t, claimMode).Engine, message("a"))
	e := engine.New(compile(t, claimMode, failOpen, shadow), failing(store.ErrUnavailable), engine.Options{Now: storetest.NewClock().Now})
	if s := settle(t, e, store.Complete, a); codeOf(s.Err) != "UNAVAILABLE" {
		t.Errorf("%+v, want UNAVAILABLE", s)
	}
	if _, err := e.Lookup(t.Context(), a.Key); codeOf(err) != "UNAVAILABLE" {
		t.Errorf("look-up: %v, want UNAVAILABLE", err)
	}
	if _, err := e.Forget(t.Context(), a.Key); codeOf(err) != "UNAVAILABLE" {
		t.Errorf("forget: %v, want UNAVAILABLE", err)
	}
}

func TestAClaimOutlivesAChangeOfTheMode(t *testing.T) {
	c := storetest.NewClock()
	s := memory.New(memory.Options{MaxEntries: 10, Now: c.Now})
	claims := engine.New(compile(t, claimMode), s, engine.Options{Now: c.Now})
	marks := engine.New(compile(t, func(s *v1alpha1.DedupPolicySpec) { s.TTL = "10s" }), s, engine.Options{Now: c.Now})
	a := check(t, claims, message("a"))
	if got := settle(t, marks, store.Renew, a); got.Err != nil || got.Lease != 5*time.Second {
		t.Errorf("%+v, want a lease of half the ttl", got)
	}
	if got := settle(t, marks, store.Complete, a); got.Err != nil {
		t.Error(got.Err)
	}
	if got := check(t, marks, message("a")); got.Decision != engine.Duplicate {
		t.Errorf("%s, want DUPLICATE", got.Decision)
	}
}

func TestAKeyCanBeLookedUpAndForgotten(t *testing.T) {
	b := newBench(t, claimMode)
	if _, err := b.Lookup(t.Context(), "billing:a"); codeOf(err) != "NOT_FOUND" {
		t.Errorf("look-up: %v, want NOT_FOUND", err)
	}
	if existed, err := b.Forget(t.Context(), "billing:a"); existed || err != nil {
		t.Errorf("forget: %v, %v, want that there was nothing", existed, err)
	}
	a := check(t, b.Engine, message("a"))
	b.clock.Advance(10 * time.Second)
	found, err := b.Lookup(t.Context(), a.Key)
	if err != nil {
		t.Fatal(err)
	}
	want := engine.Found{
		Key: "billing:a", State: "CLAIMED", FirstSeen: a.FirstSeen, Fence: 1,
		Remaining: time.Hour - 10*time.Second, LeaseLeft: 20 * time.Second,
	}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
	settle(t, b.Engine, store.Complete, a)
	if existed, err := b.Forget(t.Context(), a.Key); !existed || err != nil {
		t.Errorf("forget: %v, %v, want that it was there", existed, err)
	}
	if got := check(t, b.Engine, message("a")); got.Decision != engine.Fresh {
		t.Errorf("%s, want FRESH: the replay was asked for", got.Decision)
	}
	for _, k := range []string{"", strings.Repeat("k", 257)} {
		if _, err := b.Lookup(t.Context(), k); codeOf(err) != "INVALID_ARGUMENT" {
			t.Errorf("look-up of %d bytes: %v, want INVALID_ARGUMENT", len(k), err)
		}
		if _, err := b.Forget(t.Context(), k); codeOf(err) != "INVALID_ARGUMENT" {
			t.Errorf("forget of %d bytes: %v, want INVALID_ARGUMENT", len(k), err)
		}
	}
}

func TestCodesAreAllDifferent(t *testing.T) {
	seen := map[engine.Code]bool{}
	for _, c := range engine.Codes() {
		if c == "" || seen[c] {
			t.Errorf("code %q twice, or empty", c)
		}
		seen[c] = true
	}
}
