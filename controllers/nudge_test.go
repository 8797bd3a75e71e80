package controllers_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/status"
)

func TestPodsThatAreBehindAreTouchedUntilTheyAreNot(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.ready()
	touched := func() []string {
		var pods []string
		for _, write := range w.written() {
			if write == "patch *v1.Pod a" || write == "patch *v1.Pod b" {
				pods = append(pods, write[len(write)-1:])
			}
		}
		return pods
	}
	want := func(step string, pods ...string) {
		t.Helper()
		w.reconcile()
		if diff := cmp.Diff(pods, touched()); diff != "" {
			t.Errorf("%s: touched (-want +got):\n%s", step, diff)
		}
	}

	want("all pods run the configuration")

	w.change(func(s *v1alpha1.DedupPolicySpec) { s.TTL = "2h" })
	want("the policy has changed", "a", "b")
	pod := &corev1.Pod{}
	must(t, k8s.Get(ctx, client.ObjectKey{Namespace: w.namespace, Name: "a"}, pod))
	first := pod.Annotations[v1alpha1.AnnotationNudged]
	if first != "2026-03-01T12:00:00Z" {
		t.Errorf("pod a was touched at %q", first)
	}

	w.clock.SetTime(w.clock.Now().Add(3 * time.Second))
	w.pods.set(address(1), w.well())
	want("the kubelet was too early for one", "a")
	must(t, k8s.Get(ctx, client.ObjectKeyFromObject(pod), pod))
	if again := pod.Annotations[v1alpha1.AnnotationNudged]; again == first {
		t.Error("pod a was touched a second time without a change, which the kubelet does not see")
	}

	w.pods.change(func(s *status.Status, p *status.Policy) { s.ConfigError, p.ConfigHash = "no", "before" })
	want("the pods have refused it")

	w.roll("a", "b")
	want("all pods run it")
}
