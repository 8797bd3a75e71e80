package controllers_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// A policy is looked at again after 30 to 60 seconds, so that is how long they rest at least,
// all at once. What is written, the API server counts.
func TestAtRestNothingIsWritten(t *testing.T) {
	cases := map[string]struct {
		change  func(*v1alpha1.DedupPolicySpec)
		webhook func(w *world)
		restart bool
		poked   bool // something happens to a child that is none of the operator's business
	}{
		"undisturbed":                         {change: everythingSet},
		"after a restart":                     {change: autoscaled, restart: true},
		"while others touch the children":     {change: everythingSet, poked: true},
		"with a webhook that adds fields":     {change: autoscaled, webhook: addingWebhook, restart: true},
		"with a webhook that rewrites fields": {change: everythingSet, webhook: rewritingWebhook, restart: true, poked: true},
	}
	worlds := map[string]*world{}
	for name, c := range cases {
		w := newWorld(t)
		if c.webhook != nil {
			c.webhook(w)
		}
		stop := startManager(w)
		w.create(c.change)
		w.becomesReady()
		if writes, _ := audited(t, w.userAgent(), 0); len(writes) < 7 {
			t.Fatalf("%s: the API server saw the writes %v alone, so it would not see others either", name, writes)
		}
		if c.restart {
			stop()
		}
		worlds[name] = w
	}
	logEnd := quiet(t, slices.Collect(maps.Values(worlds))...)
	for name, c := range cases {
		if c.restart {
			startManager(worlds[name])
		}
	}
	for deadline := time.Now().Add(65 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Second) {
		for name, c := range cases {
			if c.poked {
				worlds[name].poke(time.Now().String())
			}
		}
	}
	for name := range cases {
		w := worlds[name]
		if writes, _ := audited(t, w.userAgent(), logEnd); len(writes) > 0 {
			t.Errorf("%s: at rest it wrote %v", name, writes)
		}
		// It was not asleep: a change is followed.
		w.change(func(s *v1alpha1.DedupPolicySpec) { s.TTL = "2h" })
		w.eventually(name+": the policy waits for its pods", func() bool {
			return w.condition(v1alpha1.ConditionConfigLoaded).Reason == v1alpha1.ReasonOutdated
		})
	}
}

// becomesReady waits for the children, plays their pods, and waits for the policy to be ready.
func (w *world) becomesReady() {
	w.Helper()
	w.eventually("the Deployment is there", func() bool { return w.exists(&appsv1.Deployment{}) })
	w.eventually("the ConfigMap is there", func() bool { return w.exists(&corev1.ConfigMap{}) })
	w.roll("a", "b", "c")
	w.eventually("the policy is ready", w.isReady)
}

// poke makes the manager reconcile the policy without a change that matters.
func (w *world) poke(value string) {
	w.Helper()
	w.retried(func() error {
		cm := get(w, &corev1.ConfigMap{})
		metav1.SetMetaDataAnnotation(&cm.ObjectMeta, "someone.else/poke", value)
		return k8s.Update(ctx, cm)
	})
}
