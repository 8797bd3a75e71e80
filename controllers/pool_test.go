package controllers_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/status"
)

// ofPool are the names of a pool's own objects.
func ofPool(pool string, more ...string) []string {
	var names []string
	for _, kind := range append([]string{"ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount"}, more...) {
		names = append(names, kind+" "+pool+"-dedupd-pool")
	}
	return names
}

// ofMember are those of a policy that is in a pool, ofPolicy those of one that is not.
func ofMember(name string) []string {
	return []string{"ConfigMap " + name + "-dedupd", "Service " + name + "-dedupd"}
}

func ofPolicy(name string) []string {
	var names []string
	for _, kind := range []string{"ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount"} {
		names = append(names, kind+" "+name+"-dedupd")
	}
	return names
}

func (w *poolWorld) wantObjects(lists ...[]string) {
	w.Helper()
	want := slices.Sorted(slices.Values(slices.Concat(lists...)))
	if diff := cmp.Diff(want, w.names()); diff != "" {
		w.Errorf("objects (-want +got):\n%s", diff)
	}
}

func (w *poolWorld) deployment(name string) *appsv1.Deployment {
	w.Helper()
	d := &appsv1.Deployment{}
	must(w, k8s.Get(ctx, client.ObjectKey{Namespace: w.namespace, Name: name}, d))
	return d
}

