package controllers_test

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

func TestEveryPodIsAsked(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.ready()
	outdated := w.well()
	outdated.Policies[0].ConfigHash = "before"
	w.pods.set(address(1), outdated)
	w.reconcile()
	w.wantCondition(v1alpha1.ConditionConfigLoaded, isFalse, v1alpha1.ReasonOutdated)
	if m := w.condition(v1alpha1.ConditionConfigLoaded).Message; !strings.HasPrefix(m, "1 of 2 pods do not run configuration ") {
		t.Errorf("message %q", m)
	}
}

func TestAPodThatDoesNotAnswerMakesTheStateUnknown(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.ready()
	pod := &corev1.Pod{}
	must(t, k8s.Get(ctx, client.ObjectKey{Namespace: w.namespace, Name: "b"}, pod))
	pod.Status.PodIP = "127.0.1.99"
	pod.Status.PodIPs = []corev1.PodIP{{IP: "127.0.1.99"}}
	must(t, k8s.Status().Update(ctx, pod))
	w.reconcile()
	for _, c := range []string{"ConfigLoaded", "StoreReachable", "StoreSafe"} {
		w.wantCondition(c, isUnknown, v1alpha1.ReasonStatusUnknown)
	}
	if m := w.condition(v1alpha1.ConditionReady).Message; m != "ConfigLoaded: pod b: nobody answers at 127.0.1.99:8080" {
		t.Errorf("message %q", m)
	}
}

func TestOnlyRunningPodsOfThePolicyAreAsked(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.ready()
	for name, c := range map[string]struct {
		policy string
		phase  corev1.PodPhase
		ip     string
		ending bool
	}{
		"not-started": {policy: "orders", phase: corev1.PodPending},
		"evicted":     {policy: "orders", phase: corev1.PodFailed, ip: "127.0.1.75"},
		"ending":      {policy: "orders", phase: corev1.PodRunning, ip: "127.0.1.76", ending: true},
		"of-another":  {policy: "payments", phase: corev1.PodRunning, ip: "127.0.1.77"},
	} {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: w.namespace, Name: name, Labels: v1alpha1.SelectorLabels(c.policy), Finalizers: []string{"example.com/wait"},
			},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "b"}}},
		}
		must(t, k8s.Create(ctx, pod))
		pod.Status.Phase, pod.Status.PodIP = c.phase, c.ip
		must(t, k8s.Status().Update(ctx, pod))
		if c.ending {
			must(t, k8s.Delete(ctx, pod))
		}
	}
	w.reconcile()
	w.wantCondition(v1alpha1.ConditionReady, isTrue, v1alpha1.ReasonReady)
}

func TestPodsAreAskedLessAndLessOften(t *testing.T) {
	w := newWorld(t)
	w.create()
	for _, step := range []struct{ wait, want time.Duration }{
		{0, time.Second}, {4 * time.Second, time.Second}, {16 * time.Second, 5 * time.Second}, {20 * time.Minute, 30 * time.Second},
	} {
		w.clock.SetTime(w.clock.Now().Add(step.wait))
		if got := w.reconcile().RequeueAfter; got != step.want {
			t.Errorf("after %s: comes back in %s, want %s", step.wait, got, step.want)
		}
	}
	w.roll("a", "b")
	if got := w.reconcile().RequeueAfter; got < 30*time.Second || got > time.Minute {
		t.Errorf("ready: comes back in %s, want 30s to 60s", got)
	}
}
