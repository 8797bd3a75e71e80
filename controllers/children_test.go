package controllers_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// Changes of a policy that several tests share.
func replicas(n int32) func(*v1alpha1.DedupPolicySpec) {
	return func(s *v1alpha1.DedupPolicySpec) { s.Deployment = &v1alpha1.DeploymentSpec{Replicas: &n} }
}

func autoscaled(s *v1alpha1.DedupPolicySpec) {
	s.Deployment = &v1alpha1.DeploymentSpec{Autoscaling: &v1alpha1.AutoscalingSpec{MinReplicas: 2, MaxReplicas: 6, TargetCPUUtilization: 70}}
}

func inMemory(s *v1alpha1.DedupPolicySpec) {
	s.Store = v1alpha1.StoreSpec{Memory: &v1alpha1.MemoryStore{MaxEntries: 10}}
}

func everythingSet(s *v1alpha1.DedupPolicySpec) {
	seconds := int64(30)
	s.Store.Redis.CredentialsSecretRef = &v1alpha1.SecretRef{Name: "auth"}
	s.Store.Redis.TLS = &v1alpha1.StoreTLS{CASecretRef: &v1alpha1.SecretRef{Name: "ca"}, ClientSecretRef: &v1alpha1.SecretRef{Name: "client"}}
	n := int32(3)
	s.Deployment = &v1alpha1.DeploymentSpec{
		Replicas: &n,
		Resources: &corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("0.5"), corev1.ResourceMemory: resource.MustParse("1024Ki")},
			Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1000m"), corev1.ResourceMemory: resource.MustParse("1.5Gi")},
		},
		NodeSelector: map[string]string{"kubernetes.io/os": "linux"},
		Tolerations: []corev1.Toleration{
			{Key: "dedicated", Operator: corev1.TolerationOpEqual, Value: "x", Effect: corev1.TaintEffectNoSchedule},
			{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds},
			{Key: "default-operator", Value: "y"},
		},
		PriorityClassName: "system-cluster-critical",
		PodLabels:         map[string]string{"team": "orders"},
		PodAnnotations:    map[string]string{"note": "1"},
	}
}

func TestChildrenAreMadeAndGoWithThePolicy(t *testing.T) {
	w := newWorld(t)
	p := w.create(autoscaled)
	w.reconcile()
	for kind, object := range every() {
		if !w.exists(object) {
			t.Errorf("there is no %s", kind)
			continue
		}
		yes := true
		want := []metav1.OwnerReference{{
			APIVersion: "dedupd.io/v1alpha1", Kind: "DedupPolicy", Name: p.Name, UID: p.UID, Controller: &yes, BlockOwnerDeletion: &yes,
		}}
		if diff := cmp.Diff(want, object.GetOwnerReferences()); diff != "" {
			t.Errorf("the owner of the %s (-want +got):\n%s", kind, diff)
		}
		if diff := cmp.Diff(v1alpha1.ChildLabels(p.Name), object.GetLabels()); diff != "" {
			t.Errorf("the labels of the %s (-want +got):\n%s", kind, diff)
		}
	}
}

func TestWhatIsAsItShouldBeIsNotWritten(t *testing.T) {
	for name, change := range map[string]func(*v1alpha1.DedupPolicySpec){
		"a store in Redis": func(*v1alpha1.DedupPolicySpec) {}, "a store in memory": inMemory,
		"autoscaling": autoscaled, "every field set": everythingSet,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create(change)
			w.reconcile()
			w.roll("a", "b", "c")
			w.reconcile()
			w.written()
			w.reconcile()
			w.reconcile()
			if written := w.written(); written != nil {
				t.Errorf("wrote %v", written)
			}
		})
	}
}

func TestWhatIsNoLongerWantedGoes(t *testing.T) {
	w := newWorld(t)
	w.create(autoscaled)
	w.reconcile()
	w.change(replicas(1))
	w.reconcile()
	if w.exists(&autoscalingv2.HorizontalPodAutoscaler{}) {
		t.Error("the autoscaler is still there")
	}
	if w.exists(&policyv1.PodDisruptionBudget{}) {
		t.Error("the budget is still there")
	}
	w.written()
	w.reconcile()
	if written := w.written(); written != nil {
		t.Errorf("wrote %v", written)
	}
}

func TestWhatIsNotOursIsNotPruned(t *testing.T) {
	w := newWorld(t)
	w.create(replicas(1))
	theirs := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "orders-dedupd"}}
	must(t, k8s.Create(ctx, theirs))
	w.reconcile()
	if !w.exists(theirs) {
		t.Error("someone else's budget is gone")
	}
	w.wantCondition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, v1alpha1.ReasonValid)
}