func TestThePoliciesOfAPoolShareOneDeployment(t *testing.T) {
	w := newPoolWorld(t)
	want := [][]string{ofPool("small"), ofPool("other"), ofPolicy("alone")}
	var owners []string
	for i := range 20 {
		name := fmt.Sprintf("p-%02d", i)
		w.add(name, pooled("small"))
		want, owners = append(want, ofMember(name)), append(owners, name)
	}
	w.add("elsewhere", pooled("other"))
	w.add("alone")
	w.run()
	w.wantObjects(append(want, ofMember("elsewhere"))...)
	for _, p := range w.policies() {
		w.wantConditionOf(p.Name, v1alpha1.ConditionReady, "True Ready dedupd answers at "+p.Name+"-dedupd."+w.namespace+".svc:8080")
		if p := w.named(p.Name); p.Status.Replicas != 2 || p.Status.ReadyReplicas != 2 || p.Status.ConfigHash == "" {
			t.Errorf("status of %s: %+v", p.Name, p.Status)
		}
	}
	w.wantServed(map[string]string{"p-00": "small-dedupd-pool", "p-19": "small-dedupd-pool", "elsewhere": "other-dedupd-pool", "alone": "alone-dedupd"})
	for name, o := range w.objects() {
		if !strings.HasSuffix(name, "small-dedupd-pool") {
			continue
		}
		var got []string
		for _, owner := range o.GetOwnerReferences() {
			if owner.Controller != nil || owner.BlockOwnerDeletion != nil || owner.UID != w.named(owner.Name).UID {
				t.Errorf("%s has the owner %+v", name, owner)
			}
			got = append(got, owner.Name)
		}
		slices.Sort(got)
		if diff := cmp.Diff(owners, got); diff != "" {
			t.Errorf("owners of %s (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(v1alpha1.PoolLabels("small"), o.GetLabels()); diff != "" {
			t.Errorf("labels of %s (-want +got):\n%s", name, diff)
		}
	}
	if e := w.events.take(); len(e) != 22 {
		t.Errorf("events %q, want that each policy became ready", e)
	}
}

func TestAPoolThatNobodyNamesIsRemoved(t *testing.T) {
	for name, leave := range map[string]func(w *poolWorld, name string){
		"its policies are deleted":     func(w *poolWorld, name string) { must(w, k8s.Delete(ctx, w.named(name))) },
		"its policies are edited away": func(w *poolWorld, name string) { w.edit(name, replicas(2)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newPoolWorld(t)
			w.add("first", pooled("small"), func(s *v1alpha1.DedupPolicySpec) {
				autoscaled(s)
				pooled("small")(s)
			})
			w.add("second", pooled("small"))
			w.run()
			w.wantObjects(ofPool("small", "HorizontalPodAutoscaler"), ofMember("first"), ofMember("second"))
			leave(w, "first")
			w.run()
			w.wantServed(map[string]string{"second": "small-dedupd-pool"})
			leave(w, "second")
			w.run()
			for _, object := range w.names() {
				if strings.HasSuffix(object, "small-dedupd-pool") {
					t.Errorf("%s is left", object)
				}
			}
		})
	}
}

func TestAPoolRunsAsItsOldestMemberWithSettingsSays(t *testing.T) {
	w := newPoolWorld(t)
	set := func(n int32, labels map[string]string) func(*v1alpha1.DedupPolicySpec) {
		return func(s *v1alpha1.DedupPolicySpec) {
			s.Deployment = &v1alpha1.DeploymentSpec{Pool: "small", Replicas: &n, PodLabels: labels}
		}
	}
	w.add("a-silent", pooled("small"))
	w.add("b-first", set(3, nil))
	w.add("c-same", set(3, nil))
	w.add("d-more", set(3, map[string]string{"team": "orders"}))
	w.add("e-other", set(5, nil))
	w.run()
	if n := *w.deployment("small-dedupd-pool").Spec.Replicas; n != 3 {
		t.Errorf("%d replicas, want 3", n)
	}
	for name, accepted := range map[string]string{
		"a-silent": "True Valid", "b-first": "True Valid", "c-same": "True Valid",
		"d-more":  `False PoolDiffers spec.deployment.podLabels: {"team":"orders"}, but pool small runs as its oldest member with settings says, and policy b-first says nothing of it`,
		"e-other": "False PoolDiffers spec.deployment.replicas: 5, but pool small runs as its oldest member with settings says, and policy b-first says 3: say the same there, or leave it out here",
	} {
		w.wantConditionOf(name, v1alpha1.ConditionAccepted, accepted)
		w.wantConditionOf(name, v1alpha1.ConditionConfigLoaded, "True")
		w.wantServed(map[string]string{name: "small-dedupd-pool"})
		ready := "False NotReady Accepted: "
		if strings.HasPrefix(accepted, "True") {
			ready = "True Ready"
		}
		w.wantConditionOf(name, v1alpha1.ConditionReady, ready)
	}
	if e := w.events.take(); len(slices.DeleteFunc(e, func(e string) bool { return !strings.HasPrefix(e, "Warning PoolDiffers: spec.deployment.") })) != 2 {
		t.Errorf("events %q", e)
	}
	// It shapes the pool while it is there, whatever else becomes of it.
	w.edit("b-first", func(s *v1alpha1.DedupPolicySpec) { s.TTL = "0s" })
	w.run()
	w.wantConditionOf("b-first", v1alpha1.ConditionAccepted, "False Invalid")
	w.wantServed(map[string]string{"b-first": "small-dedupd-pool"})
	if n := *w.deployment("small-dedupd-pool").Spec.Replicas; n != 3 {
		t.Errorf("%d replicas, want 3", n)
	}
	must(t, k8s.Delete(ctx, w.named("b-first")))
	must(t, k8s.Delete(ctx, w.named("c-same")))
	must(t, k8s.Delete(ctx, w.named("d-more")))
	w.run()
	if n := *w.deployment("small-dedupd-pool").Spec.Replicas; n != 5 {
		t.Errorf("%d replicas, want 5", n)
	}
	w.wantConditionOf("e-other", v1alpha1.ConditionReady, "True")
}

func TestAMembersTroubleIsItsOwn(t *testing.T) {
	w := newPoolWorld(t)
	w.add("fine", pooled("small"))
	w.add("invalid", pooled("small"))
	w.add("conflict", pooled("small"))
	theirs := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "conflict-dedupd"}}
	theirs.Spec.Ports = []corev1.ServicePort{{Port: 1}}
	must(t, k8s.Create(ctx, theirs))
	w.run()
	before := w.configured("small-dedupd-pool")
	w.edit("invalid", func(s *v1alpha1.DedupPolicySpec) { s.TTL = "0s" })
	w.run()
	w.wantConditionOf("conflict", v1alpha1.ConditionAccepted, "False Conflict Service conflict-dedupd exists and is not controlled by this policy")
	w.wantConditionOf("invalid", v1alpha1.ConditionAccepted, "False Invalid spec.ttl")
	w.wantConditionOf("fine", v1alpha1.ConditionReady, "True")
	w.wantServed(map[string]string{"fine": "small-dedupd-pool", "invalid": "small-dedupd-pool"})
	after := w.configured("small-dedupd-pool")
	if len(before) != 2 || len(after) != 2 {
		t.Errorf("the pool ran %+v, and runs %+v", before, after)
	}
	// One that was never accepted runs nowhere, and one that is accepted again runs again.
	w.add("never", pooled("small"), func(s *v1alpha1.DedupPolicySpec) { s.TTL = "0s" })
	must(t, k8s.Delete(ctx, theirs))
	w.edit("invalid", func(s *v1alpha1.DedupPolicySpec) { s.TTL = "3h" })
	w.run()
	w.wantConditionOf("never", v1alpha1.ConditionAccepted, "False Invalid")
	for _, name := range []string{"fine", "invalid", "conflict"} {
		w.wantConditionOf(name, v1alpha1.ConditionReady, "True")
	}
	if runs := w.configured("small-dedupd-pool"); len(runs) != 3 {
		t.Errorf("the pool runs %+v", runs)
	}
}

