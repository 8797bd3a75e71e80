package controllers_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

func TestDriftIsMended(t *testing.T) {
	cases := map[string]struct {
		object client.Object
		drift  func(client.Object)
		mended func(client.Object) bool
	}{
		"the configuration": {&corev1.ConfigMap{},
			func(o client.Object) { o.(*corev1.ConfigMap).Data["policy.yaml"] = "hello" },
			func(o client.Object) bool {
				return strings.Contains(o.(*corev1.ConfigMap).Data["policy.yaml"], "ttl: 1h")
			}},
		"the configuration's file": {&corev1.ConfigMap{},
			func(o client.Object) { o.(*corev1.ConfigMap).Data = nil },
			func(o client.Object) bool { return o.(*corev1.ConfigMap).Data["policy.yaml"] != "" }},
		"the account's token": {&corev1.ServiceAccount{},
			func(o client.Object) { o.(*corev1.ServiceAccount).AutomountServiceAccountToken = nil },
			func(o client.Object) bool {
				mount := o.(*corev1.ServiceAccount).AutomountServiceAccountToken
				return mount != nil && !*mount
			}},
		"who may come in": {&networkingv1.NetworkPolicy{},
			func(o client.Object) { o.(*networkingv1.NetworkPolicy).Spec.Ingress = nil },
			func(o client.Object) bool { return len(o.(*networkingv1.NetworkPolicy).Spec.Ingress) == 2 }},
		"the service's pods": {&corev1.Service{},
			func(o client.Object) { o.(*corev1.Service).Spec.Selector["app.kubernetes.io/name"] = "other" },
			func(o client.Object) bool {
				return o.(*corev1.Service).Spec.Selector["app.kubernetes.io/name"] == "dedupd"
			}},
		"the service's port": {&corev1.Service{},
			func(o client.Object) { o.(*corev1.Service).Spec.Ports[0].TargetPort = intstr.FromInt32(81) },
			func(o client.Object) bool { return o.(*corev1.Service).Spec.Ports[0].TargetPort.IntValue() == 8080 }},
		"the image": {&appsv1.Deployment{},
			func(o client.Object) { o.(*appsv1.Deployment).Spec.Template.Spec.Containers[0].Image = "evil" },
			func(o client.Object) bool {
				return o.(*appsv1.Deployment).Spec.Template.Spec.Containers[0].Image == "dedup-operator:test"
			}},
		"the replicas": {&appsv1.Deployment{},
			func(o client.Object) { *o.(*appsv1.Deployment).Spec.Replicas = 0 },
			func(o client.Object) bool { return *o.(*appsv1.Deployment).Spec.Replicas == 3 }},
		"the security context": {&appsv1.Deployment{},
			func(o client.Object) { o.(*appsv1.Deployment).Spec.Template.Spec.Containers[0].SecurityContext = nil },
			func(o client.Object) bool {
				sc := o.(*appsv1.Deployment).Spec.Template.Spec.Containers[0].SecurityContext
				return sc != nil && sc.RunAsNonRoot != nil && *sc.RunAsNonRoot
			}},
		"a label": {&appsv1.Deployment{},
			func(o client.Object) { delete(o.(*appsv1.Deployment).Labels, v1alpha1.LabelManagedBy) },
			func(o client.Object) bool { return o.GetLabels()[v1alpha1.LabelManagedBy] == v1alpha1.ManagedBy }},
		"the budget": {&policyv1.PodDisruptionBudget{},
			func(o client.Object) {
				zero := intstr.FromInt32(0)
				o.(*policyv1.PodDisruptionBudget).Spec.MaxUnavailable = &zero
			},
			func(o client.Object) bool {
				return o.(*policyv1.PodDisruptionBudget).Spec.MaxUnavailable.IntValue() == 1
			}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create(replicas(3))
			w.reconcile()
			live := get(w, c.object)
			c.drift(live)
			live.SetAnnotations(merge(live.GetAnnotations(), "someone.else/note", "keep me"))
			must(t, k8s.Update(ctx, live))
			if c.mended(get(w, c.object)) {
				t.Fatal("the drift changed nothing")
			}
			w.written()
			w.reconcile()
			mended := get(w, c.object)
			if !c.mended(mended) {
				t.Errorf("not mended: %+v", mended)
			}
			if mended.GetAnnotations()["someone.else/note"] != "keep me" {
				t.Error("an annotation that is not ours is gone")
			}
			if written := w.written(); len(written) != 1 {
				t.Errorf("wrote %v, want one write", written)
			}
			w.reconcile()
			if written := w.written(); written != nil {
				t.Errorf("wrote again: %v", written)
			}
		})
	}
}

func merge(m map[string]string, key, value string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}

// What pods need to pull from a private registry is the namespace's to say.
func TestPullSecretsOfTheAccountAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.reconcile()
	patched := client.RawPatch(types.StrategicMergePatchType, []byte(`{"imagePullSecrets":[{"name":"pull"}]}`))
	must(t, k8s.Patch(ctx, get(w, &corev1.ServiceAccount{}), patched, client.FieldOwner("kubectl-patch")))
	w.written()
	w.reconcile()
	if written := w.written(); written != nil {
		t.Errorf("wrote %v", written)
	}
	account := get(w, &corev1.ServiceAccount{})
	account.AutomountServiceAccountToken = nil
	must(t, k8s.Update(ctx, account))
	w.reconcile()
	if written := w.written(); len(written) != 1 {
		t.Errorf("wrote %v, want the ServiceAccount", written)
	}
	account = get(w, &corev1.ServiceAccount{})
	if diff := cmp.Diff([]corev1.LocalObjectReference{{Name: "pull"}}, account.ImagePullSecrets); diff != "" {
		t.Errorf("pull secrets (-want +got):\n%s", diff)
	}
}

func TestAutoscalersDriftIsMended(t *testing.T) {
	w := newWorld(t)
	w.create(autoscaled)
	w.reconcile()
	h := get(w, &autoscalingv2.HorizontalPodAutoscaler{})
	h.Spec.MaxReplicas = 50
	must(t, k8s.Update(ctx, h))
	w.reconcile()
	if h = get(w, h); h.Spec.MaxReplicas != 6 {
		t.Errorf("maxReplicas %d, want 6", h.Spec.MaxReplicas)
	}
}

func TestADeletedChildComesBack(t *testing.T) {
	for kind, object := range every() {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			w.create(autoscaled)
			w.reconcile()
			must(t, k8s.Delete(ctx, get(w, object)))
			w.written()
			w.reconcile()
			if !w.exists(object) {
				t.Errorf("the %s did not come back", kind)
			}
			if written := w.written(); len(written) != 1 {
				t.Errorf("wrote %v, want one write", written)
			}
		})
	}
}
