package controllers_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

func TestDriftOfAPoolIsMended(t *testing.T) {
	w := newPoolWorld(t)
	w.add("first", func(s *v1alpha1.DedupPolicySpec) {
		autoscaled(s)
		pooled("small")(s)
	})
	w.add("second", pooled("small"))
	w.run()
	for name, drift := range map[string]func(client.Object){
		"ConfigMap small-dedupd-pool":      func(o client.Object) { o.(*corev1.ConfigMap).Data["second.policy.yaml"] = "hello" },
		"ServiceAccount small-dedupd-pool": func(o client.Object) { o.(*corev1.ServiceAccount).AutomountServiceAccountToken = nil },
		"NetworkPolicy small-dedupd-pool":  func(o client.Object) { o.(*networkingv1.NetworkPolicy).Spec.Ingress = nil },
		"Deployment small-dedupd-pool": func(o client.Object) {
			o.SetLabels(nil)
			o.(*appsv1.Deployment).Spec.Template.Spec.Containers[0].Image = "evil"
		},
		"PodDisruptionBudget small-dedupd-pool": func(o client.Object) { o.(*policyv1.PodDisruptionBudget).Spec.MaxUnavailable.IntVal = 2 },
		"HorizontalPodAutoscaler small-dedupd-pool": func(o client.Object) {
			o.SetOwnerReferences(nil)
			o.(*autoscalingv2.HorizontalPodAutoscaler).Spec.MaxReplicas = 50
		},
		"Service first-dedupd":    func(o client.Object) { o.(*corev1.Service).Spec.Selector["dedupd.io/pool"] = "other" },
		"Service second-dedupd":   func(o client.Object) { delete(o.GetLabels(), v1alpha1.LabelPool) },
		"ConfigMap second-dedupd": func(o client.Object) { o.(*corev1.ConfigMap).Data = nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := &poolWorld{world: w.world, addresses: w.addresses}
			was := w.objects()[name]
			drifted := was.DeepCopyObject().(client.Object)
			drift(drifted)
			must(t, k8s.Update(ctx, drifted))
			must(t, w.reconcileAll())
			written := slices.DeleteFunc(w.written(), func(write string) bool { return write == "patch status" })
			if len(written) != 1 {
				t.Errorf("wrote %v, want one write", written)
			}
			w.run()
			is := w.objects()[name]
			if diff := cmp.Diff(essence(was), essence(is)); diff != "" {
				t.Errorf("not mended (-before +after):\n%s", diff)
			}
			must(t, k8s.Delete(ctx, is))
			must(t, w.reconcileAll())
			if back := w.objects()[name]; back == nil || cmp.Diff(essence(was), essence(back)) != "" {
				t.Errorf("once deleted it comes back as %+v", back)
			}
			w.run()
		})
	}
}

// essence is an object without what differs from one to its successor.
func essence(o client.Object) client.Object {
	o = o.DeepCopyObject().(client.Object)
	o.SetUID("")
	o.SetResourceVersion("")
	o.SetGeneration(0)
	o.SetManagedFields(nil)
	o.SetCreationTimestamp(metav1.Time{})
	switch o := o.(type) {
	case *corev1.Service:
		o.Spec.ClusterIP, o.Spec.ClusterIPs = "", nil
	case *appsv1.Deployment:
		o.Status, o.Annotations = appsv1.DeploymentStatus{}, nil // the replicas may be applied once more or not
		o.Spec.Replicas = nil
	}
	return o
}