func TestAPoolsNameThatIsTakenIsToldToEveryMember(t *testing.T) {
	w := newPoolWorld(t)
	theirs := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "small-dedupd-pool"}, Data: map[string]string{"a": "b"}}
	must(t, k8s.Create(ctx, theirs))
	w.add("first", pooled("small"))
	w.add("second", pooled("small"))
	w.run()
	for _, name := range []string{"first", "second"} {
		w.wantConditionOf(name, v1alpha1.ConditionAccepted,
			"False Conflict ConfigMap small-dedupd-pool exists and is not controlled by this pool: delete it, or give the pool another name")
	}
	must(t, k8s.Delete(ctx, theirs))
	w.run()
	w.wantConditionOf("second", v1alpha1.ConditionReady, "True")
}

func TestAPoolHasRoomForSoManyAndTellsTheOthers(t *testing.T) {
	w := newPoolWorld(t)
	large := func(s *v1alpha1.DedupPolicySpec) {
		s.Store.Redis.Mode, s.Store.Redis.Addresses = v1alpha1.RedisCluster, nil
		for i := range 32 {
			s.Store.Redis.Addresses = append(s.Store.Redis.Addresses, fmt.Sprintf("%s-%02d.example.com:6379", strings.Repeat("r", 240), i))
		}
		s.Key = v1alpha1.KeySpec{Strategy: v1alpha1.StrategyContentHash, ContentHash: &v1alpha1.ContentHashKey{Canonical: v1alpha1.CanonicalJSON}}
		for i := range 32 {
			s.Key.ContentHash.Exclude = append(s.Key.ContentHash.Exclude, v1alpha1.JSONPath(fmt.Sprintf("$.%s%02d", strings.Repeat("x", 250), i)))
		}
	}
	for i := range 62 {
		w.add(fmt.Sprintf("p-%02d", i), large, pooled("small"))
	}
	looked := func() {
		t.Helper()
		must(t, w.reconcilePool("small"))
		w.kubelet()
		must(t, w.reconcilePool("small"))
	}
	looked()
	runs := len(w.configured("small-dedupd-pool"))
	if runs < 50 || runs > 60 {
		t.Fatalf("it runs %d policies of 17 kB", runs)
	}
	w.wantConditionOf(fmt.Sprintf("p-%02d", runs-1), v1alpha1.ConditionReady, "True")
	w.wantConditionOf("p-61", v1alpha1.ConditionAccepted,
		fmt.Sprintf("False PoolFull spec.deployment.pool: small: its ConfigMap has no room for this policy beside the %d that it holds", runs))
	w.add("tiny", pooled("small"))
	must(t, k8s.Delete(ctx, w.named("p-00")))
	looked()
	w.wantConditionOf("tiny", v1alpha1.ConditionReady, "True")
	w.wantConditionOf(fmt.Sprintf("p-%02d", runs), v1alpha1.ConditionReady, "True")
}

