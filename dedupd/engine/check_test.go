package engine_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/memory"
	"github.com/dedupd/dedup-operator/dedupd/store/storetest"
)

func TestOnlyTheFirstOfEqualMessagesIsFresh(t *testing.T) {
	type spec = v1alpha1.DedupPolicySpec
	tests := map[string]struct {
		mods []func(*spec)
		reqs []engine.Request
		want string
	}{
		"a repeat is a duplicate": {
			reqs: []engine.Request{message("a"), message("a"), message("b"), message("a")},
			want: "FRESH then DUPLICATE then FRESH then DUPLICATE",
		},
		"the same attempt is answered as the first time": {
			reqs: []engine.Request{attempt("a", "x"), attempt("a", "x"), attempt("a", "y")},
			want: "FRESH then FRESH then DUPLICATE",
		},
		"another consumer has its own first time": {
			reqs: []engine.Request{message("a"), {Consumer: "mail", Message: message("a").Message}},
			want: "FRESH then FRESH",
		},
		"consumers of one scope share theirs": {
			mods: []func(*spec){sharedScope},
			reqs: []engine.Request{message("a"), {Message: message("a").Message}},
			want: "FRESH then DUPLICATE",
		},
		"a claim that runs is in progress": {
			mods: []func(*spec){claimMode},
			reqs: []engine.Request{message("a"), message("a")},
			want: "FRESH then IN_PROGRESS",
		},
		"a known identifier with other content is a conflict": {
			mods: []func(*spec){verify},
			reqs: []engine.Request{body("a", `{"n":1,"m":2}`), body("a", `{"n":2}`), body("a", `{ "m": 2, "n": 1.0 }`), body("b", "no JSON"), body("b", "other"), body("b", "no JSON")},
			want: "FRESH then CONFLICT then DUPLICATE then FRESH then CONFLICT then DUPLICATE",
		},
		"other content does not matter unless it is verified": {
			reqs: []engine.Request{body("a", "1"), body("a", "2")},
			want: "FRESH then DUPLICATE",
		},
		"a message without its key is refused": {
			reqs: []engine.Request{message(""), {Consumer: "billing"}, message("a")},
			want: "KEY_MISSING then KEY_MISSING then FRESH",
		},
		"a body that is no JSON is refused where a path needs it": {
			mods: []func(*spec){byPath},
			reqs: []engine.Request{body("", `{"id":1}`), body("", `{"id":`), body("", `{"id":null}`)},
			want: "FRESH then INVALID_MESSAGE then KEY_MISSING",
		},
		"a message without its key passes under Process": {
			mods: []func(*spec){byPath, process},
			reqs: []engine.Request{body("", `{}`), body("", `{}`), body("", `{`), body("", `{"id":1}`), body("", `{"id":1}`)},
			want: "UNCHECKED then UNCHECKED then UNCHECKED then FRESH then DUPLICATE",
		},
		"a consumer's name is needed, whatever becomes of messages without a key": {
			mods: []func(*spec){process},
			reqs: []engine.Request{{Message: message("a").Message}, {Consumer: strings.Repeat("c", 254), Message: message("a").Message}},
			want: "INVALID_ARGUMENT then INVALID_ARGUMENT",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			batch := newBench(t, test.mods...)
			if got := outcomes(batch.Check(t.Context(), test.reqs)); got != test.want {
				t.Errorf("as a batch: %s, want %s", got, test.want)
			}
			single := newBench(t, test.mods...)
			var answers []engine.Answer
			for _, r := range test.reqs {
				answers = append(answers, check(t, single.Engine, r))
			}
			if got := outcomes(answers); got != test.want {
				t.Errorf("one by one: %s, want %s", got, test.want)
			}
		})
	}
}

// outcomes are the decisions, or the codes of the errors.
func outcomes(answers []engine.Answer) string {
	var out []string
	for _, a := range answers {
		var e *engine.Error
		switch {
		case errors.As(a.Err, &e):
			out = append(out, string(e.Code))
		case a.Err != nil:
			out = append(out, "another error")
		default:
			out = append(out, string(a.Decision))
		}
	}
	return strings.Join(out, " then ")
}

