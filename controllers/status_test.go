package controllers_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/status"
)

const (
	isTrue    = metav1.ConditionTrue
	isFalse   = metav1.ConditionFalse
	isUnknown = metav1.ConditionUnknown
)

func TestConditionsFollowAPolicyFromItsCreationToReady(t *testing.T) {
	w := newWorld(t)
	p := w.create()
	want := func(step string, loaded, reachable, safe, ready string) {
		t.Helper()
		got := map[string]string{}
		for _, c := range w.policy().Status.Conditions {
			got[c.Type] = string(c.Status) + " " + c.Reason
			if c.ObservedGeneration != p.Generation {
				t.Errorf("%s: %s speaks of generation %d, not %d", step, c.Type, c.ObservedGeneration, p.Generation)
			}
		}
		all := map[string]string{"Accepted": "True Valid", "ConfigLoaded": loaded, "StoreReachable": reachable, "StoreSafe": safe, "Ready": ready}
		if diff := cmp.Diff(all, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step, diff)
		}
	}

	w.reconcile()
	want("no pods", "Unknown Pending", "Unknown Pending", "Unknown Pending", "False NotReady")

	w.roll("a", "b")
	w.pods.change(func(s *status.Status, _ *status.Policy) { s.Policies = []status.Policy{{Name: "other"}} })
	w.reconcile()
	want("the pods have no configuration yet", "False Outdated", "Unknown StatusUnknown", "Unknown StatusUnknown", "False NotReady")

	w.roll("a", "b")
	w.pods.change(func(_ *status.Status, p *status.Policy) { p.ConfigHash = "before" })
	w.reconcile()
	want("the pods run another configuration", "False Outdated", "True Reachable", "True Safe", "False NotReady")

	w.roll("a", "b")
	w.pods.change(func(_ *status.Status, p *status.Policy) {
		p.Store = status.Store{Kind: "Redis", Error: status.NotAsked, Safety: "Unknown", Reason: status.NotAsked}
	})
	w.reconcile()
	want("the store was not asked", "True Loaded", "Unknown StatusUnknown", "Unknown StatusUnknown", "False NotReady")

	w.roll("a", "b")
	d := get(w, &appsv1.Deployment{})
	d.Status.AvailableReplicas = 1
	must(t, k8s.Status().Update(ctx, d))
	w.reconcile()
	want("one pod is not available", "True Loaded", "True Reachable", "True Safe", "False NotReady")
	if m := w.condition(v1alpha1.ConditionReady).Message; m != "Deployment: 1 of 2 pods are available" {
		t.Errorf("message %q", m)
	}

	w.roll("a", "b")
	w.reconcile()
	want("all is well", "True Loaded", "True Reachable", "True Safe", "True Ready")

	got := w.policy().Status
	got.Conditions = nil
	hash := get(w, &corev1.ConfigMap{}).Annotations[v1alpha1.AnnotationConfigHash]
	wantStatus := v1alpha1.DedupPolicyStatus{
		ObservedGeneration: p.Generation, Endpoint: "orders-dedupd." + w.namespace + ".svc:8080",
		Store: "Redis", Replicas: 2, ReadyReplicas: 2, ConfigHash: hash,
	}
	if diff := cmp.Diff(wantStatus, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

// What goes wrong once a policy is ready: the condition that tells, whether the policy stays
// ready, and the event.
func TestTroubleIsNoticedAndToldOnce(t *testing.T) {
	cases := map[string]struct {
		trouble   func(*status.Status, *status.Policy)
		condition string
		status    metav1.ConditionStatus
		reason    string
		ready     metav1.ConditionStatus
		event     string
	}{
		"the store is down": {
			func(_ *status.Status, p *status.Policy) {
				p.Store.Reachable, p.Store.Error = false, "dial tcp 10.0.0.9:6379: connection refused"
			},
			"StoreReachable", isFalse, "Unreachable", isFalse, "Warning StoreUnreachable: pod a: dial tcp 10.0.0.9:6379: connection refused",
		},
		"the store evicts": {
			func(_ *status.Status, p *status.Policy) {
				p.Store.Safety, p.Store.Reason = "Unsafe", "maxmemory-policy is allkeys-lru"
			},
			"StoreSafe", isFalse, "Unsafe", isTrue, "Warning StoreUnsafe: maxmemory-policy is allkeys-lru",
		},
		"the store does not say": {
			func(_ *status.Status, p *status.Policy) {
				p.Store.Safety, p.Store.Reason = "Unknown", "CONFIG is not permitted"
			},
			"StoreSafe", isUnknown, "StatusUnknown", isTrue, "",
		},
		"the configuration is rejected": {
			func(s *status.Status, p *status.Policy) {
				s.ConfigError, p.ConfigHash = "policy.yaml: spec.ttl: 0s", "before"
			},
			"ConfigLoaded", isFalse, "Rejected", isFalse, "Warning ConfigRejected: pod a: policy.yaml: spec.ttl: 0s",
		},
		"dedupd is older than the policy": {
			func(_ *status.Status, p *status.Policy) { p.UnknownFields = []string{"spec.newer"} },
			"ConfigLoaded", isTrue, "UnknownFields", isTrue, "Warning UnknownFields: ",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create()
			w.ready()
			w.pods.change(c.trouble)
			w.reconcile()
			w.wantCondition(c.condition, c.status, c.reason)
			if got := w.condition(v1alpha1.ConditionReady).Status; got != c.ready {
				t.Errorf("Ready is %s, want %s", got, c.ready)
			}
			e := w.events.take()
			if c.event == "" && e != nil || c.event != "" && (len(e) != 1 || !strings.HasPrefix(e[0], c.event)) {
				t.Errorf("events %q, want %q", e, c.event)
			}
			w.written()
			w.reconcile()
			if e, written := w.events.take(), w.written(); e != nil || written != nil {
				t.Errorf("told again: %q, %q", e, written)
			}

			w.roll("a", "b")
			w.reconcile()
			w.wantCondition(v1alpha1.ConditionReady, isTrue, v1alpha1.ReasonReady)
			e = w.events.take()
			if wasReady := c.ready == isTrue; wasReady && e != nil || !wasReady && (len(e) != 1 || !strings.HasPrefix(e[0], "Normal Ready: ")) {
				t.Errorf("events after the trouble: %q", e)
			}
		})
	}
}

