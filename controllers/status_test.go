package controllers_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

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

func TestLostHistoryIsToldOnce(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.ready()
	since := func(when time.Time) func(*status.Status, *status.Policy) {
		return func(_ *status.Status, p *status.Policy) { p.Store.HistorySince = when }
	}
	want := func(step string, when time.Time, event string) {
		t.Helper()
		w.reconcile()
		said := "; history is complete since " + when.Format(time.RFC3339)
		if m := w.condition(v1alpha1.ConditionStoreSafe).Message; !strings.HasSuffix(m, said) {
			t.Errorf("%s: StoreSafe says %q, want at its end %q", step, m, said)
		}
		if got := w.policy().Status.HistorySince; got == nil || !got.Time.Equal(when.Truncate(time.Second)) {
			t.Errorf("%s: history since %s, want %s", step, got, when)
		}
		if e := w.events.take(); event == "" && e != nil || event != "" && (len(e) != 1 || !strings.HasPrefix(e[0], event)) {
			t.Errorf("%s: events %q, want %q", step, e, event)
		}
	}
	first := time.UnixMilli(1_790_000_000_123).UTC()
	w.pods.change(since(first))
	want("the first look", first, "")

	w.pods.change(since(time.Time{}))
	want("pods that do not know yet", first, "")

	second := first.Add(time.Hour)
	said := w.well()
	said.Policies[0].Store.HistorySince = second
	w.pods.change(since(first))
	w.pods.set(address(0), said)
	want("one pod has noticed", second, "Warning HistoryLost: the store has lost what it remembered")
	w.written()
	w.pods.change(since(second))
	want("all have", second, "")
	if written := w.written(); written != nil {
		t.Errorf("written again: %q", written)
	}
}

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

func TestWhatHappensToHistoryIsTold(t *testing.T) {
	cases := map[string]struct {
		change func(*v1alpha1.DedupPolicySpec)
		event  string
	}{
		"other addresses": {
			func(s *v1alpha1.DedupPolicySpec) { s.Store.Redis.Addresses = []string{"redis2:6379"} },
			"Warning StoreMoved: the store is now Standalone [redis2:6379] and was Standalone [redis:6379]: ",
		},
		"another topology": {
			func(s *v1alpha1.DedupPolicySpec) { s.Store.Redis.Mode = v1alpha1.RedisCluster },
			"Warning StoreMoved: ",
		},
		"a higher epoch": {
			func(s *v1alpha1.DedupPolicySpec) { s.Epoch = 2 },
			"Normal EpochRaised: epoch 2 begins: what was remembered in epoch 1 no longer counts",
		},
		"a higher epoch at other addresses": {
			func(s *v1alpha1.DedupPolicySpec) { s.Epoch, s.Store.Redis.Addresses = 2, []string{"redis2:6379"} },
			"Normal EpochRaised: ",
		},
		"credentials": {
			func(s *v1alpha1.DedupPolicySpec) {
				s.Store.Redis.CredentialsSecretRef = &v1alpha1.SecretRef{Name: "auth"}
			}, "",
		},
		"ttl": {func(s *v1alpha1.DedupPolicySpec) { s.TTL = "2h" }, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create()
			w.ready()
			w.change(c.change)
			w.reconcile()
			w.reconcile()
			e := w.events.take()
			if c.event == "" && e != nil || c.event != "" && (len(e) != 1 || !strings.HasPrefix(e[0], c.event)) {
				t.Errorf("events %q, want one %q", e, c.event)
			}
		})
	}
}

func TestAMoveWithinPostgresIsTold(t *testing.T) {
	cases := map[string]struct {
		change func(*v1alpha1.PostgresStore)
		event  string
	}{
		"other addresses": {
			func(s *v1alpha1.PostgresStore) { s.Addresses = []string{"pg-2:5432"} },
			"Warning StoreMoved: the store is now schema dedupd of database dedup at [pg-2:5432] and was schema dedupd of database dedup at [pg:5432]: ",
		},
		"another database": {
			func(s *v1alpha1.PostgresStore) { s.Database = "other" }, "Warning StoreMoved: the store is now schema dedupd of database other ",
		},
		"another schema": {
			func(s *v1alpha1.PostgresStore) { s.Schema = "other" }, "Warning StoreMoved: the store is now schema other of ",
		},
		"credentials": {func(s *v1alpha1.PostgresStore) { s.CredentialsSecretRef.Name = "other" }, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create(inPostgres)
			w.ready()
			w.change(func(s *v1alpha1.DedupPolicySpec) { c.change(s.Store.Postgres) })
			w.reconcile()
			e := w.events.take()
			if c.event == "" && e != nil || c.event != "" && (len(e) != 1 || !strings.HasPrefix(e[0], c.event)) {
				t.Errorf("events %q, want one %q", e, c.event)
			}
		})
	}
}

func TestAMendedConfigMapIsNoMove(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.ready()
	cm := get(w, &corev1.ConfigMap{})
	cm.Data["policy.yaml"] = strings.ReplaceAll(cm.Data["policy.yaml"], "redis:6379", "elsewhere:6379")
	must(t, k8s.Update(ctx, cm))
	w.reconcile()
	if e := w.events.take(); e != nil {
		t.Errorf("events %q", e)
	}
}

func TestOrderOfClusterNodesIsNoMove(t *testing.T) {
	w := newWorld(t)
	w.create(func(s *v1alpha1.DedupPolicySpec) {
		s.Store.Redis.Mode, s.Store.Redis.Addresses = v1alpha1.RedisCluster, []string{"a:1", "b:1"}
	})
	w.ready()
	w.change(func(s *v1alpha1.DedupPolicySpec) { s.Store.Redis.Addresses = []string{"b:1", "a:1"} })
	w.reconcile()
	if e := w.events.take(); e != nil {
		t.Errorf("events %q", e)
	}
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

func inPostgres(s *v1alpha1.DedupPolicySpec) {
	s.Store = v1alpha1.StoreSpec{Postgres: &v1alpha1.PostgresStore{
		Addresses: []string{"pg:5432"}, Database: "dedup", CredentialsSecretRef: v1alpha1.SecretRef{Name: "auth"},
	}}
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

// Another store has a history of its own, and the one of before has lost nothing.
func TestAnotherKindOfStoreIsNoLossOfHistory(t *testing.T) {
	for name, change := range map[string]func(*v1alpha1.DedupPolicySpec){"Postgres": inPostgres, "Memory": inMemory} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create()
			w.ready()
			since := func(when time.Time) *metav1.Time {
				t.Helper()
				w.pods.change(func(_ *status.Status, p *status.Policy) { p.Store.HistorySince = when })
				w.reconcile()
				return w.policy().Status.HistorySince
			}
			first := time.Unix(1_790_000_000, 0)
			since(first)
			w.change(func(s *v1alpha1.DedupPolicySpec) {
				change(s)
				s.Epoch = 2
			})
			if got := since(first); got != nil { // The pods are of before.
				t.Errorf("while no pod has the new store its history is complete since %s", got)
			}
			w.roll("a", "b")
			second := first.Add(time.Hour)
			if got := since(second); got == nil || !got.Time.Equal(second) {
				t.Errorf("the new store's history is complete since %s, want %s", got, second)
			}
			e := w.events.take()
			if slices.ContainsFunc(e, func(e string) bool { return strings.Contains(e, v1alpha1.EventHistoryLost) }) {
				t.Errorf("events %q", e)
			}
		})
	}
}
