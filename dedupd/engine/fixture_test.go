package engine_test

import (
	"context"
	"testing"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/memory"
	"github.com/dedupd/dedup-operator/dedupd/store/storetest"
)

// compile returns a policy by the header id, with an hour's ttl, as changed by mods.
func compile(tb testing.TB, mods ...func(*v1alpha1.DedupPolicySpec)) *policy.Policy {
	tb.Helper()
	p := &v1alpha1.DedupPolicy{}
	p.Name = "orders"
	p.Spec = v1alpha1.DedupPolicySpec{
		Key:   v1alpha1.KeySpec{Strategy: v1alpha1.StrategyMessageID, MessageID: &v1alpha1.MessageIDKey{Header: "id"}},
		TTL:   "1h",
		Store: v1alpha1.StoreSpec{Memory: &v1alpha1.MemoryStore{}},
	}
	for _, mod := range mods {
		mod(&p.Spec)
	}
	compiled, errs := policy.Compile(p)
	if len(errs) > 0 {
		tb.Fatal(errs.ToAggregate())
	}
	return compiled
}

func claimMode(s *v1alpha1.DedupPolicySpec)   { s.Mode = v1alpha1.ModeClaim }
func failOpen(s *v1alpha1.DedupPolicySpec)    { s.OnStoreFailure = v1alpha1.FailOpen }
func shadow(s *v1alpha1.DedupPolicySpec)      { s.Enforcement = v1alpha1.EnforcementShadow }
func process(s *v1alpha1.DedupPolicySpec)     { s.Key.OnMissing = v1alpha1.MissingProcess }
func verify(s *v1alpha1.DedupPolicySpec)      { s.Key.MessageID.VerifyContent = true }
func sharedScope(s *v1alpha1.DedupPolicySpec) { s.Scope = v1alpha1.ScopePolicy }
func byPath(s *v1alpha1.DedupPolicySpec) {
	s.Key.MessageID = &v1alpha1.MessageIDKey{JSONPath: "$.id"}
}

// bench is an engine on a memory store, and their clock.
type bench struct {
	*engine.Engine
	clock *storetest.Clock
	store store.Store
}

func newBench(tb testing.TB, mods ...func(*v1alpha1.DedupPolicySpec)) *bench {
	tb.Helper()
	c := storetest.NewClock()
	s := memory.New(memory.Options{MaxEntries: 1000, Now: c.Now})
	return &bench{Engine: engine.New(compile(tb, mods...), s, engine.Options{Now: c.Now}), clock: c, store: s}
}

// check checks one message and returns its answer.
func check(tb testing.TB, e *engine.Engine, r engine.Request) engine.Answer {
	tb.Helper()
	answers := e.Check(tb.Context(), []engine.Request{r})
	if len(answers) != 1 {
		tb.Fatalf("%d answers to one request", len(answers))
	}
	return answers[0]
}

func message(id string) engine.Request {
	return engine.Request{Consumer: "billing", Message: key.Message{Headers: key.MapHeaders{"id": id}}}
}

func attempt(id, attempt string) engine.Request {
	r := message(id)
	r.Attempt = attempt
	return r
}

func body(id, text string) engine.Request {
	r := message(id)
	r.Message.Body = []byte(text)
	return r
}

// settle settles one claim.
func settle(tb testing.TB, e *engine.Engine, verb store.Verb, a engine.Answer) engine.Settled {
	tb.Helper()
	return e.Settle(tb.Context(), []engine.Settle{{Verb: verb, Key: a.Key, Token: a.Token}})[0]
}

// storeFunc is a store that only applies.
type storeFunc func(ctx context.Context, ops []store.Op, results []store.Result)

func (f storeFunc) Apply(ctx context.Context, ops []store.Op, results []store.Result) {
	f(ctx, ops, results)
}
func (f storeFunc) Health(context.Context) store.Health { return store.Health{} }
func (f storeFunc) Close() error                        { return nil }

// failing is a store that answers each operation with an error.
func failing(err error) store.Store {
	return storeFunc(func(_ context.Context, ops []store.Op, results []store.Result) {
		for i := range ops {
			results[i].Err = err
		}
	})
}
