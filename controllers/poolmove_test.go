package controllers_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/status"
)

func TestMembersJoinLeaveAndChangeWithoutARolloutButForTheirSecrets(t *testing.T) {
	w := newPoolWorld(t)
	w.add("first", pooled("small"))
	w.add("second", pooled("small"), withSecret("auth"))
	w.run()
	template := w.deployment("small-dedupd-pool").Spec.Template
	for _, step := range []struct {
		what  string
		do    func()
		rolls bool
	}{
		{"one joins", func() { w.add("third", pooled("small")) }, false},
		{"one with a Secret that is mounted joins", func() { w.add("fourth", pooled("small"), withSecret("auth")) }, false},
		{"one changes its ttl", func() { w.edit("first", func(s *v1alpha1.DedupPolicySpec) { s.TTL = "2h" }) }, false},
		{"one changes its store", func() {
			w.edit("first", func(s *v1alpha1.DedupPolicySpec) { s.Store.Redis.Addresses = []string{"other:6380"} })
		}, false},
		{"one is deleted", func() { must(t, k8s.Delete(ctx, w.named("third"))) }, false},
		{"one moves away", func() { w.edit("second", func(s *v1alpha1.DedupPolicySpec) { s.Deployment = nil }) }, true},
		{"and comes back", func() { w.edit("second", pooled("small")) }, false},
		{"one with another Secret joins", func() { w.add("fifth", pooled("small"), withSecret("another")) }, true},
		{"the last with a Secret leaves", func() { w.edit("fifth", func(s *v1alpha1.DedupPolicySpec) { s.Deployment = nil }) }, true},
	} {
		step.do()
		w.run()
		d := w.deployment("small-dedupd-pool")
		if rolled := !cmp.Equal(template, d.Spec.Template); rolled != step.rolls {
			t.Errorf("%s: the pods roll: %v, want %v\n%s", step.what, rolled, step.rolls, cmp.Diff(template, d.Spec.Template))
		}
		template = d.Spec.Template
	}
	w.wantConditionOf("first", v1alpha1.ConditionReady, "True")
	var ports []int32
	np := w.objects()["NetworkPolicy small-dedupd-pool"].(*networkingv1.NetworkPolicy)
	for _, p := range np.Spec.Egress[1].Ports {
		ports = append(ports, p.Port.IntVal)
	}
	if diff := cmp.Diff([]int32{6379, 6380}, slices.Sorted(slices.Values(ports))); diff != "" {
		t.Errorf("ports out (-want +got):\n%s", diff)
	}
}

// At every step of a move the policy's Service leads to pods that run it.
func TestAPolicyThatMovesIsServedAllTheWay(t *testing.T) {
	none := func(s *v1alpha1.DedupPolicySpec) { s.Deployment = nil }
	homes := map[string]struct {
		change     func(*v1alpha1.DedupPolicySpec)
		deployment string
		objects    [][]string
	}{
		"own":  {none, "orders-dedupd", [][]string{ofPolicy("orders")}},
		"a":    {pooled("a"), "a-dedupd-pool", [][]string{ofMember("orders"), ofPool("a")}},
		"b":    {pooled("b"), "b-dedupd-pool", [][]string{ofMember("orders"), ofPool("b")}},
		"many": {pooled("many"), "many-dedupd-pool", [][]string{ofMember("orders")}},
	}
	w := newPoolWorld(t)
	w.add("other", pooled("many"))
	w.add("orders")
	w.run()
	at := "own"
	for _, to := range []string{"a", "b", "own", "many", "a", "own"} {
		what := at + " -> " + to
		w.edit("orders", homes[to].change)
		w.step()
		if by := w.servedBy("orders"); by != homes[at].deployment {
			t.Errorf("%s: before the new pods run it, it is served by %q", what, by)
		}
		w.wantConditionOf("orders", v1alpha1.ConditionReady, "False NotReady")
		w.kubelet(func(p *status.Policy) { p.Store.Reachable = false })
		must(t, w.reconcileAll())
		if by := w.servedBy("orders"); by != homes[at].deployment {
			t.Errorf("%s: while the new pods do not reach the store, it is served by %q", what, by)
		}
		w.kubelet()
		for range 3 { // The controllers take turns, and the pods stay as they are.
			must(t, w.reconcileAll())
			if by := w.servedBy("orders"); by == "" {
				t.Errorf("%s: nobody serves it", what)
			}
		}
		if by := w.servedBy("orders"); by != homes[to].deployment {
			t.Errorf("%s: once the new pods run it, it is served by %q", what, by)
		}
		if runs := w.configured("many-dedupd-pool"); at == "many" && len(runs) != 2 {
			t.Errorf("%s: consumers may still have connections to the pods of the pool, which runs %+v", what, runs)
		}
		w.run()
		w.wantConditionOf("orders", v1alpha1.ConditionReady, "True")
		w.wantObjects(append(homes[to].objects, ofPool("many"), ofMember("other"))...)
		if other := w.configured("many-dedupd-pool"); len(other) != map[bool]int{true: 2, false: 1}[to == "many"] {
			t.Errorf("%s: pool many runs %+v", what, other)
		}
		at = to
	}
}