func TestWhyPodsCannotBeMadeIsTold(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.reconcile()
	d := get(w, &appsv1.Deployment{})
	d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Conditions: []appsv1.DeploymentCondition{
		{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: "pods are forbidden: exceeded quota"},
	}}
	must(t, k8s.Status().Update(ctx, d))
	w.reconcile()
	if m := w.condition(v1alpha1.ConditionReady).Message; m != "Deployment: pods are forbidden: exceeded quota" {
		t.Errorf("message %q", m)
	}
}

func TestAStoresErrorThatOnlyDiffersInItsPortIsNotWrittenAgain(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.ready()
	for _, local := range []string{"10.1.2.3:40001", "10.1.2.3:40002"} {
		w.pods.change(func(_ *status.Status, p *status.Policy) {
			p.Store.Reachable, p.Store.Error = false, "read tcp "+local+"->10.0.0.9:6379: i/o timeout"
		})
		w.reconcile()
	}
	if diff := cmp.Diff([]string{"patch status"}, w.written()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
	if m := w.condition(v1alpha1.ConditionStoreReachable).Message; m != "pod a: read tcp 10.0.0.9:6379: i/o timeout" {
		t.Errorf("message %q", m)
	}
}

func TestAStatusJudgedByAnOldOneIsNotPublished(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.reconcile()
	stale := w.policy()
	w.roll("a", "b")
	w.reconcile()
	w.events.take()
	if _, err := w.r.Reconcile(ctx, stale); err == nil {
		t.Error("no error, so what was judged by the old status stays")
	}
	if e := w.events.take(); e != nil {
		t.Errorf("told again: %q", e)
	}
}

func TestReadyWaitsForTheRollout(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.ready()
	cases := map[string]struct {
		change func(*appsv1.DeploymentStatus)
		want   string
	}{
		"not seen by its controller": {func(s *appsv1.DeploymentStatus) { s.ObservedGeneration = 0 }, "Deployment: it was changed, and its pods follow"},
		"a pod is of before":         {func(s *appsv1.DeploymentStatus) { s.UpdatedReplicas = 1 }, "Deployment: 1 of 2 pods are up to date"},
		"a pod too many":             {func(s *appsv1.DeploymentStatus) { s.Replicas = 3 }, "Deployment: 1 of the pods of before are still to end"},
		"a pod is not available":     {func(s *appsv1.DeploymentStatus) { s.AvailableReplicas = 1 }, "Deployment: 1 of 2 pods are available"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w.roll("a", "b")
			d := get(w, &appsv1.Deployment{})
			c.change(&d.Status)
			must(t, k8s.Status().Update(ctx, d))
			w.reconcile()
			w.wantCondition(v1alpha1.ConditionReady, isFalse, v1alpha1.ReasonNotReady)
			if m := w.condition(v1alpha1.ConditionReady).Message; m != c.want {
				t.Errorf("message %q, want %q", m, c.want)
			}
		})
	}
}

// A cache may lag behind the operator's own write, and show the Deployment of before as complete.
func TestADeploymentThatWasJustChangedIsNotReady(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.ready()
	w.cached = get(w, &appsv1.Deployment{})
	w.change(func(s *v1alpha1.DedupPolicySpec) { s.Store.Redis.Addresses = []string{"redis2:6379"} })
	for range 2 {
		w.reconcile()
		w.pods.set(address(0), w.well())
		w.pods.set(address(1), w.well())
	}
	w.wantCondition(v1alpha1.ConditionConfigLoaded, isTrue, v1alpha1.ReasonLoaded)
	w.wantCondition(v1alpha1.ConditionReady, isFalse, v1alpha1.ReasonNotReady)

	w.cached = nil
	w.reconcile()
	w.wantCondition(v1alpha1.ConditionReady, isFalse, v1alpha1.ReasonNotReady)
	w.roll("a", "b")
	w.reconcile()
	w.wantCondition(v1alpha1.ConditionReady, isTrue, v1alpha1.ReasonReady)
}

func TestAStoreIsNamedByItsKind(t *testing.T) {
	for want, change := range map[string]func(*v1alpha1.DedupPolicySpec){
		"Redis": func(*v1alpha1.DedupPolicySpec) {}, "Postgres": inPostgres, "Memory": inMemory,
	} {
		w := newWorld(t)
		w.create(change)
		w.reconcile()
		if got := w.policy().Status.Store; got != want {
			t.Errorf("status.store %q, want %q", got, want)
		}
	}
}