func TestADuplicateSaysWhenTheMessageWasFirstSeen(t *testing.T) {
	c := storetest.NewClock()
	var ages []time.Duration
	e := engine.New(compile(t), memory.New(memory.Options{MaxEntries: 10, Now: c.Now}), engine.Options{
		Now:     c.Now,
		Observe: engine.Observer{Duplicate: func(age time.Duration) { ages = append(ages, age) }},
	})
	first := c.Now()
	check(t, e, message("a"))
	c.Advance(90 * time.Second)
	a := check(t, e, message("a"))
	if a.Decision != engine.Duplicate || !a.FirstSeen.Equal(first) {
		t.Errorf("%s, first seen %s, want DUPLICATE, %s", a.Decision, a.FirstSeen, first)
	}
	if diff := cmp.Diff([]time.Duration{90 * time.Second}, ages); diff != "" {
		t.Errorf("ages (-want +got):\n%s", diff)
	}
	c.Advance(time.Hour - 90*time.Second)
	if a := check(t, e, message("a")); a.Decision != engine.Fresh {
		t.Errorf("after ttl: %s, want FRESH", a.Decision)
	}
}

func TestAStoreErrorIsNeverADecisionButUnderFailOpen(t *testing.T) {
	type spec = v1alpha1.DedupPolicySpec
	down := fmt.Errorf("dialling: %w", store.ErrUnavailable)
	tests := map[string]struct {
		mods []func(*spec)
		want engine.Answer
	}{
		"FailClosed":             {want: engine.Answer{Err: &engine.Error{Code: engine.Unavailable}}},
		"FailClosed, mode Claim": {mods: []func(*spec){claimMode}, want: engine.Answer{Err: &engine.Error{Code: engine.Unavailable}}},
		"FailOpen":               {mods: []func(*spec){failOpen}, want: engine.Answer{Decision: engine.Unchecked, Reason: down.Error()}},
		"FailOpen, mode Claim":   {mods: []func(*spec){failOpen, claimMode}, want: engine.Answer{Decision: engine.Unchecked, Reason: down.Error(), Token: engine.NoClaim}},
		"Shadow":                 {mods: []func(*spec){shadow}, want: engine.Answer{Decision: engine.Fresh, Reason: down.Error(), Shadow: "UNAVAILABLE"}},
		"Shadow and FailOpen":    {mods: []func(*spec){shadow, failOpen}, want: engine.Answer{Decision: engine.Fresh, Reason: down.Error(), Shadow: "UNCHECKED"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			e := engine.New(compile(t, test.mods...), failing(down), engine.Options{Now: storetest.NewClock().Now})
			got := check(t, e, message("a"))
			test.want.Key = "billing:a"
			sameCode := cmp.Comparer(func(a, b error) bool {
				var x, y *engine.Error
				return errors.As(a, &x) && errors.As(b, &y) && x.Code == y.Code
			})
			if diff := cmp.Diff(test.want, got, cmp.FilterValues(func(a, b error) bool { return a != nil && b != nil }, sameCode)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			if got.Err != nil {
				var e *engine.Error
				if !errors.As(got.Err, &e) || e.RetryAfter <= 0 {
					t.Errorf("error %v without a time to try again", got.Err)
				}
				if !errors.Is(got.Err, store.ErrUnavailable) {
					t.Errorf("error %v does not wrap the store's", got.Err)
				}
			}
		})
	}
}

func TestUnderShadowEveryMessagePassesAndItsAnswerIsTold(t *testing.T) {
	b := newBench(t, shadow, claimMode, verify)
	requests := []engine.Request{body("a", "1"), body("a", "1"), body("a", "2"), message(""), {Message: message("a").Message}}
	answers := b.Check(t.Context(), requests)
	var got []string
	for _, a := range answers {
		if a.Decision != engine.Fresh || a.Err != nil || a.RetryAfter != 0 {
			t.Errorf("%+v, want FRESH", a)
		}
		got = append(got, a.Shadow)
	}
	if diff := cmp.Diff([]string{"FRESH", "IN_PROGRESS", "CONFLICT", "KEY_MISSING", "INVALID_ARGUMENT"}, got); diff != "" {
		t.Errorf("under enforcement (-want +got):\n%s", diff)
	}
	if answers[0].Fence != 1 || answers[0].Token == engine.NoClaim {
		t.Errorf("the first has token %q, want a claim", answers[0].Token)
	}
	for _, a := range answers[1:] {
		if a.Token != engine.NoClaim || a.Fence != 0 {
			t.Errorf("token %q and fence %d of one that passes, want %q", a.Token, a.Fence, engine.NoClaim)
		}
	}
}

func TestTheAttemptIsMadeOnceForAllRetriesOfTheDriver(t *testing.T) {
	c := storetest.NewClock()
	inner := memory.New(memory.Options{MaxEntries: 10, Now: c.Now})
	// The first reply is lost and the driver sends its commands again, as go-redis does.
	retrying := storeFunc(func(ctx context.Context, ops []store.Op, results []store.Result) {
		inner.Apply(ctx, ops, make([]store.Result, len(ops)))
		inner.Apply(ctx, ops, results)
	})
	for _, mods := range [][]func(*v1alpha1.DedupPolicySpec){nil, {claimMode}} {
		e := engine.New(compile(t, mods...), retrying, engine.Options{Now: c.Now})
		id := fmt.Sprint("m", len(mods))
		if a := check(t, e, message(id)); a.Decision != engine.Fresh {
			t.Errorf("%s after a lost reply, want FRESH", a.Decision)
		}
	}
}

func TestTwoChecksWithoutAnAttemptAreTwoAttempts(t *testing.T) {
	owners := map[record.Owner]bool{}
	s := storeFunc(func(_ context.Context, ops []store.Op, results []store.Result) {
		for i, op := range ops {
			owners[op.Token.Owner] = true
			results[i] = store.Result{Outcome: store.Granted}
		}
	})
	e := engine.New(compile(t), s, engine.Options{Now: storetest.NewClock().Now})
	e.Check(t.Context(), []engine.Request{message("a"), message("a")})
	e.Check(t.Context(), []engine.Request{message("a")})
	if len(owners) != 3 || owners[record.Owner{}] {
		t.Errorf("owners %v, want 3 that are not zero", owners)
	}
}

func TestABatchIsOneCallOfTheStore(t *testing.T) {
	c := storetest.NewClock()
	inner := memory.New(memory.Options{MaxEntries: 100_000, Now: c.Now})
	var calls, ops atomic.Int64
	counting := storeFunc(func(ctx context.Context, batch []store.Op, results []store.Result) {
		calls.Add(1)
		ops.Add(int64(len(batch)))
		inner.Apply(ctx, batch, results)
	})
	e := engine.New(compile(t), counting, engine.Options{Now: c.Now})
	const goroutines, batches, size = 8, 20, 50
	var fresh atomic.Int64
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for n := range batches {
				reqs := make([]engine.Request, 0, size+1)
				for i := range size {
					reqs = append(reqs, message(fmt.Sprint(n, "-", i)))
				}
				reqs = append(reqs, message("")) // needs no store
				for i, a := range e.Check(t.Context(), reqs) {
					if a.Decision == engine.Fresh {
						fresh.Add(1)
					} else if i < size && a.Decision != engine.Duplicate {
						t.Errorf("answer %+v", a)
					}
				}
			}
		})
	}
	wg.Wait()
	if calls.Load() != goroutines*batches || ops.Load() != goroutines*batches*size {
		t.Errorf("%d calls with %d operations, want %d with %d", calls.Load(), ops.Load(), goroutines*batches, goroutines*batches*size)
	}
	if fresh.Load() != batches*size {
		t.Errorf("%d messages were fresh, want %d: each once", fresh.Load(), batches*size)
	}
	calls.Store(0)
	e.Check(t.Context(), nil)
	e.Check(t.Context(), []engine.Request{message("")})
	if calls.Load() != 0 {
		t.Errorf("%d calls of the store without an operation", calls.Load())
	}
}