func TestTheAutoscalerSetsTheReplicas(t *testing.T) {
	w := newWorld(t)
	w.create(replicas(5))
	w.reconcile()

	w.change(autoscaled)
	w.reconcile()
	if n := *get(w, &appsv1.Deployment{}).Spec.Replicas; n != 5 {
		t.Errorf("%d replicas after the switch, want the 5 of before", n)
	}

	d := get(w, &appsv1.Deployment{})
	scale := func(n int32) {
		*d.Spec.Replicas = n
		must(t, k8s.Update(ctx, d, client.FieldOwner("kube-controller-manager")))
		w.written()
		w.reconcile()
		if d = get(w, d); *d.Spec.Replicas != n {
			t.Errorf("%d replicas, want the autoscaler's %d", *d.Spec.Replicas, n)
		}
	}
	scale(4)
	scale(6)
	w.written()
	w.reconcile()
	if written := w.written(); written != nil {
		t.Errorf("wrote %v", written)
	}

	w.change(replicas(3))
	w.reconcile()
	if d = get(w, d); *d.Spec.Replicas != 3 {
		t.Errorf("%d replicas without the autoscaler, want 3", *d.Spec.Replicas)
	}
}

func TestANameThatIsTakenIsLeftAlone(t *testing.T) {
	taken := func(w *world, object client.Object) {
		object.SetNamespace(w.namespace)
		object.SetName("orders-dedupd")
		object.SetLabels(map[string]string{"whose": "theirs"})
		switch o := object.(type) {
		case *corev1.Service:
			o.Spec.Ports = []corev1.ServicePort{{Port: 1}}
		case *appsv1.Deployment:
			o.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
			o.Spec.Template.Labels = map[string]string{"a": "b"}
			o.Spec.Template.Spec.Containers = []corev1.Container{{Name: "a", Image: "b"}}
		case *autoscalingv2.HorizontalPodAutoscaler:
			o.Spec.MaxReplicas = 2
			o.Spec.ScaleTargetRef = autoscalingv2.CrossVersionObjectReference{Kind: "Deployment", Name: "x", APIVersion: "apps/v1"}
		}
		must(w, k8s.Create(ctx, object))
	}
	for kind, object := range every() {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			w.create(autoscaled)
			taken(w, object)
			before := object.GetResourceVersion()
			again := w.reconcile().RequeueAfter

			w.wantCondition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonConflict)
			w.wantCondition(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonNotReady)
			if m := w.condition(v1alpha1.ConditionAccepted).Message; !strings.Contains(m, kind+" orders-dedupd exists") {
				t.Errorf("the message does not name the object: %s", m)
			}
			if diff := cmp.Diff([]string{"patch status"}, w.written()); diff != "" {
				t.Errorf("writes (-want +got):\n%s", diff)
			}
			if after := get(w, object).GetResourceVersion(); after != before {
				t.Error("the other's object was written")
			}
			if e := w.events.take(); len(e) != 1 || !strings.HasPrefix(e[0], "Warning ChildConflict: ") {
				t.Errorf("events %q", e)
			}
			if again <= 0 {
				t.Error("nobody will notice when the name is free")
			}
			w.reconcile()
			if e, written := w.events.take(), w.written(); e != nil || written != nil {
				t.Errorf("told again: %q, %q", e, written)
			}

			must(t, k8s.Delete(ctx, object))
			w.reconcile()
			w.wantCondition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, v1alpha1.ReasonValid)
		})
	}
}

func TestASuccessorOfAPolicyWaitsForTheOldChildren(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.reconcile()
	must(t, k8s.Delete(ctx, w.policy()))
	w.create()
	w.reconcile()
	w.wantCondition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonConflict)
	for _, object := range every() { // as the garbage collector would
		must(t, client.IgnoreNotFound(k8s.DeleteAllOf(ctx, object, client.InNamespace(w.namespace))))
	}
	w.reconcile()
	w.wantCondition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, v1alpha1.ReasonValid)
}

func TestAPolicyThatIsBeingDeletedIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	p := w.create()
	p.Finalizers = []string{"example.com/wait"}
	must(t, k8s.Update(ctx, p))
	must(t, k8s.Delete(ctx, p))
	w.reconcile()
	if written := w.written(); written != nil {
		t.Errorf("wrote %v", written)
	}
	p = w.policy()
	p.Finalizers = nil
	must(t, k8s.Update(ctx, p))
}