func TestAPoolHasTheKeysOfItsMembersCallers(t *testing.T) {
	w := newPoolWorld(t)
	issuer := issuerOf(t, "rsa")
	w.r.Issuer = issuer
	w.add("open", pooled("small"))
	w.run()
	keys := func() string {
		return w.objects()["ConfigMap small-dedupd-pool"].(*corev1.ConfigMap).Data[v1alpha1.IssuerFile]
	}
	if keys() != "" {
		t.Error("there are keys although no policy has callers")
	}
	w.add("closed", pooled("small"), forCheckout)
	w.run()
	first := keys()
	if first != string(issuer.keys) {
		t.Errorf("the keys are %q", first)
	}
	w.wantConditionOf("open", v1alpha1.ConditionReady, "True")
	w.wantConditionOf("closed", v1alpha1.ConditionReady, "True")

	issuer.keys = issuerOf(t, "rsa", "another").keys
	w.run()
	if keys() == first {
		t.Error("a rotated key does not arrive")
	}
	w.wantConditionOf("closed", v1alpha1.ConditionReady, "True")

	issuer.err = errors.New("nobody answers")
	w.add("new", pooled("small"), forCheckout)
	w.run()
	w.wantConditionOf("new", v1alpha1.ConditionAccepted, "False NoIssuerKeys")
	w.wantConditionOf("closed", v1alpha1.ConditionReady, "True")
	if runs := w.configured("small-dedupd-pool"); len(runs) != 2 || keys() == "" {
		t.Errorf("the pool runs %+v", runs)
	}
	issuer.err = nil
	w.run()
	w.wantConditionOf("new", v1alpha1.ConditionReady, "True")
}

func TestPodsOfAPoolAreTouchedOnceForAllThatChanged(t *testing.T) {
	w := newPoolWorld(t)
	for _, name := range []string{"first", "second", "third"} {
		w.add(name, pooled("small"))
	}
	w.run()
	must(t, w.reconcileAll())
	if written := w.written(); written != nil {
		t.Errorf("wrote %v", written)
	}
	w.edit("first", func(s *v1alpha1.DedupPolicySpec) { s.TTL = "2h" })
	w.edit("second", func(s *v1alpha1.DedupPolicySpec) { s.TTL = "2h" })
	must(t, w.reconcileAll())
	written := w.written()
	if n := len(slices.DeleteFunc(written, func(s string) bool { return s != "patch *v1.Pod small-dedupd-pool" })); n != 1 {
		t.Errorf("touched the pod %d times", n)
	}
	w.wantConditionOf("first", v1alpha1.ConditionConfigLoaded, "False Outdated")
	w.wantConditionOf("third", v1alpha1.ConditionConfigLoaded, "True")
	// What is wrong with another's file in a pod is no trouble of those whose own is loaded.
	w.pods.change(func(s *status.Status, _ *status.Policy) { s.ConfigError = "first.policy.yaml: no" })
	must(t, w.reconcileAll())
	w.wantConditionOf("first", v1alpha1.ConditionConfigLoaded, "False Rejected pod small-dedupd-pool: first.policy.yaml: no")
	w.wantConditionOf("third", v1alpha1.ConditionReady, "True")
}