// FailOpen speaks of a store that is down. One that is well and busy is asked again.
func TestOverloadIsNeverUnchecked(t *testing.T) {
	over := fmt.Errorf("%w: enough", store.ErrOverloaded)
	for name, mods := range map[string][]func(*v1alpha1.DedupPolicySpec){
		"FailClosed":           nil,
		"FailOpen":             {failOpen},
		"FailOpen, mode Claim": {failOpen, claimMode},
	} {
		t.Run(name, func(t *testing.T) {
			e := engine.New(compile(t, mods...), failing(over), engine.Options{Now: storetest.NewClock().Now})
			a := check(t, e, message("a"))
			var err *engine.Error
			if !errors.As(a.Err, &err) || err.Code != engine.Overloaded || err.RetryAfter <= 0 || a.Decision != "" {
				t.Errorf("%+v, want OVERLOADED with a time to retry after", a)
			}
			if _, err := e.Forget(t.Context(), "billing:a"); codeOf(err) != "OVERLOADED" {
				t.Errorf("forget: %v, want OVERLOADED", err)
			}
		})
	}
	a := check(t, newBench(t, claimMode).Engine, message("a"))
	e := engine.New(compile(t, claimMode), failing(over), engine.Options{Now: storetest.NewClock().Now})
	if s := settle(t, e, store.Complete, a); codeOf(s.Err) != "OVERLOADED" {
		t.Errorf("%+v, want OVERLOADED", s)
	}
}