func TestConfigurationReachesRunningPodsButAnotherStoreRollsThem(t *testing.T) {
	cases := map[string]struct {
		change func(*v1alpha1.DedupPolicySpec)
		rolls  bool
	}{
		"ttl": {func(s *v1alpha1.DedupPolicySpec) { s.TTL = "2h" }, false},
		"lease": {func(s *v1alpha1.DedupPolicySpec) {
			s.Mode, s.Claim = v1alpha1.ModeClaim, &v1alpha1.ClaimSpec{Lease: "5s"}
		}, false},
		"enforcement": {func(s *v1alpha1.DedupPolicySpec) { s.Enforcement = v1alpha1.EnforcementShadow }, false},
		"addresses":   {func(s *v1alpha1.DedupPolicySpec) { s.Store.Redis.Addresses = []string{"redis2:6379"} }, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create()
			w.ready()
			hash, generation := w.policy().Status.ConfigHash, get(w, &appsv1.Deployment{}).Generation
			w.change(c.change)
			w.reconcile()
			if w.policy().Status.ConfigHash == hash || get(w, &corev1.ConfigMap{}).Annotations[v1alpha1.AnnotationConfigHash] == hash {
				t.Error("the configuration's hash is the same")
			}
			if rolled := get(w, &appsv1.Deployment{}).Generation != generation; rolled != c.rolls {
				t.Errorf("the Deployment was changed: %v, want %v", rolled, c.rolls)
			}
			w.wantCondition(v1alpha1.ConditionConfigLoaded, metav1.ConditionFalse, v1alpha1.ReasonOutdated)
			w.wantCondition(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonNotReady)
		})
	}
}

func TestAnInvalidChangeLeavesWhatRuns(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.ready()
	w.change(func(s *v1alpha1.DedupPolicySpec) { s.TTL = "0s" })
	if again := w.reconcile().RequeueAfter; again != 0 {
		t.Errorf("comes back after %s for a spec that will not become valid by itself", again)
	}
	w.wantCondition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonInvalid)
	w.wantCondition(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonNotReady)
	w.wantCondition(v1alpha1.ConditionConfigLoaded, metav1.ConditionTrue, v1alpha1.ReasonLoaded)
	if m := w.condition(v1alpha1.ConditionAccepted).Message; !strings.HasPrefix(m, "spec.ttl: ") {
		t.Errorf("the message does not start with the field's path: %s", m)
	}
	if diff := cmp.Diff([]string{"patch status"}, w.written()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
	if e := w.events.take(); len(e) != 1 || !strings.HasPrefix(e[0], "Warning InvalidPolicy: spec.ttl: ") {
		t.Errorf("events %q", e)
	}

	w.change(func(s *v1alpha1.DedupPolicySpec) { s.TTL = "1h" })
	w.reconcile()
	w.wantCondition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
}

func TestWhatTheAPIServerRefusesIsToldToTheUser(t *testing.T) {
	w := newWorld(t)
	w.create(func(s *v1alpha1.DedupPolicySpec) {
		s.Deployment = &v1alpha1.DeploymentSpec{Resources: &corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")},
			Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")},
		}}
	})
	w.reconcile()
	w.wantCondition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonInvalid)
	if m := w.condition(v1alpha1.ConditionAccepted).Message; !strings.HasPrefix(m, "spec.deployment: ") || !strings.Contains(m, "resources.requests") {
		t.Errorf("the message does not say what is wrong: %s", m)
	}
}

func TestAQuotaIsToldAndTriedAgain(t *testing.T) {
	w := newWorld(t)
	w.create()
	none := corev1.ResourceList{"count/deployments.apps": resource.MustParse("0")}
	quota := &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "none"},
		Spec:       corev1.ResourceQuotaSpec{Hard: none},
	}
	must(t, k8s.Create(ctx, quota))
	quota.Status = corev1.ResourceQuotaStatus{Hard: none, Used: none} // as its controller would
	must(t, k8s.Status().Update(ctx, quota))
	w.reconcileUntilRefused()
	w.wantCondition(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonNotReady)
	if m := w.condition(v1alpha1.ConditionReady).Message; !strings.Contains(m, "exceeded quota: none") {
		t.Errorf("the message does not name the quota: %s", m)
	}
}

// reconcileUntilRefused waits for the API server to have seen a quota.
func (w *world) reconcileUntilRefused() {
	w.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, err := w.r.Reconcile(ctx, w.policy()); err != nil {
			return
		}
		must(w, k8s.Delete(ctx, get(w, &appsv1.Deployment{})))
	}
	w.Fatal("no error, so nobody tries again")
}