func TestACallerThatLeavesGetsIndeterminateAndItsWriteCompletes(t *testing.T) {
	for name, mods := range map[string][]func(*v1alpha1.DedupPolicySpec){
		"FailClosed": nil,
		"FailOpen":   {failOpen},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := storetest.NewClock()
				inner := memory.New(memory.Options{MaxEntries: 10, Now: c.Now})
				slow := storeFunc(func(ctx context.Context, ops []store.Op, results []store.Result) {
					time.Sleep(500 * time.Millisecond) // the fake clock's
					if ctx.Err() != nil {
						t.Errorf("the store's context ended with its caller: %v", ctx.Err())
					}
					inner.Apply(ctx, ops, results)
				})
				e := engine.New(compile(t, mods...), slow, engine.Options{Now: c.Now})
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				got := e.Check(ctx, []engine.Request{attempt("a", "x")})
				if outcomes(got) != "INDETERMINATE" {
					t.Errorf("%s, want INDETERMINATE", outcomes(got))
				}
				again := e.Check(t.Context(), []engine.Request{attempt("a", "x"), attempt("a", "y")})
				if outcomes(again) != "FRESH then DUPLICATE" {
					t.Errorf("then %s, want FRESH then DUPLICATE: the write was made, and the attempt knows its own", outcomes(again))
				}
				// One that has left already changes nothing.
				if got := e.Check(ctx, []engine.Request{message("b")}); outcomes(got) != "INDETERMINATE" {
					t.Errorf("%s, want INDETERMINATE", outcomes(got))
				}
				if got := e.Check(t.Context(), []engine.Request{message("b")}); outcomes(got) != "FRESH" {
					t.Errorf("%s, want FRESH", outcomes(got))
				}
			})
		})
	}
}

func TestEveryCallOfTheStoreHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hanging := storeFunc(func(ctx context.Context, ops []store.Op, results []store.Result) {
			<-ctx.Done()
			for i := range ops {
				results[i].Err = fmt.Errorf("%w: %w", store.ErrUnavailable, ctx.Err())
			}
		})
		for timeout, want := range map[time.Duration]time.Duration{0: engine.DefaultTimeout, 50 * time.Millisecond: 50 * time.Millisecond} {
			e := engine.New(compile(t), hanging, engine.Options{Now: time.Now, Timeout: timeout})
			start := time.Now()
			if got := outcomes(e.Check(t.Context(), []engine.Request{message("a")})); got != "UNAVAILABLE" {
				t.Errorf("%s, want UNAVAILABLE", got)
			}
			if took := time.Since(start); took != want {
				t.Errorf("took %s, want %s", took, want)
			}
		}
	})
}

func TestTheObserverIsTold(t *testing.T) {
	c := storetest.NewClock()
	var told []string
	inner := memory.New(memory.Options{MaxEntries: 10, Now: c.Now})
	halfFull := storeFunc(func(ctx context.Context, ops []store.Op, results []store.Result) {
		inner.Apply(ctx, ops, results)
		if len(ops) == 2 {
			results[1] = store.Result{Err: store.ErrFull}
		}
	})
	e := engine.New(compile(t, claimMode), halfFull, engine.Options{Now: c.Now, Observe: engine.Observer{
		Checked: func(a *engine.Answer) { told = append(told, "checked "+outcomes([]engine.Answer{*a})) },
		Settled: func(verb store.Verb, err error) { told = append(told, fmt.Sprint("settled ", verb, err)) },
	}})
	answers := e.Check(t.Context(), []engine.Request{message("a"), message("b"), message("")})
	settle(t, e, store.Complete, answers[0])
	settle(t, e, store.Complete, engine.Answer{Key: "a", Token: engine.NoClaim})
	want := []string{
		"checked FRESH", "checked UNAVAILABLE", "checked KEY_MISSING",
		fmt.Sprint("settled ", store.Complete, nil),
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

func TestCheckAllocatesLittle(t *testing.T) {
	s := storeFunc(func(_ context.Context, ops []store.Op, results []store.Result) {
		for i := range ops {
			results[i] = store.Result{Outcome: store.Granted}
		}
	})
	e := engine.New(compile(t), s, engine.Options{Now: storetest.NewClock().Now})
	reqs := make([]engine.Request, 100)
	for i := range reqs {
		reqs[i] = message(fmt.Sprint(i))
	}
	perMessage := testing.AllocsPerRun(50, func() { e.Check(t.Context(), reqs) }) / float64(len(reqs))
	// The key, what it is built in, the store's key, the attempt, and one to spare.
	if perMessage > 5.5 {
		t.Errorf("%.1f allocations per message, at most 5", perMessage)
	}
}

// FuzzDecisions: whatever a store answers, DUPLICATE, CONFLICT and IN_PROGRESS are answered
// only where it said so, and an error is an error, or passes as the policy says.
func FuzzDecisions(f *testing.F) {
	f.Add(uint8(1), uint8(1), uint8(0), uint8(0))
	f.Add(uint8(2), uint8(2), uint8(1), uint8(3))
	f.Add(uint8(3), uint8(4), uint8(2), uint8(5))
	f.Add(uint8(0), uint8(0), uint8(3), uint8(7))
	f.Add(uint8(99), uint8(99), uint8(0), uint8(15))
	f.Fuzz(func(t *testing.T, outcome, state, failure, switches uint8) {
		var mods []func(*v1alpha1.DedupPolicySpec)
		for i, mod := range []func(*v1alpha1.DedupPolicySpec){claimMode, failOpen, shadow, verify} {
			if switches>>i&1 == 1 {
				mods = append(mods, mod)
			}
		}
		p := compile(t, mods...)
		result := store.Result{Outcome: store.Outcome(outcome), Record: record.Record{State: record.State(state), Fence: 3}}
		if errs := []error{nil, store.ErrUnavailable, store.ErrFull, store.ErrCorrupt, context.DeadlineExceeded}; int(failure) < len(errs) {
			result.Err = errs[failure]
		}
		s := storeFunc(func(_ context.Context, _ []store.Op, results []store.Result) { results[0] = result })
		a := check(t, engine.New(p, s, engine.Options{Now: storetest.NewClock().Now}), message("a"))

		if (a.Decision == "") == (a.Err == nil) {
			t.Fatalf("%+v: a decision or an error, one of them", a)
		}
		valid := slices.Contains([]store.Outcome{store.Granted, store.Seen, store.Held, store.Mismatch}, result.Outcome)
		bad := result.Err != nil || !valid
		want := map[store.Outcome]engine.Decision{
			store.Granted: engine.Fresh, store.Seen: engine.Duplicate, store.Held: engine.InProgress, store.Mismatch: engine.Conflict,
		}[result.Outcome]
		switch {
		case p.Shadow:
			want = engine.Fresh
		case bad && p.FailOpen:
			want = engine.Unchecked
		case bad:
			want = ""
		}
		if a.Decision != want {
			t.Errorf("%q to %+v, want %q", a.Decision, result, want)
		}
		if (a.Shadow != "") != p.Shadow {
			t.Errorf("shadow %q, policy %v", a.Shadow, p.Shadow)
		}
	})
}
